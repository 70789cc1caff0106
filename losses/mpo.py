"""Maximum a posteriori policy optimization: an E-step that weighs actions, an M-step that fits.

Symbols: eta is the temperature, epsilon its bound, Q(s, a_s) the value of one of S actions that the
target policy proposed in a state (``action_value_samples``, ``[*B, S]``), pi(a_s|s) the policy that
learns (``action_log_prob_samples``), A_t the advantage, w the weights of the E-step
(``policy_weight``). A constraint KL <= epsilon on the policy's change has a multiplier alpha.

Two sets of parameters descend on two losses. The policy's are those of ``mpo_loss`` and
``vmpo_loss``; temperature and multipliers are those of ``mpo_dual_loss`` and ``vmpo_dual_loss``.
rlax has both in one loss and keeps the sets apart with stops, which cut outer derivatives too; here
each loss is differentiated in its own set, and the sums of both are equal:

    policy   grad of total(mpo_loss(outputs(policy, td), ...))
    dual     grad of total(mpo_dual_loss(td, **dual, ...))

Temperature and multipliers must be positive, such as ``torch.nn.functional.softplus(raw)`` (rlax's
projection); the KLs come from the caller, per step ``[*B]`` or, for a bound on each component
(decoupled mean and deviation, say), ``[*B, D]``.
"""

from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from ._check import missing
from ._numbers import times
from .distributions import DistClass, action_log_prob, make_distribution
from .e_step import mpo_temperature_dual as mpo_temperature_dual
from .e_step import mpo_weights as mpo_weights
from .e_step import vmpo_temperature_dual as vmpo_temperature_dual
from .e_step import vmpo_weights as vmpo_weights
from .imitation import sampled_cross_entropy
from .lagrange import Constraints, duals, penalties
from .lagrange import LagrangePenalty as LagrangePenalty
from .lagrange import lagrange_dual as lagrange_dual
from .lagrange import lagrange_penalty as lagrange_penalty

# ---- estimators


def add_mpo_weight(td: TensorDictBase, temperature: float | Tensor | None = None) -> TensorDictBase:
    """Adds the weights of MPO's E-step.

        policy_weight_s = mpo_weights(Q(s_t, .), eta)_s

    Detaches nothing.

    Args:
        td: ``[*B]`` with ``action_value_samples`` ``[*B, S]``.
        temperature: above 0; float or tensor, 0-d or ``[*B]``. An entry of the td wins.

    Returns:
        A new td with ``policy_weight``, ``[*B, S]``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or the temperature is not above 0.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Abdolmaleki et al. (2018), section 4.2.
    """
    batch = Batch("add_mpo_weight", td)
    weight = mpo_weights(batch.vector("action_value_samples"), _temperature(batch, temperature))
    return batch.added(policy_weight=weight)


def add_vmpo_weight(
    td: TensorDictBase, temperature: float | Tensor | None = None, *, top_k_fraction: float = 0.5
) -> TensorDictBase:
    """Adds the weights of V-MPO's E-step: ``vmpo_weights`` times the number of steps.

        policy_weight_t = N vmpo_weights(A, eta)_t    of N steps

    Their mean over the td, or over its mask, is 1. Detaches nothing.

    Args:
        td: ``[*B]`` with ``advantage``; optionally ``importance_weight`` and ``mask``.
        temperature: above 0; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        top_k_fraction: share of the steps that get a weight, in (0, 1].

    Returns:
        A new td with ``policy_weight``, ``[*B]``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or a hyper-parameter is out of range.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Song et al. (2020), section 4.
    """
    batch = Batch("add_vmpo_weight", td)
    return batch.extended({"policy_weight": _step_weight(batch, temperature, top_k_fraction)})


# ---- reducers


def mpo_loss(
    td: TensorDictBase,
    *,
    temperature: float | Tensor | None = None,
    constraints: Constraints | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """MPO's M-step: fit the policy to the weighted actions, within bounds on its change.

        loss_actor = -sum_s w_s log pi(a_s|s_t)
        loss_kl = sum over constraints of alpha KL

    Detaches nothing where the td holds ``policy_weight``. Where it does not, the weights are made
    here, with a **full stop** on ``action_value_samples``, as the paper's E-step holds them fixed;
    the temperature gets its gradient. That is exact for one inner step.

    It is differentiated in the policy's parameters; see ``mpo_dual_loss`` for the others.

    Args:
        td: ``[*B]`` with ``action_log_prob_samples`` ``[*B, S]`` of actions that the target policy
            proposed, ``policy_weight`` ``[*B, S]`` or instead of it ``action_value_samples``
            ``[*B, S]``, and the KLs of the constraints; optionally ``mask`` and ``weight``.
        temperature: eta, above 0, only for a td without ``policy_weight``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        constraints: what is bounded: names of entries, with a ``LagrangePenalty`` each. An entry is
            ``[*B]``, or ``[*B, D]`` with ``per_dimension``.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_actor``, and with constraints ``loss_kl``.

    Raises:
        ValueError: a key is missing, a shape is wrong, a hyper-parameter is out of range, or the
            temperature stands beside a ``policy_weight``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Abdolmaleki et al. (2018), "Maximum a posteriori policy optimisation", section 4.
    """
    batch = Batch("mpo_loss", td)
    log_prob = batch.vector("action_log_prob_samples")
    samples, source = log_prob.shape[-1], "action_log_prob_samples"
    if batch.finished(("policy_weight",), temperature=temperature):
        weight = batch.vector("policy_weight", samples, source)
    else:
        eta = _temperature(batch, temperature, "policy_weight")
        value = batch.vector("action_value_samples", samples, source)
        weight = mpo_weights(value.detach(), eta)
    losses = {"loss_actor": sampled_cross_entropy(log_prob, weight)}
    return batch.reduced(reduction, losses | penalties(batch, constraints))


def mpo_dual_loss(
    td: TensorDictBase,
    *,
    temperature: float | Tensor = 1.0,
    epsilon: float | Tensor = 0.1,
    constraints: Constraints | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """What MPO's temperature and multipliers descend on.

        loss_temperature = eta (epsilon + log 1/S sum_s exp(Q(s_t, a_s) / eta))
        loss_alpha = sum over constraints of alpha (epsilon - KL)

    Detaches nothing: it is differentiated in temperature and multipliers, and its entries are to be
    made with the parameters of policy and critic held.

    Args:
        td: ``[*B]`` with ``action_value_samples`` ``[*B, S]`` and the KLs of the constraints;
            optionally ``mask`` and ``weight``.
        temperature: eta, above 0; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        epsilon: bound of the E-step on the KL of the weights from equal ones, at least 0; likewise.
        constraints: as for ``mpo_loss``.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_temperature``, and with constraints ``loss_alpha``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or a hyper-parameter is out of range.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Abdolmaleki et al. (2018), "Maximum a posteriori policy optimisation", section 4.
    """
    batch = Batch("mpo_dual_loss", td)
    value = batch.vector("action_value_samples")
    eta, bound = _temperature(batch, temperature), batch.hyper("epsilon", epsilon, 0.0)
    losses = {"loss_temperature": mpo_temperature_dual(value, eta, bound)}
    return batch.reduced(reduction, losses | duals(batch, constraints))


def vmpo_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    temperature: float | Tensor | None = None,
    top_k_fraction: float = 0.5,
    constraints: Constraints | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """V-MPO's M-step: fit the policy to the better actions of a batch, within bounds on its change.

        loss_actor = -N w_t log pi(a_t|s_t),    with w as in ``vmpo_weights`` and N steps
        loss_kl = sum over constraints of alpha KL

    The mean over the td is the paper's sum over its steps. Detaches nothing: the weights are
    functions of the ``advantage``, which is finished, and of the temperature; or they are finished
    themselves, ``policy_weight`` by ``add_vmpo_weight``. rlax stops at the weights; and it leaves
    its restarting steps, here those outside of the ``mask``, in the mean of the constraints.

    It is differentiated in the policy's parameters; see ``vmpo_dual_loss`` for the others.

    Args:
        td: ``[*B]`` with the policy's parameters (see ``distribution``), ``action``,
            ``policy_weight`` or instead of it ``advantage`` and optionally ``importance_weight``,
            and the KLs of the constraints; optionally ``mask`` and ``weight``.
        dist_class: callable from the parameters to a distribution.
        temperature: eta, above 0, only for a td without ``policy_weight``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        top_k_fraction: share of the steps that get a weight, in (0, 1]; likewise only there.
        constraints: as for ``mpo_loss``.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_actor``, and with constraints ``loss_kl``.

    Raises:
        ValueError: a key is missing, a shape is wrong, a hyper-parameter is out of range, or the
            temperature stands beside a ``policy_weight``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Song et al. (2020), "V-MPO", section 4.
    """
    batch = Batch("vmpo_loss", td)
    log_prob = action_log_prob(batch, make_distribution(batch, dist_class))
    if batch.finished(("policy_weight",), temperature=temperature):
        weight = batch.step("policy_weight")
    else:
        weight = _step_weight(batch, temperature, top_k_fraction, "policy_weight")
    losses = {"loss_actor": times(weight, -log_prob)}
    return batch.reduced(reduction, losses | penalties(batch, constraints))


def vmpo_dual_loss(
    td: TensorDictBase,
    *,
    temperature: float | Tensor = 1.0,
    epsilon: float | Tensor = 0.1,
    top_k_fraction: float = 0.5,
    constraints: Constraints | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """What V-MPO's temperature and multipliers descend on.

        loss_temperature = eta (epsilon + log 1/k sum_t rho_t exp(A_t / eta))    over the top k
        loss_alpha = sum over constraints of alpha (epsilon - KL)

    The first is one number for the whole td, and each step's loss. Detaches nothing: it is
    differentiated in temperature and multipliers, and its entries are to be made with the
    parameters of policy and critic held.

    Args:
        td: ``[*B]`` with ``advantage`` and the KLs of the constraints; optionally
            ``importance_weight``, ``mask`` and ``weight``.
        temperature: eta, above 0; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        epsilon: bound of the E-step on the KL of the weights from equal ones, at least 0; likewise.
        top_k_fraction: share of the steps that get a weight, in (0, 1].
        constraints: as for ``mpo_loss``.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_temperature``, and with constraints ``loss_alpha``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or a hyper-parameter is out of range.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Song et al. (2020), "V-MPO", section 4.
    """
    batch = Batch("vmpo_dual_loss", td)
    advantage, eta = batch.step("advantage"), _temperature(batch, temperature)
    bound, ratio = batch.hyper("epsilon", epsilon, 0.0), _importance(batch)
    dual = vmpo_temperature_dual(advantage, eta, bound, top_k_fraction, ratio, batch.mask)
    losses = {"loss_temperature": dual.expand(batch.shape)}
    return batch.reduced(reduction, losses | duals(batch, constraints))


# ---- private


def _step_weight(
    batch: Batch, temperature: float | Tensor | None, top_k_fraction: float, target: str = ""
) -> Tensor:
    """Weights of V-MPO whose mean over the steps that count is 1, ``[*B]``."""
    eta = _temperature(batch, temperature, target)
    args = (batch.step("advantage"), eta, top_k_fraction, _importance(batch), batch.mask)
    weight = vmpo_weights(*args)
    return weight * batch.steps()


def _importance(batch: Batch) -> Tensor | None:
    return batch.step("importance_weight") if batch.has("importance_weight") else None


def _temperature(batch: Batch, temperature: float | Tensor | None, target: str = "") -> Any:
    """The temperature of a td, above 0; where it is to make a target, that may be there instead."""
    if target and temperature is None and not batch.has("temperature"):
        estimator = f"add_{batch.function.removesuffix('_loss')}_weight"
        hint = f"Put it there with {estimator}, or give a temperature."
        raise missing(batch.function, batch.td, target, hint)
    return batch.positive("temperature", temperature)
