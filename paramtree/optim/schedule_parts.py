"""What schedules are written with: parts of a stretch of steps, weights, and checks.

Counts are int64 tensors of any shape, and constants as far as derivatives go; values are floats or
0-d tensors. All that comes of them is float64 where the device has it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .arguments import (
    Hyper,
    require_hyper,
    require_int,
    wide,
)

Count = Tensor | int
Curve = Callable[[Count], Tensor]


def counts(fn: str, count: Any) -> Tensor:
    """What a schedule was called with, as a tensor.

    Args:
        fn: name of the schedule, for the message.
        count: int, or int64 tensor of any shape.

    Returns:
        int64, of the same shape.

    Raises:
        TypeError: it's neither.
    """
    if isinstance(count, int) and not isinstance(count, bool):
        return torch.tensor(count)
    if not isinstance(count, Tensor) or count.dtype != torch.int64:
        got = count.dtype if isinstance(count, Tensor) else f"a {type(count).__name__}"
        raise TypeError(f"{fn}: count is {got}, expected an int or an int64 tensor")
    return count


def fraction(count: Tensor, steps: int, begin: int = 0) -> Tensor:
    """What part of a stretch of steps is over.

    Args:
        count: int64.
        steps: how many there are, at least 1.
        begin: how many come before.

    Returns:
        Float, of the same shape, from 0 to 1.
    """
    return wide((count - begin).clamp(0, steps)) / steps


def blend(start: Hyper, end: Hyper, weight: Tensor) -> Tensor:
    """``w start + (1 - w) end``: for weights of 1 and 0 the very ends.

    Args:
        start: float or 0-d tensor.
        end: float or 0-d tensor.
        weight: from 0 to 1.

    Returns:
        The weight's shape.
    """
    return weight * start + (1.0 - weight) * end


def half_cosine(part: Tensor) -> Tensor:
    """Weight that falls from 1 to 0 along half a cosine.

    Args:
        part: from 0 to 1.

    Returns:
        The same shape.
    """
    return 0.5 * (1.0 + torch.cos(math.pi * part))


def to_the(weight: Tensor, exponent: Hyper) -> Tensor:
    """``w^exponent``, with derivatives in the exponent that are finite at a weight of 0 too.

    Args:
        weight: constant, from 0 to 1.
        exponent: float or 0-d tensor, at least 0; ``0^0`` is 1.

    Returns:
        The weight's shape.
    """
    if not isinstance(exponent, Tensor):
        return weight**exponent
    some = weight > 0
    return torch.where(some, torch.where(some, weight, 1.0) ** exponent, wide(exponent == 0))


def powers(base: Hyper, exponent: Tensor) -> Tensor:
    """``base^exponent``, with derivatives in the base that are finite at ``0^0`` too.

    Args:
        base: float or 0-d tensor, at least 0.
        exponent: constant, at least 0.

    Returns:
        The exponent's shape.
    """
    if not isinstance(base, Tensor):
        return base**exponent
    some = exponent > 0
    return torch.where(some, wide(base) ** torch.where(some, exponent, 1.0), 1.0)


def real(value: Hyper, like: Tensor) -> Tensor:
    """A value as a tensor.

    Args:
        value: float, or tensor of any shape.
        like: tensor on the device where a float's is made.

    Returns:
        Float, 0-d or of the value's shape.
    """
    return wide(value) if isinstance(value, Tensor) else wide(like).new_full((), value)


def require_numbers(fn: str, low: float | None = None, **values: Any) -> None:
    """Refuse what is not a float or a 0-d tensor.

    Args:
        fn: name of the function that was called, for the message.
        low: the least number that is welcome, None for any.
        values: what came in, by the names of the arguments.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: one is of another kind.
    """
    for name, value in values.items():
        require_hyper(fn, name, value, low=low, schedule=False)


def require_steps(fn: str, low: int = 1, **values: Any) -> None:
    """Refuse what is not a number of steps.

    Args:
        fn: name of the function that was called, for the message.
        low: the least number that is welcome.
        values: what came in, by the names of the arguments.

    Raises:
        ValueError: a number is below that.
        TypeError: one isn't an int.
    """
    for name, value in values.items():
        require_int(fn, name, value, low)
