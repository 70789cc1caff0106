"""Learning from a fixed set of data: stay near what the data did, and do more of what went well.

Symbols: Q_i(s, a) is the value of an action by critic i of N, Q'_i a target critic, V(s) the value,
pi(a|s) the policy and mu(s) a deterministic one. The reducers read a td ``[*B]`` or ``[*B, T]``:

    state_action_value         [*B] or [*B, N]  Q_i(s_t, a_t) of the data's action
    state_action_value_target  [*B] or [*B, N]  Q'_i(s_t, a_t)
    state_action_value_actor   [*B] or [*B, N]  Q_i(s_t, mu(s_t)), critics' parameters held
    action_actor               [*B] or [*B, D]  mu(s_t)

Implicit Q-learning (IQL) is an estimator, run outside of the differentiated function, and three
losses, each differentiated in its own network's parameters:

    add_iql_advantage   before the others, of the value and the least Q'
    iql_value_loss      the value, to an expectile of the least Q'
    awr_loss            the policy
    iql_critic_loss     the critics, to r + gamma V(s')

For discrete actions the entry is picked from a network's values of all actions first:
``state_action_value = action_value.gather(-1, action.unsqueeze(-1)).squeeze(-1)``.
"""

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from ._check import check_divisor, check_float, check_hyper
from ._critics import (
    Distance,
    critic_metrics,
    ensemble_loss,
    finished_target,
    one_step_target,
)
from ._numbers import times
from .cql import cql_alpha_prime_loss as cql_alpha_prime_loss
from .cql import cql_loss as cql_loss
from .cql import cql_penalty as cql_penalty
from .cql import discrete_cql_loss as discrete_cql_loss
from .cql import discrete_cql_penalty as discrete_cql_penalty
from .distances import asymmetric, squared_error
from .distributions import DistClass, action_log_prob, make_distribution
from .imitation import action_distance

# ---- equations


def advantage_weight(
    advantage: Tensor, temperature: float | Tensor = 3.0, max_weight: float | Tensor = 100.0
) -> Tensor:
    """Weight of an action by its advantage.

        w_t = min(exp(temperature A_t), max_weight)

    Where the exponential is capped its gradient is 0, and that of ``max_weight`` 1, however large
    the exponent is.

    Args:
        advantage: ``[...]`` float.
        temperature: at least 0; float, or a tensor that broadcasts to ``[...]``. Advantage-weighted
            regression writes 1 / beta for it.
        max_weight: above 0; likewise.

    Returns:
        ``[...]``.

    Raises:
        ValueError: a hyper-parameter is out of its range or does not broadcast.
        TypeError: an argument is not floating-point.

    Source: Peng et al. (2019), "Advantage-weighted regression", section 5; Kostrikov et al. (2021),
    "Offline reinforcement learning with implicit Q-learning", equation 7.
    """
    name = "advantage_weight"
    shape = check_float(name, "advantage", advantage).shape
    check_hyper(name, "temperature", temperature, shape, "advantage", 0.0)
    check_divisor(name, "max_weight", max_weight, shape, "advantage")
    exponent = temperature * advantage
    many = isinstance(max_weight, Tensor)
    capped = exponent > (max_weight.log() if many else math.log(max_weight))
    return torch.where(capped, max_weight, torch.where(capped, 0.0, exponent).exp())


# ---- TD3+BC


def td3_bc_actor_loss(
    td: TensorDictBase,
    *,
    alpha: float | Tensor = 2.5,
    value_scale: float | Tensor | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """TD3's policy, held to the data's actions.

        loss_actor = -lmbd Q_0(s_t, mu(s_t)) + mean over components of (mu(s_t) - a_t)^2
        lmbd = alpha / value_scale

    Detaches nothing where ``value_scale`` is given. Where it is not, it is the mean of
    |Q_0(s_t, mu(s_t))| over the td (over its mask), with a **full stop**, as in the paper: exact
    for one inner step. For several give it from outside of the differentiated function, as
    ``td["state_action_value_actor"][..., 0].abs().mean()``. Where all values are 0, the scale is 1;
    TorchRL has NaN there.

    The critics are those of ``td3_critic_loss``.

    Args:
        td: ``[*B]`` with ``state_action_value_actor`` ``[*B, N]`` or ``[*B]``, ``action_actor`` and
            ``action``, ``[*B, D]`` or ``[*B]`` float; optionally ``mask`` and ``weight``.
        alpha: weight of the value, at least 0; float or tensor, 0-d or ``[*B]``. An entry of the td
            wins.
        value_scale: what the value is divided by, above 0; likewise.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_actor``, and detached ``bc_loss``, its second part, and ``lmbd``. With "none" the
        second part is each step's own (TorchRL's is the mean over all).

    Raises:
        ValueError: a key is missing, a shape is wrong, or a hyper-parameter is out of its range.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Fujimoto & Gu (2021), "A minimalist approach to offline reinforcement learning",
    equations 3 and 5.
    """
    batch = Batch("td3_bc_actor_loss", td)
    value = batch.members("state_action_value_actor")[..., 0]
    if value_scale is None and not batch.has("value_scale"):
        size = batch.mean(value.detach().abs())
        scale = torch.where(size == 0, 1.0, size)
    else:
        scale = batch.positive("value_scale", value_scale)
    distance = action_distance(batch, squared_error)
    lmbd = batch.hyper("alpha", alpha, 0.0) / scale * torch.ones_like(value)
    metrics = {"bc_loss": distance, "lmbd": lmbd}
    return batch.reduced(reduction, {"loss_actor": distance - lmbd * value}, metrics)


# ---- advantage-weighted regression and IQL


def awr_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    temperature: float | Tensor = 3.0,
    max_weight: float | Tensor = 100.0,
    reduction: str = "mean",
) -> TensorDictBase:
    """Advantage-weighted regression: imitate what turned out well.

        loss_actor = -min(exp(temperature A_t), max_weight) log pi(a_t|s_t)

    Detaches nothing: the ``advantage`` is finished, put there outside of the differentiated
    function by ``add_iql_advantage`` or ``add_advantage``. With the first it is the policy's loss
    of IQL, whose default for locomotion is 3 (TorchRL's ``IQLLoss`` has 1); the paper of
    advantage-weighted regression writes 1 / beta for the temperature and caps at 20.

    Args:
        td: ``[*B]`` with the policy's parameters (see ``distribution``), ``action`` and
            ``advantage``; optionally ``mask`` and ``weight``.
        dist_class: callable from the parameters to a distribution.
        temperature: at least 0; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        max_weight: largest weight, above 0; likewise.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_actor``, and detached ``advantage_weight``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or a hyper-parameter is out of its range.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Peng et al. (2019), section 3; Kostrikov et al. (2021), equation 7.
    """
    batch = Batch("awr_loss", td)
    log_prob = action_log_prob(batch, make_distribution(batch, dist_class))
    hint = "Put it there with add_iql_advantage or add_advantage."
    weight = advantage_weight(
        batch.step("advantage", hint=hint),
        batch.hyper("temperature", temperature, 0.0),
        batch.positive("max_weight", max_weight),
    )
    losses = {"loss_actor": times(weight, -log_prob)}
    return batch.reduced(reduction, losses, {"advantage_weight": weight})


def add_iql_advantage(td: TensorDictBase) -> TensorDictBase:
    """Adds what the value and the policy of IQL are to learn from.

        value_target_t = min_i Q'_i(s_t, a_t)
        advantage_t = value_target_t - V(s_t)

    Detaches nothing. Its ``value_target`` is the value's, for ``iql_value_loss``; the critics' is
    another, see ``iql_critic_loss``.

    Args:
        td: ``[*B]`` with ``state_action_value_target`` ``[*B, N]`` or ``[*B]``, by the target
            critics, and ``state_value``; optionally ``mask``.

    Returns:
        A new td with ``value_target`` and ``advantage``, ``[*B]``. Where critics tie, the gradient
        of the minimum is shared equally among them.

    Raises:
        ValueError: a key is missing or a shape is wrong.
        TypeError: an entry is not floating-point.

    Source: Kostrikov et al. (2021), equations 5 and 7.
    """
    batch = Batch("add_iql_advantage", td)
    target = batch.members("state_action_value_target").amin(-1)
    advantage = target - batch.step("state_value")
    return batch.added(value_target=target, advantage=advantage)


def iql_value_loss(
    td: TensorDictBase,
    *,
    expectile: float | Tensor = 0.7,
    reduction: str = "mean",
) -> TensorDictBase:
    """IQL's value: an expectile of what the data's actions are worth, without asking for others.

        loss_value = (expectile if G_t >= V(s_t) else 1 - expectile) (G_t - V(s_t))^2
        G_t = min_i Q'_i(s_t, a_t)

    without 1/2: ``expectile_error``. TorchRL's default for the expectile is 0.5.

    Detaches nothing where the td holds ``value_target``, which ``add_iql_advantage`` writes. Where
    it does not, G_t is made here with a **full stop** on ``state_action_value_target``: exact where
    target networks made it, and for one inner step.

    Args:
        td: ``[*B]`` with ``state_value`` ``[*B]`` float and ``value_target`` ``[*B]``, or instead
            of the latter ``state_action_value_target`` ``[*B, N]`` or ``[*B]``; optionally ``mask``
            and ``weight``.
        expectile: in [0, 1]; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_value``, and detached ``td_error``, ``pred_value`` V(s_t) and ``target_value``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or the expectile is out of its range.
        TypeError: an entry or the expectile has the wrong dtype.

    Source: Kostrikov et al. (2021), equation 5.
    """
    batch = Batch("iql_value_loss", td)
    value = batch.step("state_value")
    if batch.has("value_target"):
        target = batch.step("value_target")
    else:
        target = batch.members("state_action_value_target").amin(-1).detach()
    error = asymmetric(value, target, batch.hyper("expectile", expectile, 0.0, 1.0))
    return batch.reduced(reduction, {"loss_value": error}, critic_metrics(value, target))


def iql_critic_loss(
    td: TensorDictBase,
    *,
    gamma: float | Tensor | None = None,
    distance: Distance = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """IQL's critics: each learns from the value of what follows, never from an action's.

        loss_critic = sum_i distance(Q_i(s_t, a_t), y_t), by default squares, without 1/2
        y_t = r_t + gamma^n (1 - terminated_t) V(s_{t+1})

    with ``steps_to_next_obs`` for n, else 1. TorchRL's default distance is smooth L1.

    Detaches nothing where the td holds ``value_target``; it must be y_t, as ``add_advantage`` makes
    it with ``lmbda`` of 0, and not that of ``add_iql_advantage``. Where it does not, y_t is made
    from ``gamma`` with a **full stop** on ``("next", "state_value")``; gamma gets its gradient.
    That is exact for one inner step.

    Args:
        td: ``[*B]`` with ``state_action_value`` ``[*B, N]`` or ``[*B]`` and ``value_target``
            ``[*B]``, or instead of the latter ``("next", "state_value")``, ``("next", "reward")``
            float and ``("next", "terminated")`` bool; optionally ``steps_to_next_obs``, ``mask``
            and ``weight``.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        distance: elementwise function of the values ``[*B, N]`` and their targets.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error`` max_i |Q_i - y| (TorchRL's is its square),
        ``pred_value`` (mean over the critics) and ``target_value``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` stands beside a
            ``value_target``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Kostrikov et al. (2021), equation 6.
    """
    batch = Batch("iql_critic_loss", td)
    value = batch.members("state_action_value")
    if finished_target(batch, "add_advantage (lmbda=0)", gamma=gamma):
        target = batch.step("value_target")
    else:
        hint = "It comes from running the value network on td['next']."
        after = batch.step(("next", "state_value"), hint=hint)
        target = one_step_target(batch, after.detach(), gamma)
    return ensemble_loss(batch, distance, value, target, reduction)
