"""Means of curves, with 95% intervals over levels and over seeds.

    over_levels    bootstrap: one run looked at on n levels, which are many
    over_seeds     Student's t: R runs that differ in their seeds, which are few

Each run counts as one number in the second, the mean over what it was looked at on, since levels of
one run share its luck. What there is one of has no interval.

Symbols: n levels, R runs, U points of a curve.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..summary import resampling

_LEVEL = 0.95
_RESAMPLES = 2000


class Band(NamedTuple):
    """A mean curve ``[U]`` with the ends of its interval; None where there is none."""

    mean: Tensor
    low: Tensor | None = None
    high: Tensor | None = None


def smoothed(curve: Tensor, width: int) -> Tensor:
    """Mean over the last ``width`` entries along the last axis, over fewer at the start.

    Args:
        curve: ``[*, U]``.
        width: how many.

    Returns:
        ``[*, U]``.
    """
    total = torch.cat([torch.zeros_like(curve[..., :1]), curve.cumsum(-1)], -1)
    stop = torch.arange(1, curve.shape[-1] + 1)
    start = (stop - width).clamp(min=0)
    return (total[..., stop] - total[..., start]) / (stop - start)


def over_levels(curves: Tensor) -> Band:
    """Mean over levels with its 95% bootstrap interval.

    Args:
        curves: ``[n, U]``, one for each level.

    Returns:
        The band ``[U]``, with no interval where n is 1.
    """
    curves = curves.double()
    if len(curves) < 2:
        return Band(curves.mean(0))
    ends = torch.tensor([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], dtype=torch.float64)
    low, high = (resampling(len(curves))[:_RESAMPLES] @ curves).quantile(ends, dim=0)
    return Band(curves.mean(0), low, high)


def over_seeds(curves: Tensor) -> Band:
    """Mean over runs with its 95% interval, mean +- t s / sqrt(R).

    Args:
        curves: ``[R, U]``, one for each run; s is their standard deviation, with R - 1.

    Returns:
        The band ``[U]``, with no interval where R is 1.
    """
    curves = curves.double()
    runs = len(curves)
    if runs < 2:
        return Band(curves.mean(0))
    mean, half = curves.mean(0), student_t(runs - 1) * curves.std(0) / math.sqrt(runs)
    return Band(mean, mean - half, mean + half)


def student_t(freedom: int) -> float:
    """The t that a Student variable stays within, on both sides of 0, with chance 0.95.

    With theta = atan(t / sqrt(f)) and c its cosine that chance is

        f even    sin(theta) (1 + c^2 / 2 + (1 3) / (2 4) c^4 + ... up to c^(f - 2))
        f odd     2/pi (theta + sin(theta) (c + 2/3 c^3 + (2 4) / (3 5) c^5 + ... up to c^(f - 2)))

    Args:
        freedom: f, degrees of freedom, at least 1.

    Returns:
        The number.

    Raises:
        ValueError: ``freedom`` is below 1.

    Source: Abramowitz & Stegun (1964), Handbook of mathematical functions, 26.7.3 and 26.7.4.
    """
    if freedom < 1:
        raise ValueError(f"student_t: freedom is {freedom}, expected at least 1")
    odd = freedom % 2

    def chance(theta: float) -> float:
        cosine = math.cos(theta)
        term = cosine if odd else 1.0
        total = term if freedom > 1 else 0.0
        for k in range(2 + odd, freedom, 2):  # the power of c that comes next
            term *= (k - 1) / k * cosine**2
            total += term
        inside = math.sin(theta) * total
        return 2 / math.pi * (theta + inside) if odd else inside

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) < _LEVEL else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
