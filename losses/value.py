"""Values, and their regression to what they should be.

Symbols: V(s_t) is the value (``state_value``), G_t what it should be (``value_target``), r_t the
reward, gamma the discount. The per-step functions take tensors of any one shape, ``[T, *batch]`` or
other, and detach nothing. The reducers read a td ``[*B, T]``; where it holds ``value_target`` they
detach nothing either, and else make it from ``gamma`` and ``lmbda``, with a full stop on the
values.

Any number per step can be regressed so: a mixed value of many agents' chosen values (QMIX) is a
``state_value``, and ``value_loss(td, gamma=0.99, lmbda=0.0)`` bootstraps it over one step.
"""

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._check import check_alike, check_hyper
from ._critics import Distance, critic_metrics, distances, finished_target
from ._numbers import bounded
from .distances import absolute_error as absolute_error
from .distances import asymmetric
from .distances import clip_gradient as clip_gradient
from .distances import expectile_error as expectile_error
from .distances import half_squared_error as half_squared_error
from .distances import huber as huber
from .distances import huber_error as huber_error
from .distances import squared_error as squared_error
from .estimators import stopped_advantage
from .returns import td_targets


def td_error(
    value: Tensor, reward: Tensor, next_value: Tensor, terminated: Tensor, gamma: float | Tensor
) -> Tensor:
    """Error of a value against one reward and the value that follows: target minus prediction.

        delta_t = r_t + gamma_t (1 - terminated_t) V(s_{t+1}) - V(s_t)

    ``value`` and ``next_value`` may be of any kind. With the chosen Q(s_t, a_t) and V(s_{t+1}) it
    is the error of QV-learning, with V(s_t) and max_a Q(s_{t+1}, a) that of QV-max. What stands in
    ``next_value`` at a terminated step is without influence, NaN included.

    Args:
        value: ``[...]`` float, by convention ``[T, *batch]``.
        reward: ``[...]`` float.
        next_value: ``[...]`` float.
        terminated: ``[...]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[...]``.

    Returns:
        ``[...]``, differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the value's, or gamma is a float out of its range.
        TypeError: ``terminated`` is not bool, or another tensor not floating-point.

    Source: Sutton (1988), "Learning to predict by the methods of temporal differences".
    """
    floats = {"value": value, "reward": reward, "next_value": next_value}
    shape = check_alike("td_error", floats, {"terminated": terminated})
    check_hyper("td_error", "gamma", gamma, shape, "value", 0.0, 1.0)
    return td_targets(reward, next_value, terminated, gamma) - value


def clipped_error(
    value: Tensor,
    old_value: Tensor,
    target: Tensor,
    value_clip: float | Tensor,
    distance: Distance = squared_error,
) -> Tensor:
    """The larger of a value's error and its error had it moved by at most ``value_clip``.

        v_clip = old + clamp(v - old, -value_clip, value_clip)
        max(distance(v, target), distance(v_clip, target))

    Args:
        value: ``[...]`` float.
        old_value: ``[...]`` float, the value when the data were drawn.
        target: ``[...]`` float. All three carry gradient.
        value_clip: how far a value may move, at least 0; float, or a tensor that broadcasts to
            ``[...]``.
        distance: elementwise function of the value and its target.

    Returns:
        ``[...]``, one number per element, without a further factor of 1/2.

    Raises:
        ValueError: the shapes differ, ``value_clip`` is a negative float, or the distance gives
            another shape.
        TypeError: an argument is not floating-point, or the distance is no function or gives no
            tensor.

    Source: the code of Schulman et al. (2017), "Proximal policy optimization algorithms".
    """
    name = "clipped_error"
    shape = check_alike(name, {"value": value, "old_value": old_value, "target": target})
    check_hyper(name, "value_clip", value_clip, shape, "value", 0.0)

    def error(v: Tensor) -> Tensor:
        return distances(name, distance, v, target)

    return larger_error(value, old_value, value_clip, error)


def explained_variance(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The part of the targets' variance that the predictions account for; 1 is all of it.

        1 - Var(target - prediction) / (Var(target) + tiny)

    with population variances over all elements, and the dtype's epsilon as the tiny number.

    Args:
        prediction: ``[...]`` float.
        target: ``[...]`` float, of the same shape.
        mask: ``[...]`` bool, the elements that count; all if not given.

    Returns:
        ``[]``. Detaches nothing.

    Raises:
        ValueError: the shapes differ.
        TypeError: ``mask`` is not bool, or another tensor not floating-point.

    Source: OpenAI Baselines (Dhariwal et al., 2017).
    """
    name = "explained_variance"
    flags = {} if mask is None else {"mask": mask}
    check_alike(name, {"prediction": prediction, "target": target}, flags)
    count = target.numel() if mask is None else mask.sum()
    if mask is not None:
        prediction, target = (torch.where(mask, x, 0.0) for x in (prediction, target))

    def variance(x: Tensor) -> Tensor:
        if mask is None:
            return x.var(correction=0)
        return torch.where(mask, x - x.sum() / count, 0.0).square().sum() / count

    tiny = torch.finfo(target.dtype).eps
    return 1 - variance(target - prediction) / (variance(target) + tiny)


# ---- reducers


def value_loss(
    td: TensorDictBase,
    *,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    critic_coeff: float | Tensor = 1.0,
    distance: Distance = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """Regression of the value to its target.

        loss_critic = critic_coeff distance(V(s_t), G_t), by default (V(s_t) - G_t)^2, without 1/2

    Detaches nothing where the td holds ``value_target``. Where it does not, it is made here from
    ``gamma`` and ``lmbda`` as by ``add_advantage``, with a **full stop** on ``state_value`` and
    ``("next", "state_value")`` as far as they enter G_t: exact for one inner step, but over several
    the outer gradient lacks the way on which earlier updates moved those values. ``lmbda`` of 0
    is learning by temporal differences.

    Args:
        td: ``[*B, T]`` with ``state_value`` and ``value_target``, or instead of that what
            ``add_advantage`` reads; optionally ``mask`` and ``weight``.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B, T]``. An entry of the td wins.
        lmbda: decay of the trace, in [0, 1]; likewise.
        critic_coeff: weight of the loss; float or tensor, 0-d or ``[*B, T]``. An entry of the td
            wins.
        distance: elementwise function of the value and its target.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error`` |G_t - V(s_t)|, ``pred_value`` V(s_t) and
        ``target_value`` G_t.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` or ``lmbda`` stands beside a
            ``value_target``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Sutton & Barto (2018), sections 9.3 and 12.1.
    """
    batch = Batch("value_loss", td)
    value, target = batch.step("state_value"), _target(batch, gamma, lmbda)
    error = distances(batch.function, distance, value, target)
    losses = {"loss_critic": batch.hyper("critic_coeff", critic_coeff) * error}
    return batch.reduced(reduction, losses, critic_metrics(value, target))


def clipped_value_loss(
    td: TensorDictBase,
    *,
    value_clip: float | Tensor = 0.2,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    critic_coeff: float | Tensor = 1.0,
    distance: Distance = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """Regression of the value to its target that does not reward moving it far in one update.

        v_clip = old + clamp(V(s_t) - old, -value_clip, value_clip)
        loss_critic = critic_coeff max(distance(V(s_t), G_t), distance(v_clip, G_t))

    without 1/2, with the old value from when the data were drawn. Stops are those of
    ``value_loss``; the old value is not detached.

    Args:
        td: ``[*B, T]`` with ``state_value``, ``("behavior", "state_value")`` and ``value_target``,
            or instead of the last what ``add_advantage`` reads; optionally ``mask`` and ``weight``.
        value_clip: how far a value may move, at least 0; float or tensor, 0-d or ``[*B, T]``. An
            entry of the td wins.
        gamma: discount, in [0, 1], only for a td without ``value_target``; likewise.
        lmbda: decay of the trace, in [0, 1]; likewise.
        critic_coeff: weight of the loss; likewise.
        distance: elementwise function of the value and its target.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``value_clip_fraction``, the fraction of values that moved by
        more than ``value_clip``, ``td_error``, ``pred_value`` and ``target_value``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` or ``lmbda`` stands beside a
            ``value_target``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: the code of Schulman et al. (2017), "Proximal policy optimization algorithms".
    """
    batch = Batch("clipped_value_loss", td)
    value, target = batch.step("state_value"), _target(batch, gamma, lmbda)
    error, clipping = critic_error(batch, value, target, value_clip, distance)
    losses = {"loss_critic": batch.hyper("critic_coeff", critic_coeff) * error}
    return batch.reduced(reduction, losses, {**clipping, **critic_metrics(value, target)})


def expectile_loss(
    td: TensorDictBase,
    *,
    expectile: float | Tensor = 0.7,
    reduction: str = "mean",
) -> TensorDictBase:
    """Regression of the value to an expectile of its targets: an optimistic mean, above 1/2.

        loss_critic = (expectile if G_t >= V(s_t) else 1 - expectile) (G_t - V(s_t))^2

    without 1/2. ``iql_value_loss`` is this with the least of the target critics' Q(s_t, a_t) for
    G_t. Detaches nothing: make ``value_target`` with the critics' parameters held.

    Args:
        td: ``[*B]`` with ``state_value`` and ``value_target``; optionally ``mask`` and ``weight``.
        expectile: in [0, 1]; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error``, ``pred_value`` and ``target_value``.

    Raises:
        ValueError: a key is missing, or a shape is wrong.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Kostrikov et al. (2021), "Offline reinforcement learning with implicit Q-learning",
    equation 5.
    """
    batch = Batch("expectile_loss", td)
    value, target = batch.step("state_value"), batch.step("value_target")
    error = asymmetric(value, target, batch.hyper("expectile", expectile, 0.0, 1.0))
    return batch.reduced(reduction, {"loss_critic": error}, critic_metrics(value, target))


# ---- parts, for reducers of other files


def critic_error(
    batch: Batch,
    value: Tensor,
    target: Tensor,
    value_clip: float | Tensor | None,
    distance: Distance,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A value's error per step, and the fraction of clipped values if there is a clip."""
    if value_clip is None and not batch.has("value_clip"):
        return distances(batch.function, distance, value, target), {}
    old = batch.step(("behavior", "state_value"), hint="value_clip is the way from there.")
    clip = batch.hyper("value_clip", value_clip, 0.0)
    error = larger_error(value, old, clip, lambda v: distances(batch.function, distance, v, target))
    return error, {"value_clip_fraction": moved_beyond(value, old, clip)}


def larger_error(
    value: Tensor,
    old_value: Tensor,
    value_clip: float | Tensor,
    error: Callable[[Tensor], Tensor],
) -> Tensor:
    """The larger of the errors of a value and of the clipped one."""
    moved = bounded(value - old_value, -value_clip, value_clip)
    return torch.maximum(error(value), error(old_value + moved))


def moved_beyond(value: Tensor, old_value: Tensor, value_clip: float | Tensor) -> Tensor:
    """1 where a value moved by more than ``value_clip``, else 0."""
    return ((value - old_value).abs() > value_clip).to(value.dtype)


def _target(batch: Batch, gamma: float | Tensor | None, lmbda: float | Tensor | None) -> Tensor:
    """G_t: the td's own, or made here with a full stop."""
    if finished_target(batch, "add_advantage", gamma=gamma, lmbda=lmbda):
        return batch.step("value_target")
    return stopped_advantage(batch, gamma, lmbda)[1]
