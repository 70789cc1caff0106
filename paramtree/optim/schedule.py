"""Hyper-parameters that change with the step.

A schedule is a function of the 0-d int64 count of the updates so far, 0 at the first one.
"""

import torch
from torch import Tensor

from .base import Schedule
from .leafwise import Hyper, require_hyper, wide


def constant(value: Hyper) -> Schedule:
    """The same value at every step.

    Args:
        value: float or 0-d tensor.

    Returns:
        The schedule.

    Raises:
        ValueError: a tensor isn't 0-d.
        TypeError: the value is of another kind.
    """
    require_hyper("constant", "value", value)
    return lambda count: value


def linear(start: Hyper, end: Hyper, steps: int) -> Schedule:
    """From one value to another in equal steps.

    ``(1 - f) start + f end``, with ``f = min(count / steps, 1)``.

    Args:
        start: float or 0-d tensor, the value at the first step.
        end: float or 0-d tensor, the value from ``count = steps`` on.
        steps: number of steps, at least 1.

    Returns:
        The schedule, differentiable in ``start`` and ``end``.

    Raises:
        ValueError: a tensor isn't 0-d, or there are no steps.
        TypeError: an argument is of another kind.
    """
    require_hyper("linear", "start", start)
    require_hyper("linear", "end", end)
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"linear: steps is a {type(steps).__name__}, expected an int")
    if steps < 1:
        raise ValueError(f"linear: steps is {steps}, expected at least 1")

    def schedule(count: Tensor) -> Tensor:
        fraction = torch.clamp(wide(count) / steps, max=1.0)
        return (1.0 - fraction) * start + fraction * end

    return schedule
