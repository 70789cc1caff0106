"""Policy gradients: raise the probability of an action by its advantage.

Symbols: pi(a_t|s_t) is the policy, A_t the advantage (``advantage``), G_t the value's target
(``value_target``), V the value (``state_value``), H the entropy. The reducers read a td ``[*B, T]``
that holds the outputs of networks.

Two roads to A_t and G_t. Put into the td beforehand (``add_advantage``), nothing is detached: they
are as much a function of parameters and hyper-parameters as they were made to be. Else the reducer
makes them from ``gamma`` and ``lmbda``, with a full stop on the values.
"""

from collections.abc import Callable

from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from .distributions import DistClass, action_log_prob, entropy, make_distribution
from .estimators import stopped_advantage
from .value import squared_error


def policy_gradient_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    entropy_coeff: float | Tensor = 0.0,
    reduction: str = "mean",
) -> TensorDictBase:
    """Policy gradient, with an entropy bonus.

        loss_objective = -log pi(a_t|s_t) A_t
        loss_entropy = -entropy_coeff H(pi(.|s_t))

    Detaches nothing where the td holds ``advantage``. Where it does not, the advantage is made from
    ``gamma`` and ``lmbda`` as in ``a2c_loss``, with the same full stop.

    Args:
        td: ``[*B, T]`` with the policy's parameters (see ``distribution``), ``action`` and
            ``advantage``, or instead of that what ``add_advantage`` reads; optionally ``mask`` and
            ``weight``.
        dist_class: callable from the parameters to a distribution.
        gamma: discount, only for a td without ``advantage``.
        lmbda: decay of the trace, likewise.
        entropy_coeff: weight of the entropy; float or tensor, 0-d or ``[*B, T]``. An entry of the
            td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_objective``, ``loss_entropy``, and detached ``entropy``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` or ``lmbda`` stands beside an
            ``advantage``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Williams (1992); Sutton et al. (2000), theorem 1.
    """
    batch = Batch("policy_gradient_loss", td)
    if batch.finished(("advantage",), gamma=gamma, lmbda=lmbda):
        advantage = batch.step("advantage")
    else:
        advantage, _ = stopped_advantage(batch, gamma, lmbda)
    losses, metrics = _policy_terms(batch, dist_class, advantage, entropy_coeff)
    return batch.reduced(reduction, losses, metrics)


def a2c_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    critic_coeff: float | Tensor = 0.5,
    entropy_coeff: float | Tensor = 0.01,
    distance: Callable[[Tensor, Tensor], Tensor] = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """Advantage actor-critic.

        loss_objective = -log pi(a_t|s_t) A_t
        loss_critic = critic_coeff distance(V(s_t), G_t), by default (V(s_t) - G_t)^2, without 1/2
        loss_entropy = -entropy_coeff H(pi(.|s_t))

    Detaches nothing where the td holds ``advantage`` and ``value_target``: put there by
    ``add_advantage`` outside of the differentiated function they are constant for its gradient, and
    right for an outer one.

    Where the td holds neither, they are made here from ``gamma`` and ``lmbda``, with a **full
    stop** on ``state_value`` and ``("next", "state_value")`` as far as they enter A_t and G_t;
    gamma and lmbda get their gradients. That is exact for one inner step. Over several, the outer
    gradient lacks the way on which earlier
    updates moved those values: make the targets outside then.

    Args:
        td: ``[*B, T]`` with the policy's parameters (see ``distribution``), ``action``,
            ``state_value``, ``advantage`` and ``value_target``, or instead of the last two what
            ``add_advantage`` reads; optionally ``mask`` and ``weight``. An entry ``gamma`` or
            ``lmbda`` beside a finished ``advantage`` is taken for the one that it was made with; it
            raises if it requires grad and the advantage does not.
        dist_class: callable from the parameters to a distribution.
        gamma: discount, in [0, 1], only for a td without ``advantage``; float or tensor, 0-d or
            ``[*B, T]``. An entry of the td wins.
        lmbda: decay of the trace, in [0, 1]; likewise.
        critic_coeff: weight of the critic's loss; float or tensor, 0-d or ``[*B, T]``. An entry of
            the td wins.
        entropy_coeff: weight of the entropy; likewise.
        distance: elementwise function of the value and its target.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_objective``, ``loss_critic``, ``loss_entropy``, and detached ``entropy``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` or ``lmbda`` stands beside an
            ``advantage``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Mnih et al. (2016), "Asynchronous methods for deep reinforcement learning", section 4.
    """
    batch = Batch("a2c_loss", td)
    value = batch.step("state_value")
    if batch.finished(("advantage", "value_target"), gamma=gamma, lmbda=lmbda):
        advantage, target = batch.step("advantage"), batch.step("value_target")
    else:
        advantage, target = stopped_advantage(batch, gamma, lmbda)
    losses, metrics = _policy_terms(batch, dist_class, advantage, entropy_coeff)
    error = distance(value, target)
    if error.shape != value.shape:
        batch.wrong_shape("distance's result", error, f"{list(value.shape)}, one number per step")
    losses["loss_critic"] = batch.hyper("critic_coeff", critic_coeff) * error
    return batch.reduced(reduction, losses, metrics)


def _policy_terms(
    batch: Batch, dist_class: DistClass, advantage: Tensor, entropy_coeff: float | Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    dist = make_distribution(batch, dist_class)
    policy_entropy = entropy(batch, dist)
    losses = {
        "loss_objective": -action_log_prob(batch, dist) * advantage,
        "loss_entropy": -batch.hyper("entropy_coeff", entropy_coeff) * policy_entropy,
    }
    return losses, {"entropy": policy_entropy}
