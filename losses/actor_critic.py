"""Deterministic actor-critic: the policy follows the slope of Q in the action.

Symbols: mu(s) is the policy's action, Q_i(s, a) the value of an action by critic i of N, Q'_i and
mu' the target networks. The reducers read a td ``[*B]`` or ``[*B, T]`` of their outputs:

    state_action_value          [*B] or [*B, N]  Q_i(s_t, a_t) of the action that was taken
    next.state_action_value     [*B] or [*B, N]  Q'_i(s_{t+1}, a'), a' from the target policy
    state_action_value_actor    [*B] or [*B, N]  Q_i(s_t, mu(s_t)), the critics' parameters held
    steps_to_next_obs           [*B] int         n: ``next`` lies n steps ahead, its reward is the
                                                 sum of n discounted ones; 1 where there is no entry

Two roads to what a critic is to say. Put into the td beforehand as ``value_target``
(``add_min_target``, outside of the differentiated function), nothing is detached. Else the reducer
makes it from ``gamma``, with a full stop on what it reads of ``next``: exact for one inner step.
What stands in ``next`` of a terminated step is without influence and without gradient, NaN
included; ``done`` is not read, for a one-step target bootstraps where an episode is cut off.
"""

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._check import check_alike, check_hyper, check_order
from ._critics import (
    NEXT_VALUE,
    Distance,
    critic_metrics,
    distances,
    ensemble_loss,
    finished_target,
    next_members,
    one_step_target,
)
from ._numbers import bounded
from .discrete_sac import add_expected_soft_target as add_expected_soft_target
from .discrete_sac import discrete_sac_actor_loss as discrete_sac_actor_loss
from .discrete_sac import discrete_sac_critic_loss as discrete_sac_critic_loss
from .discrete_sac import discrete_sac_temperature_loss as discrete_sac_temperature_loss
from .distances import squared_error
from .soft_actor_critic import add_soft_target as add_soft_target
from .soft_actor_critic import crossq_critic_loss as crossq_critic_loss
from .soft_actor_critic import redq_actor_loss as redq_actor_loss
from .soft_actor_critic import redq_critic_loss as redq_critic_loss
from .soft_actor_critic import sac_actor_loss as sac_actor_loss
from .soft_actor_critic import sac_critic_loss as sac_critic_loss
from .soft_actor_critic import sac_value_loss as sac_value_loss
from .temperature import bounded_log_alpha as bounded_log_alpha
from .temperature import sac_temperature_loss as sac_temperature_loss
from .truncated_quantile import add_truncated_quantile_target as add_truncated_quantile_target
from .truncated_quantile import tqc_actor_loss as tqc_actor_loss
from .truncated_quantile import tqc_critic_loss as tqc_critic_loss

# ---- deterministic policy gradient


def deterministic_policy_gradient_loss(
    td: TensorDictBase,
    *,
    dqda_clipping: float | Tensor | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """Deterministic policy gradient, as a distance to a better action.

        loss_actor = 1/2 sum_d (target - mu(s_t))_d^2,    target = mu(s_t) + clip(dQ/da)

    Its slope in mu(s_t) is -clip(dQ/da). Detaches nothing where the td holds ``action_target``,
    which ``add_action_target`` writes. Where it does not, the target is made here with a **full
    stop** on ``action_actor`` and ``action_gradient``; the clipping gets its gradient. That is
    exact for one inner step.

    Against rlax's ``dpg_loss``, which leaves the components of an action apart, they are summed.

    Args:
        td: ``[*B]`` with ``action_actor``, mu(s_t), ``[*B, D]`` float, and ``action_target``
            ``[*B, D]`` or instead of that ``action_gradient``, dQ/da at mu(s_t), ``[*B, D]``;
            optionally ``mask`` and ``weight``.
        dqda_clipping: largest norm (L2) of dQ/da, at least 0, only for a td without
            ``action_target``; float or tensor, 0-d or ``[*B]``. An entry of the td wins. None
            leaves dQ/da as it is.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_actor``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``dqda_clipping`` stands beside an
            ``action_target``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Silver et al. (2014), "Deterministic policy gradient algorithms", equation 9.
    """
    batch = Batch("deterministic_policy_gradient_loss", td)
    action = batch.vector("action_actor")
    if batch.finished(("action_target",), dqda_clipping=dqda_clipping):
        target = batch.vector("action_target", action.shape[-1], "action_actor")
    else:
        slope = _slope(batch, action).detach()
        target = _better_action(batch, action.detach(), slope, dqda_clipping)
    return batch.reduced(reduction, {"loss_actor": 0.5 * (target - action).square().sum(-1)})


def add_action_target(
    td: TensorDictBase, dqda_clipping: float | Tensor | None = None
) -> TensorDictBase:
    """Adds the actions that the deterministic policy gradient moves the policy to.

        action_target_t = mu(s_t) + g min(1, c / |g|),    g = dQ/da at mu(s_t)

    Detaches nothing.

    Args:
        td: ``[*B]`` with ``action_actor``, mu(s_t), and ``action_gradient``, g, ``[*B, D]`` float;
            optionally ``mask``.
        dqda_clipping: c, at least 0; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
            None leaves g as it is.

    Returns:
        A new td with ``action_target``, ``[*B, D]``.

    Raises:
        ValueError: a key is missing or a shape is wrong.
        TypeError: an entry or the clipping has the wrong dtype.

    Source: Silver et al. (2014), equation 9.
    """
    batch = Batch("add_action_target", td)
    action = batch.vector("action_actor")
    target = _better_action(batch, action, _slope(batch, action), dqda_clipping)
    return batch.extended({"action_target": target})


# ---- DDPG


def ddpg_actor_loss(td: TensorDictBase, *, reduction: str = "mean") -> TensorDictBase:
    """DDPG's policy: raise the value of the policy's action.

        loss_actor = -Q(s_t, mu(s_t))

    Detaches nothing: make the entry with the critic's parameters held (or differentiate for the
    policy's alone), or the critic is raised too.

    Args:
        td: ``[*B]`` with ``state_action_value_actor`` ``[*B]`` float; optionally ``mask`` and
            ``weight``.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_actor``.

    Raises:
        ValueError: the key is missing or its shape is wrong.
        TypeError: the entry has the wrong dtype.

    Source: Lillicrap et al. (2016), "Continuous control with deep reinforcement learning",
    equation 6.
    """
    batch = Batch("ddpg_actor_loss", td)
    return batch.reduced(reduction, {"loss_actor": -batch.step("state_action_value_actor")})


def ddpg_critic_loss(
    td: TensorDictBase,
    *,
    gamma: float | Tensor | None = None,
    distance: Distance = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """DDPG's critic: one-step temporal differences.

        loss_critic = distance(Q(s_t, a_t), y_t), by default (Q(s_t, a_t) - y_t)^2, without 1/2
        y_t = r_t + gamma^n (1 - terminated_t) Q'(s_{t+1}, mu'(s_{t+1}))

    Detaches nothing where the td holds ``value_target``. Where it does not, y_t is made from
    ``gamma`` with a **full stop** on ``("next", "state_action_value")``; gamma gets its gradient.
    That is exact for one inner step; for several put the targets there with ``add_min_target``.

    Args:
        td: ``[*B]`` with ``state_action_value`` and ``value_target``, ``[*B]`` float, or instead of
            the latter ``("next", "state_action_value")``, ``("next", "reward")`` float and
            ``("next", "terminated")`` bool; optionally ``steps_to_next_obs``, ``mask`` and
            ``weight``.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        distance: elementwise function of the value and its target.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error`` |Q - y| (TorchRL's is its square),
        ``pred_value``, ``target_value``, ``pred_value_max`` and ``target_value_max``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` stands beside a
            ``value_target``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Lillicrap et al. (2016), equation 5.
    """
    batch = Batch("ddpg_critic_loss", td)
    value = batch.step("state_action_value")
    if finished_target(batch, "add_min_target", gamma=gamma):
        target = batch.step("value_target")
    else:
        after = batch.step(("next", "state_action_value"), hint=NEXT_VALUE)
        target = one_step_target(batch, after.detach(), gamma)
    losses = {"loss_critic": distances(batch.function, distance, value, target)}
    metrics = critic_metrics(value, target)
    most = {f"{key}_max": _greatest(batch, metrics[key]) for key in ("pred_value", "target_value")}
    return batch.reduced(reduction, losses, metrics, most)


# ---- TD3


def td3_target_action(
    action: Tensor,
    noise: Tensor,
    low: float | Tensor,
    high: float | Tensor,
    *,
    sigma: float | Tensor = 0.2,
    noise_clip: float | Tensor = 0.5,
) -> Tensor:
    """Smoothed action of the target policy.

        a' = clip(mu'(s') + clip(sigma noise, -noise_clip, noise_clip), low, high)

    Draws nothing: the noise is an argument. At a bound the gradient is the inner one's.

    Args:
        action: mu'(s'), ``[..., D]`` float.
        noise: standard normal numbers, of the action's shape.
        low: smallest action; float, or a tensor that broadcasts to the action's shape.
        high: largest action; likewise.
        sigma: deviation of the noise, at least 0; likewise.
        noise_clip: largest size of the noise, at least 0; likewise.

    Returns:
        a', of the action's shape, differentiable in every argument.

    Raises:
        ValueError: the shapes differ, a bound does not broadcast, or a float is out of its range.
        TypeError: an argument is not floating-point.

    Source: Fujimoto et al. (2018), "Addressing function approximation error in actor-critic
    methods", section 5.3.
    """
    name = "td3_target_action"
    shape = check_alike(name, {"action": action, "noise": noise})
    ranges = {"low": -math.inf, "high": -math.inf, "sigma": 0.0, "noise_clip": 0.0}
    for key, value in zip(ranges, (low, high, sigma, noise_clip), strict=True):
        check_hyper(name, key, value, shape, "action", ranges[key])
    check_order(name, low, high)
    noise = bounded(sigma * noise, -noise_clip, noise_clip)
    return bounded(action + noise, low, high).to(action.dtype)


def td3_actor_loss(td: TensorDictBase, *, reduction: str = "mean") -> TensorDictBase:
    """TD3's policy: raise the value of the policy's action by the first critic.

        loss_actor = -Q_0(s_t, mu(s_t))

    Detaches nothing: make the entry with the critics' parameters held (or differentiate for the
    policy's alone). That the policy is updated less often than the critics is the caller's matter.

    Args:
        td: ``[*B]`` with ``state_action_value_actor`` ``[*B, N]`` or ``[*B]`` float; optionally
            ``mask`` and ``weight``.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_actor``.

    Raises:
        ValueError: the key is missing or its shape is wrong.
        TypeError: the entry has the wrong dtype.

    Source: Fujimoto et al. (2018), algorithm 1.
    """
    batch = Batch("td3_actor_loss", td)
    value = batch.members("state_action_value_actor")[..., 0]
    return batch.reduced(reduction, {"loss_actor": -value})


def td3_critic_loss(
    td: TensorDictBase,
    *,
    gamma: float | Tensor | None = None,
    distance: Distance = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """TD3's critics: each learns from the least of the target critics.

        loss_critic = sum_i distance(Q_i(s_t, a_t), y_t), by default squares, without 1/2
        y_t = r_t + gamma^n (1 - terminated_t) min_i Q'_i(s_{t+1}, a')

    with a' from ``td3_target_action``. Where critics tie, the gradient of the minimum is shared
    equally among them (TorchRL's goes to one). TorchRL's default distance is smooth L1.

    Detaches nothing where the td holds ``value_target``. Where it does not, y_t is made from
    ``gamma`` with a **full stop** on ``("next", "state_action_value")``; gamma gets its gradient.
    That is exact for one inner step; for several put the targets there with ``add_min_target``.

    Args:
        td: ``[*B]`` with ``state_action_value`` ``[*B, N]`` float (``[*B]`` is one critic) and
            ``value_target`` ``[*B]``, or instead of the latter ``("next", "state_action_value")``
            ``[*B, N']``, ``("next", "reward")`` float and ``("next", "terminated")`` bool;
            optionally ``steps_to_next_obs``, ``mask`` and ``weight``.
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

    Source: Fujimoto et al. (2018), algorithm 1.
    """
    batch = Batch("td3_critic_loss", td)
    value = batch.members("state_action_value")
    if finished_target(batch, "add_min_target", gamma=gamma):
        target = batch.step("value_target")
    else:
        target = _min_target(batch, next_members(batch).detach(), gamma)
    return ensemble_loss(batch, distance, value, target, reduction)


def add_min_target(td: TensorDictBase, gamma: float | Tensor | None = None) -> TensorDictBase:
    """Adds what the critics of DDPG and TD3 are to say.

        value_target_t = r_t + gamma^n (1 - terminated_t) min_i Q'_i(s_{t+1}, a')

    Detaches nothing. Where critics tie, the gradient of the minimum is shared equally among them.

    Args:
        td: ``[*B]`` with ``("next", "state_action_value")`` ``[*B, N]`` or ``[*B]``, ``("next",
            "reward")`` float and ``("next", "terminated")`` bool; optionally
            ``steps_to_next_obs`` and ``mask``.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B]``. An entry of the td wins.

    Returns:
        A new td with ``value_target``, ``[*B]``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or gamma is given nowhere or out of its
            range.
        TypeError: an entry has the wrong dtype.

    Source: Fujimoto et al. (2018), equation 10; Lillicrap et al. (2016), equation 5.
    """
    batch = Batch("add_min_target", td)
    target = _min_target(batch, next_members(batch), gamma)
    return batch.added(value_target=target)


# ---- private


def _min_target(batch: Batch, value: Tensor, gamma: float | Tensor | None) -> Tensor:
    return one_step_target(batch, value.amin(-1), gamma)


def _slope(batch: Batch, action: Tensor) -> Tensor:
    return batch.vector("action_gradient", action.shape[-1], "action_actor")


def _better_action(
    batch: Batch, action: Tensor, slope: Tensor, clipping: float | Tensor | None
) -> Tensor:
    if clipping is None and not batch.has("dqda_clipping"):
        return action + slope
    limit = batch.hyper("dqda_clipping", clipping, 0.0)
    limit = limit.unsqueeze(-1) if isinstance(limit, Tensor) and limit.dim() else limit
    size = slope.detach().abs().amax(-1, keepdim=True)
    some = size > 0  # the root's slope at 0 is not needed: 0 is never clipped
    size = torch.where(some, size.clamp(min=torch.finfo(slope.dtype).tiny), 1.0)
    unit = torch.where(some, slope, 1.0) / size  # its square is a number, whatever the slope's is
    norm = unit.square().sum(-1, keepdim=True).sqrt()
    return action + torch.where(some & (size * norm > limit), unit / norm * limit, slope)


def _greatest(batch: Batch, x: Tensor) -> Tensor:
    return batch.filled(x.detach(), -math.inf).amax()
