"""A rate that falls when the loss no longer does."""

from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree
from .arguments import (
    Hyper,
    Schedule,
    Tree,
    aligned,
    at_count,
    cast,
    number,
    parts,
    require_hyper,
    require_int,
    zero_count,
)
from .base import Step, Transform

NAMES = ("count", "scale", "best_value", "plateau_count", "cooldown_count", "avg_value")


def reduce_on_plateau(
    factor: Hyper | Schedule = 0.1,
    patience: int = 10,
    rtol: Hyper | Schedule = 1e-4,
    atol: Hyper | Schedule = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: Hyper | Schedule = 0.0,
    mode: Literal["min", "max"] = "min",
) -> Transform:
    """Updates times a scale that falls by a factor when a value has stopped improving.

    ``update(grads, state, params, value=loss)`` reads the value. It improves where it's below
    ``(1 - rtol) best - atol`` (``mode="max"``: above ``(1 + rtol) best + atol``). When it has not
    for more than ``patience`` times in a row the scale becomes ``max(factor scale, min_scale)``,
    and the next ``cooldown`` values do not count. The numbers are those of torch's
    ``ReduceLROnPlateau``; optax's falls one value earlier. The scale of a value is that of the
    update that it came with.

    Args:
        factor: float in [0, 1), 0-d tensor, or schedule of the updates so far, like all others.
        patience: how many values without improvement are borne, at least 0.
        rtol: relative threshold, float in [0, 1) or 0-d tensor; torch's ``threshold``.
        atol: absolute threshold, float or 0-d tensor, not negative; with ``rtol=0.0`` torch's
            ``threshold_mode="abs"``.
        cooldown: how many values after a fall do not count, at least 0.
        accumulation_size: the mean of how many values is looked at, at least 1.
        min_scale: float in [0, 1) or 0-d tensor.
        mode: whether a low value is good, or a high one.

    Returns:
        The transform; its state holds ``count``, ``scale``, ``best_value``, ``plateau_count``,
        ``cooldown_count`` and ``avg_value``. The scale is differentiable in ``factor`` and
        ``min_scale``; all else only decides when it falls.

    Raises:
        ValueError: a number is out of range or a tensor not 0-d; later, in ``update``: there is no
            ``value``, or it isn't 0-d.
        TypeError: an argument is of another kind.
    """
    fn = "reduce_on_plateau"
    hyper = {"factor": factor, "rtol": rtol, "atol": atol, "min_scale": min_scale}
    for name, value in hyper.items():
        require_hyper(fn, name, value, low=0, below=float("inf") if name == "atol" else 1)
    require_int(fn, "patience", patience, 0)
    require_int(fn, "cooldown", cooldown, 0)
    require_int(fn, "accumulation_size", accumulation_size, 1)
    if mode not in ("min", "max"):
        raise ValueError(f"{fn}: mode is {mode!r}, expected 'min' or 'max'")
    sign = 1 if mode == "min" else -1

    def init(params: Tree) -> TensorDict:
        zero = zero_count(aligned(fn, params)[0][0])
        numbers = [number(value, zero) for value in (1.0, sign * float("inf"), 0.0)]
        values = (zero, *numbers[:2], zero.clone(), zero.clone(), numbers[2])
        return tree.new(dict(zip(NAMES, values, strict=True)))

    def update(grads: Tree, state: Tree, params: Tree, *, value: Any = None, **extra: Any) -> Step:
        count, scale, best, bad, cooling, mean = parts(fn, state, *NAMES)
        (_, g), structure = aligned(fn, params, grads=grads)
        now = {name: at_count(fn, name, each, count) for name, each in hyper.items()}
        seen = count % accumulation_size
        mean = mean + (_checked(value, scale) - mean) / (seen + 1)
        due = seen + 1 == accumulation_size
        threshold = (1 - sign * now["rtol"]) * best - sign * now["atol"]
        better = (mean < threshold) if mode == "min" else (mean > threshold)
        resting = cooling > 0
        misses = torch.where(better | resting, 0, bad + 1)
        falls = due & (misses > patience)
        lower = scale * now["factor"]
        lower = torch.where(lower > now["min_scale"], lower, now["min_scale"])
        scale = torch.where(falls, lower.to(scale.dtype), scale)
        rest = torch.where(falls, cooldown, torch.where(resting, cooling - 1, cooling))
        values = (
            count + 1,
            scale,
            torch.where(due & better, mean, best),
            torch.where(due, torch.where(falls, 0, misses), bad),
            torch.where(due, rest, cooling),
            torch.where(due, 0.0, mean),
        )
        updates = tree.unflatten(structure, [x * cast(scale, x) for x in g])
        return updates, tree.new(dict(zip(NAMES, values, strict=True)))

    return Transform(init, update)


def _checked(value: Any, like: Tensor) -> Tensor:
    """The value as a tensor of the state's dtype; NaN is a value that doesn't improve."""
    if value is None:
        raise ValueError(
            "reduce_on_plateau: value is missing, expected update(grads, state, params, value=loss)"
        )
    if isinstance(value, Tensor):
        if value.ndim:
            shape = f"shape {tuple(value.shape)}, expected a float or a 0-d tensor"
            raise ValueError(f"reduce_on_plateau: value has {shape}")
        if not value.is_floating_point():
            raise TypeError(f"reduce_on_plateau: value is {value.dtype}, expected a float dtype")
        return value.to(like)
    if not isinstance(value, int | float) or isinstance(value, bool):
        kind = type(value).__name__
        raise TypeError(f"reduce_on_plateau: value is a {kind}, expected a float or a 0-d tensor")
    return torch.full_like(like, value)
