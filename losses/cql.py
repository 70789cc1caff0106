"""Conservative Q-learning: doubt the value of actions that the data did not take.

Symbols: Q_i(s, a) is the value of an action by critic i of N, a_t the data's action, a_s one of S
actions that were drawn, d(a_s) the density of the draw. The reducers read a td ``[*B]`` or
``[*B, T]``:

    state_action_value          [*B] or [*B, N]        Q_i(s_t, a_t)
    action_value_samples        [*B, S] or [*B, N, S]  Q_i(s_t, a_s)
    action_log_density_samples  [*B, S]                log d(a_s)
    action_value                [*B, A]                Q(s_t, .) of discrete actions

The penalties are added to a critic's loss. Nothing is detached.
"""

from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._check import (
    batch_first,
    check_divisor,
    check_float,
    check_hyper,
    check_index,
    gather,
)
from .lagrange import lagrange_dual

# ---- equations


def cql_penalty(
    state_action_value: Tensor,
    action_value_samples: Tensor,
    log_density: Tensor | None = None,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """How much larger the values of other actions are than that of the data's.

        temperature log sum_s exp((Q(s, a_s) - log d(a_s)) / temperature) - Q(s, a)

    with the density d that an action was drawn with; without it (all actions, say), log d is 0. The
    sum is not divided by the number of actions, which would shift it by a constant.

    Args:
        state_action_value: Q(s, a) of the data's action, ``[...]`` float.
        action_value_samples: Q(s, a_s), ``[..., S]`` float.
        log_density: log d(a_s), float that broadcasts to ``[..., S]``.
        temperature: above 0; float, or a tensor that broadcasts to ``[...]``.

    Returns:
        ``[...]``.

    Raises:
        ValueError: a shape does not fit, or the temperature is not above 0.
        TypeError: an argument is not floating-point.

    Source: Kumar et al. (2020), "Conservative Q-learning", equation 4 and appendix F.
    """
    name = "cql_penalty"
    shape = check_float(name, "state_action_value", state_action_value).shape
    full = check_float(name, "action_value_samples", action_value_samples).shape
    if full[:-1] != shape or len(full) != len(shape) + 1 or not full[-1]:
        raise ValueError(
            f"{name}: action_value_samples has shape {tuple(full)}, expected "
            f"{batch_first(shape, 'S')} (from state_action_value)"
        )
    check_divisor(name, "temperature", temperature, shape, "state_action_value")
    if log_density is not None:
        check_float(name, "log_density", log_density)
        check_hyper(name, "log_density", log_density, full, "action_value_samples")
        action_value_samples = action_value_samples - log_density
    scale = temperature
    if isinstance(temperature, Tensor) and temperature.dim():
        scale = temperature.unsqueeze(-1)
    return temperature * (action_value_samples / scale).logsumexp(-1) - state_action_value


def discrete_cql_penalty(action_value: Tensor, action: Tensor) -> Tensor:
    """How much larger the values of all actions are than that of the data's.

        log sum_a exp Q(s, a) - Q(s, a_t)

    It is the negative log-likelihood of the action with Q as logits.

    Args:
        action_value: Q(s, .), ``[..., A]`` float.
        action: ``[...]`` int, or one-hot ``[..., A]``.

    Returns:
        ``[...]``.

    Raises:
        ValueError: the shapes do not fit, or an action is not one of A.
        TypeError: the values are not floating-point, or the action not an index or one-hot.

    Source: Kumar et al. (2020), equation 4.
    """
    name = "discrete_cql_penalty"
    shape = check_float(name, "action_value", action_value).shape
    if not shape or not shape[-1]:
        raise ValueError(f"{name}: action_value has shape {tuple(shape)}, expected [..., A]")
    index = check_index(name, "action", action, shape[:-1], shape[-1], "action_value")
    chosen = gather(name, "action", action_value, index, "action_value")
    return cql_penalty(chosen, action_value)


# ---- reducers


def cql_loss(
    td: TensorDictBase,
    *,
    min_q_weight: float | Tensor = 1.0,
    temperature: float | Tensor = 1.0,
    reduction: str = "mean",
) -> TensorDictBase:
    """Conservative Q-learning's penalty, which is added to the critics' loss.

        loss_cql = min_q_weight sum_i cql_penalty(Q_i(s_t, a_t), Q_i(s_t, .), log d, temperature)

    The actions are drawn by the caller: uniformly, by the policy in s_t, and by the policy in
    s_{t+1}, one after the other along S, each with the log-density that it was drawn with. Detaches
    nothing: actions and densities are to be made with the policy's parameters held. The other
    losses are SAC's; the actor's warm-up is ``bc_loss`` with ``entropy_coeff`` of SAC's alpha. For
    a bound instead of a weight (Lagrange), ``min_q_weight`` is multiplied by alpha', which descends
    on ``cql_alpha_prime_loss``; TorchRL does not multiply.

    All S actions of a state are in its sum. TorchRL's sum is over three, one of each kind, then
    averaged; with S = 3 the two agree.

    Args:
        td: ``[*B]`` with ``state_action_value`` ``[*B, N]`` or ``[*B]`` and
            ``action_value_samples`` ``[*B, N, S]``, or ``[*B, S]`` of one critic; optionally
            ``action_log_density_samples`` ``[*B, S]``, ``mask`` and ``weight``.
        min_q_weight: weight of the penalty, at least 0; float or tensor, 0-d or ``[*B]``. An entry
            of the td wins.
        temperature: of the soft maximum, above 0; likewise.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_cql``, and detached ``cql_penalty``, without its weight.

    Raises:
        ValueError: a key is missing, a shape is wrong, or a hyper-parameter is out of its range.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Kumar et al. (2020), "Conservative Q-learning", equation 4 and appendix F.
    """
    batch = Batch("cql_loss", td)
    penalty = _penalty(batch, temperature).sum(-1)
    loss = batch.hyper("min_q_weight", min_q_weight, 0.0) * penalty
    return batch.reduced(reduction, {"loss_cql": loss}, {"cql_penalty": penalty})


def cql_alpha_prime_loss(
    td: TensorDictBase,
    *,
    alpha_prime: float | Tensor = 1.0,
    threshold: float | Tensor = 0.0,
    min_q_weight: float | Tensor = 1.0,
    temperature: float | Tensor = 1.0,
    reduction: str = "mean",
) -> TensorDictBase:
    """What the multiplier of CQL's bound descends on.

        loss_alpha_prime = -alpha' (min_q_weight mean_i penalty_i - threshold)

    Detaches nothing: it is differentiated in alpha', and its entries are to be made with the
    critics' parameters held. (TorchRL's loss reaches the critics too.) Keep alpha' positive, such
    as an exponential.

    Args:
        td: as for ``cql_loss``.
        alpha_prime: the multiplier, at least 0; float or tensor, 0-d or ``[*B]``. An entry of the
            td wins.
        threshold: bound on the weighted penalty; likewise.
        min_q_weight: weight of the penalty, at least 0; likewise.
        temperature: of the soft maximum, above 0; likewise.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_alpha_prime``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or a hyper-parameter is out of its range.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Kumar et al. (2020), appendix F.
    """
    batch = Batch("cql_alpha_prime_loss", td)
    weight = batch.hyper("min_q_weight", min_q_weight, 0.0)
    loss = lagrange_dual(
        weight * _penalty(batch, temperature).mean(-1),
        batch.hyper("alpha_prime", alpha_prime, 0.0),
        batch.hyper("threshold", threshold),
    )
    return batch.reduced(reduction, {"loss_alpha_prime": loss})


def discrete_cql_loss(
    td: TensorDictBase,
    *,
    min_q_weight: float | Tensor = 1.0,
    reduction: str = "mean",
) -> TensorDictBase:
    """Conservative Q-learning's penalty for discrete actions, which is added to a Q-learning loss.

        loss_cql = min_q_weight (log sum_a exp Q(s_t, a) - Q(s_t, a_t))

    Detaches nothing. TorchRL's ``DiscreteCQLLoss`` adds it to a squared error with a factor of 1/2:
    in its sum with an error without the 1/2, give ``min_q_weight`` of 2 for the same minimum.

    Args:
        td: ``[*B]`` with ``action_value`` ``[*B, A]`` float and ``action``, an index or one-hot;
            optionally ``mask`` and ``weight``.
        min_q_weight: weight of the penalty, at least 0; float or tensor, 0-d or ``[*B]``. An entry
            of the td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_cql``, and detached ``cql_penalty``, without its weight.

    Raises:
        ValueError: a key is missing, a shape is wrong, or a hyper-parameter is out of its range.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Kumar et al. (2020), equation 4.
    """
    batch = Batch("discrete_cql_loss", td)
    value = batch.vector("action_value", "A")
    penalty = cql_penalty(batch.of_action(value, "action_value"), value)
    loss = batch.hyper("min_q_weight", min_q_weight, 0.0) * penalty
    return batch.reduced(reduction, {"loss_cql": loss}, {"cql_penalty": penalty})


# ---- private


def _penalty(batch: Batch, temperature: float | Tensor) -> Tensor:
    """The penalty of each critic, ``[*B, N]``."""
    chosen, key = batch.members("state_action_value"), "action_value_samples"
    value = batch.members(key, "S")
    if value.shape[:-1] != chosen.shape:
        wanted = batch_first(chosen.shape, "S")
        batch.wrong_shape(key, batch.entry(key), wanted, " (from state_action_value)")
    log_density = None
    if batch.has("action_log_density_samples"):
        log_density = batch.vector("action_log_density_samples", value.shape[-1], key).unsqueeze(-2)
    scale = batch.positive("temperature", temperature)
    if isinstance(scale, Tensor) and scale.dim():
        scale = scale.unsqueeze(-1)
    return cql_penalty(chosen, value, log_density, scale)
