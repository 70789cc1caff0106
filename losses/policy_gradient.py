"""Policy gradients: raise the probability of an action by its advantage.

Symbols: pi(a_t|s_t) is the policy, A_t the advantage (``advantage``), G_t the value's target
(``value_target``), V the value (``state_value``), H the entropy. The reducers read a td ``[*B, T]``
that holds the outputs of networks.

Two roads to A_t and G_t. Put into the td beforehand (``add_advantage``), nothing is detached: they
are as much a function of parameters and hyper-parameters as they were made to be. Else the reducer
makes them from ``gamma`` and ``lmbda``, with a full stop on the values.
"""

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from ._check import check_float
from ._critics import Distance
from .distances import squared_error
from .distributions import (
    DistClass,
    action_log_prob,
    entropy,
    entropy_bonus,
    make_distribution,
)
from .estimators import stopped_advantage
from .regret import add_action_advantage as add_action_advantage
from .regret import qpg_loss as qpg_loss
from .regret import rm_loss as rm_loss
from .regret import rpg_loss as rpg_loss
from .returns import reverse_linear
from .value import critic_error


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
            td wins. With the number 0 a distribution without an entropy will do.
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


def reinforce_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    critic_coeff: float | Tensor = 1.0,
    value_clip: float | Tensor | None = None,
    distance: Distance = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """REINFORCE with a baseline that is learned.

        loss_objective = -log pi(a_t|s_t) A_t
        loss_critic = critic_coeff distance(V(s_t), G_t), by default (V(s_t) - G_t)^2, without 1/2

    ``a2c_loss`` without its entropy, with the same stops: none where the td holds ``advantage`` and
    ``value_target``, else a **full stop** on the values that enter A_t and G_t. A_t is the return
    after a_t less V(s_t) where they are made with a ``lmbda`` of 1. Without a critic this is
    ``policy_gradient_loss``.

    Unlike TorchRL's ReinforceLoss: an ``advantage`` that the td holds is not detached; the keys are
    ``a2c_loss``'s where TorchRL says loss_actor and loss_value; the error is squared, not
    smooth-L1 (give ``distance``).

    Args:
        td: ``[*B, T]`` as for ``a2c_loss``.
        dist_class: callable from the parameters to a distribution.
        gamma: discount, in [0, 1], only for a td without ``advantage``; float or tensor, 0-d or
            ``[*B, T]``. An entry of the td wins, as for all of these.
        lmbda: decay of the trace, in [0, 1]; likewise.
        critic_coeff: weight of the critic's loss; float or tensor, 0-d or ``[*B, T]``.
        value_clip: how far V may move from its value before, at least 0; likewise. None: any way.
        distance: elementwise function of the value and its target.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_objective``, ``loss_critic``, and with ``value_clip`` detached
        ``value_clip_fraction``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` or ``lmbda`` stands beside an
            ``advantage``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Williams (1992), section 5; Sutton & Barto (2018), section 13.4.
    """
    batch = Batch("reinforce_loss", td)
    value = batch.step("state_value")
    advantage, target = _targets(batch, gamma, lmbda)
    log_prob = action_log_prob(batch, make_distribution(batch, dist_class))
    error, metrics = critic_error(batch, value, target, value_clip, distance)
    losses = {
        "loss_objective": -log_prob * advantage,
        "loss_critic": batch.hyper("critic_coeff", critic_coeff) * error,
    }
    return batch.reduced(reduction, losses, metrics)


def a2c_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    critic_coeff: float | Tensor = 0.5,
    entropy_coeff: float | Tensor = 0.01,
    value_clip: float | Tensor | None = None,
    distance: Distance = squared_error,
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
    gradient lacks the way on which earlier updates moved those values: make the targets outside
    then.

    With ``value_clip`` c the critic's error is the larger of that and the same with V(s_t) held
    within c of the value from before, ``("behavior", "state_value")``.

    Unlike TorchRL's A2CLoss: the error is squared, not smooth-L1, and weighs 1/2, not 1 (give
    ``distance`` and ``critic_coeff``); with a ``value_clip`` the value from before has a key of its
    own, where TorchRL takes the td's ``state_value`` for it.

    Args:
        td: ``[*B, T]`` with the policy's parameters (see ``distribution``), ``action``,
            ``state_value``, ``advantage`` and ``value_target``, or instead of the last two what
            ``add_advantage`` reads; optionally ``mask`` and ``weight``. An entry ``gamma`` or
            ``lmbda`` beside a finished ``advantage`` is taken for the one that it was made with; it
            raises if it requires grad and the advantage does not.
        dist_class: callable from the parameters to a distribution.
        gamma: discount, in [0, 1], only for a td without ``advantage``; float or tensor, 0-d or
            ``[*B, T]``. An entry of the td wins, as for all of these.
        lmbda: decay of the trace, in [0, 1]; likewise.
        critic_coeff: weight of the critic's loss; float or tensor, 0-d or ``[*B, T]``.
        entropy_coeff: weight of the entropy; likewise. With the number 0 a distribution without an
            entropy will do.
        value_clip: how far V may move from its value before, at least 0; likewise. None: any way.
        distance: elementwise function of the value and its target.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_objective``, ``loss_critic``, ``loss_entropy``, and detached ``entropy``, and with
        ``value_clip`` detached ``value_clip_fraction``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` or ``lmbda`` stands beside an
            ``advantage``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Mnih et al. (2016), "Asynchronous methods for deep reinforcement learning", section 4.
    """
    batch = Batch("a2c_loss", td)
    value = batch.step("state_value")
    advantage, target = _targets(batch, gamma, lmbda)
    losses, metrics = _policy_terms(batch, dist_class, advantage, entropy_coeff)
    error, clipping = critic_error(batch, value, target, value_clip, distance)
    losses["loss_critic"] = batch.hyper("critic_coeff", critic_coeff) * error
    return batch.reduced(reduction, losses, {**metrics, **clipping})


def entropy_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    entropy_coeff: float | Tensor = 1.0,
    reduction: str = "mean",
) -> TensorDictBase:
    """The entropy of the policy, to be raised.

        loss_entropy = -entropy_coeff H(pi(.|s_t))

    Detaches nothing. The weights w_t of rlax's ``entropy_loss``, whose mean is over all steps, are
    an ``entropy_coeff`` per step here; the td's ``weight`` makes a weighted mean.

    Args:
        td: ``[*B]`` with the policy's parameters (see ``distribution``); optionally ``mask`` and
            ``weight``.
        dist_class: callable from the parameters to a distribution.
        entropy_coeff: weight of the entropy; float or tensor, 0-d or ``[*B]``. An entry of the td
            wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_entropy``, and detached ``entropy``.

    Raises:
        ValueError: the td lacks the parameters, a shape is wrong, or the distribution has no
            entropy.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Williams & Peng (1991), "Function optimization using connectionist reinforcement
    learning algorithms".
    """
    batch = Batch("entropy_loss", td)
    value = entropy(batch, make_distribution(batch, dist_class))
    loss = -batch.hyper("entropy_coeff", entropy_coeff) * value
    return batch.reduced(reduction, {"loss_entropy": loss}, {"entropy": value})


def magic_box(log_prob: Tensor) -> Tensor:
    """The number 1, with the derivatives of the probability of what was sampled.

        box(x) = exp(x - stop(x))

    Its derivatives of any order, averaged over samples, are those of the sampling itself; the stop
    is a full one, and what makes it so.

    Args:
        log_prob: ``[...]`` float, the sum of the log-probabilities of all that was sampled and that
            a cost depends on.

    Returns:
        Ones, ``[...]``.

    Raises:
        TypeError: the argument is not floating-point.

    Source: Foerster et al. (2018), "DiCE: the infinitely differentiable Monte Carlo estimator",
    section 3.
    """
    check_float("magic_box", "log_prob", log_prob)
    return (log_prob - log_prob.detach()).exp()


def dice_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    gamma: float | Tensor | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """DiCE: a policy gradient whose derivatives of any order are those of the expected return.

        loss_objective = -d_t [box(l_0 + ... + l_t) r_t + (1 - box(l_t)) b_t]
        l_t = log pi(a_t|s_t)

    with box of ``magic_box``, d_t the product of the discounts before step t, sum and product from
    the start of the step's episode on, and V(s_t) as baseline b_t where the td holds
    ``state_value``, else 0. Its value is that of the discounted reward; the second term's is 0. The
    return ends with its episode or the td, without a bootstrap.

    With several agents (LOLA) the action is nested and ``dist_class`` a ``joint`` of the agents:
    each one's loss is this one with its own reward, differentiated in its own parameters, and the
    look-ahead differentiates another's update. Detaches nothing but what ``magic_box`` does, so
    derivatives of a derivative are not those of this sample, but of the expectation over samples.

    The mean is over steps; the published code's, of a sum over time, is T times that.

    Args:
        td: ``[*B, T]``, time last or named "time", with the policy's parameters (see
            ``distribution``), ``action``, ``("next", "reward")`` and ``("next", "done")``;
            optionally ``state_value``, ``mask`` (a step before one that is left out ends its
            episode) and ``weight``.
        dist_class: callable from the parameters to a distribution.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B, T]``. An entry of the td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_objective``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or gamma is given nowhere or out of its
            range.
        TypeError: an entry or gamma has the wrong dtype.

    Source: Foerster et al. (2018), equations 7 and 10; Foerster et al. (2018), "Learning with
    opponent-learning awareness", for its use.
    """
    batch = Batch("dice_loss", td)
    time = batch.time()
    log_prob = action_log_prob(batch, make_distribution(batch, dist_class))
    log_prob = batch.filled(log_prob, 0.0).movedim(time, 0)  # [T, *B]
    goes_on = ~batch.flag(("next", "done"))
    goes_on = (goes_on if batch.mask is None else goes_on & batch.mask).movedim(time, 0)
    inside = torch.cat([torch.zeros_like(goes_on[:1]), goes_on[:-1]]).to(log_prob.dtype)
    discount = batch.hyper("gamma", gamma, 0.0, 1.0)
    if isinstance(discount, Tensor) and discount.dim():  # [T, *B]: of the step before
        discount = discount.movedim(time, 0).roll(1, 0)
    past = _forward(inside, log_prob)
    weight = _forward(discount * inside, 1 - inside)
    objective = magic_box(past) * batch.step(("next", "reward")).movedim(time, 0)
    if batch.has("state_value"):
        baseline = batch.step("state_value").movedim(time, 0)
        objective = objective + (1 - magic_box(log_prob)) * baseline
    loss = -(weight * objective).movedim(0, time)
    return batch.reduced(reduction, {"loss_objective": loss})


# ---- private


def _targets(
    batch: Batch, gamma: float | Tensor | None, lmbda: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """Advantage and value target: the td's own, or made here with a full stop."""
    if batch.finished(("advantage", "value_target"), gamma=gamma, lmbda=lmbda):
        return batch.step("advantage"), batch.step("value_target")
    return stopped_advantage(batch, gamma, lmbda)


def _policy_terms(
    batch: Batch, dist_class: DistClass, advantage: Tensor, entropy_coeff: float | Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    dist = make_distribution(batch, dist_class)
    log_prob = action_log_prob(batch, dist)
    losses, metrics = entropy_bonus(batch, dist, entropy_coeff, log_prob)
    return {"loss_objective": -log_prob * advantage, **losses}, metrics


def _forward(a: Tensor, b: Tensor) -> Tensor:
    """The recurrence x_t = a_t x_{t-1} + b_t, from 0 on."""
    return reverse_linear(a.flip(0), b.flip(0), 0.0).flip(0)
