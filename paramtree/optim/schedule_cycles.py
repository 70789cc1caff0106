"""Schedules that go up and down: one cycle, warm restarts, triangles."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import Hyper, wide
from .schedule import join, warmup_cosine_decay
from .schedule_parts import (
    Count,
    Curve,
    blend,
    counts,
    fraction,
    half_cosine,
    powers,
    real,
    require_numbers,
    require_steps,
)

_MODES = ("triangular", "triangular2", "exp_range")
_CYCLE = ("init", "peak", "warmup_steps", "decay_steps")
_MORE = ("end", "exponent")


def linear_onecycle(
    steps: int,
    peak: Hyper,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: Hyper = 25.0,
    final_div_factor: Hyper = 1e4,
) -> Curve:
    """One cycle in straight lines: up to the peak, down again, and further down.

    From ``peak / div_factor`` to ``peak`` at ``count = int(pct_start steps)``, back at
    ``int(pct_final steps)``, and ``peak / div_factor / final_div_factor`` from ``steps`` on.
    Where two of these fall on one step, optax loses the first; here the value jumps. torch's
    ``OneCycleLR(three_phase=True)`` reaches each a step sooner, and the peak between two steps.

    Args:
        steps: number of steps, at least 1.
        peak: float or 0-d tensor.
        pct_start: part of the steps before the peak, from 0 to 1; a float, which picks a step.
        pct_final: part of the steps before the last phase, from ``pct_start`` to 1; likewise.
        div_factor: float or 0-d tensor, above 0.
        final_div_factor: float or 0-d tensor, above 0.

    Returns:
        The schedule, differentiable in ``peak`` and the factors.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Smith & Topin (2018), Super-Convergence: Very Fast Training of Neural Networks Using
    Large Learning Rates.
    """
    fn = "linear_onecycle"
    _require_cycle(fn, steps, peak, div_factor, final_div_factor)
    _require_part(fn, 0.0, pct_start=pct_start)
    _require_part(fn, pct_start, pct_final=pct_final)
    ends = [int(pct_start * steps), int(pct_final * steps), steps]

    def schedule(count: Count) -> Tensor:
        low = peak / div_factor
        values = [low, peak, low, low / final_div_factor]
        return _pieces(counts(fn, count), ends, values, lambda part: 1.0 - part)

    return schedule


def cosine_onecycle(
    steps: int,
    peak: Hyper,
    pct_start: float = 0.3,
    div_factor: Hyper = 25.0,
    final_div_factor: Hyper = 1e4,
) -> Curve:
    """One cycle along half cosines: up to the peak, and all the way down.

    From ``peak / div_factor`` to ``peak`` at ``count = int(pct_start steps)``, and
    ``peak / div_factor / final_div_factor`` from ``steps`` on. Where both fall on one step, optax
    loses the first; here the value jumps. torch's ``OneCycleLR`` reaches each a step sooner, and
    the peak between two steps.

    Args:
        steps: number of steps, at least 1.
        peak: float or 0-d tensor.
        pct_start: part of the steps before the peak, from 0 to 1; a float, which picks a step.
        div_factor: float or 0-d tensor, above 0.
        final_div_factor: float or 0-d tensor, above 0.

    Returns:
        The schedule, differentiable in ``peak`` and the factors.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Smith & Topin (2018), Super-Convergence: Very Fast Training of Neural Networks Using
    Large Learning Rates.
    """
    fn = "cosine_onecycle"
    _require_cycle(fn, steps, peak, div_factor, final_div_factor)
    _require_part(fn, 0.0, pct_start=pct_start)
    ends = [int(pct_start * steps), steps]

    def schedule(count: Count) -> Tensor:
        low = peak / div_factor
        values = [low, peak, low / final_div_factor]
        return _pieces(counts(fn, count), ends, values, half_cosine)

    return schedule


def sgdr(cycles: Sequence[Mapping[str, Any]]) -> Curve:
    """Cosine decays one after another, each from a peak of its own, with or without a warmup.

    Cycle i is ``warmup_cosine_decay(**cycles[i])`` and lasts its ``decay_steps``; the last one
    stays at its end, where torch's ``CosineAnnealingWarmRestarts`` begins again.

    Args:
        cycles: at least one; each holds ``init, peak, warmup_steps, decay_steps``, and may hold
            ``end`` and ``exponent``.

    Returns:
        The schedule, differentiable in all values of the cycles.

    Raises:
        ValueError: there are no cycles, names are missing or unknown, a tensor isn't 0-d, or a
            number is out of range.
        TypeError: an argument is of another kind.

    Reference: Loshchilov & Hutter (2017), SGDR: Stochastic Gradient Descent with Warm Restarts,
    section 3.
    """
    kinds = "a list of mappings, the keywords of warmup_cosine_decay"
    if not isinstance(cycles, Sequence) or isinstance(cycles, str):
        raise TypeError(f"sgdr: cycles is a {type(cycles).__name__}, expected {kinds}")
    if not cycles:
        raise ValueError(f"sgdr: cycles is empty, expected {kinds}")
    for index, cycle in enumerate(cycles):
        if not isinstance(cycle, Mapping):
            raise TypeError(f"sgdr: cycle {index} is a {type(cycle).__name__}, expected a mapping")
        if not set(_CYCLE) <= set(cycle) <= {*_CYCLE, *_MORE}:
            wanted = f"{', '.join(_CYCLE)}, and at most {' and '.join(_MORE)} as well"
            held = ", ".join([str(name) for name in cycle]) or "nothing"
            raise ValueError(f"sgdr: cycle {index} holds {held}, expected {wanted}")
    schedules = [warmup_cosine_decay(**cycle) for cycle in cycles]
    boundaries, begin = [], 0
    for cycle in cycles[:-1]:
        begin += cycle["decay_steps"]
        boundaries.append(begin)
    return join(schedules, boundaries)


def cyclic(
    base: Hyper,
    peak: Hyper,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: Hyper = 1.0,
) -> Curve:
    """Up from a base to a peak and down again, over and over: torch's ``CyclicLR``.

    ``base + (peak - base) w s``: w goes from 0 to 1 and back in the equal steps of a cycle, and s
    is 1 for ``triangular``, ``2^-k`` in cycle k = 0, 1, ... for ``triangular2``, and
    ``gamma^count`` for ``exp_range``. A momentum that goes down while the rate goes up is
    ``cyclic(0.9, 0.8, ...)``.

    Args:
        base: float or 0-d tensor.
        peak: float or 0-d tensor, above the base or below it.
        step_size_up: number of steps from the base to the peak, at least 1.
        step_size_down: number of steps back, at least 1; None for as many.
        mode: ``triangular``, ``triangular2`` or ``exp_range``.
        gamma: float or 0-d tensor, at least 0; for ``exp_range`` alone.

    Returns:
        The schedule, differentiable in ``base``, ``peak`` and ``gamma``.

    Raises:
        ValueError: the mode is unknown or doesn't read gamma, a tensor isn't 0-d, or a number is
            out of range.
        TypeError: an argument is of another kind.

    Reference: Smith (2017), Cyclical Learning Rates for Training Neural Networks, section 3.
    """
    require_numbers("cyclic", base=base, peak=peak)
    require_numbers("cyclic", low=0.0, gamma=gamma)
    down = step_size_up if step_size_down is None else step_size_down
    require_steps("cyclic", step_size_up=step_size_up, step_size_down=down)
    if mode not in _MODES:
        raise ValueError(f"cyclic: mode is {mode!r}, expected one of {', '.join(_MODES)}")
    if mode != "exp_range" and (isinstance(gamma, Tensor) or gamma != 1.0):
        raise ValueError(f"cyclic: gamma is given and mode is {mode!r}, expected 'exp_range'")

    def schedule(count: Count) -> Tensor:
        count = counts("cyclic", count).clamp(min=0)
        place = count % (step_size_up + down)
        back = fraction(place, down, step_size_up)
        weight = torch.where(place < step_size_up, fraction(place, step_size_up), 1.0 - back)
        if mode == "triangular2":
            weight = weight * 0.5 ** wide(count // (step_size_up + down))
        elif mode == "exp_range":
            weight = weight * powers(gamma, wide(count))
        return blend(peak, base, weight)

    return schedule


def _pieces(
    count: Tensor, ends: list[int], values: list[Hyper], weight: Callable[[Tensor], Tensor]
) -> Tensor:
    """From each value to the next, which is reached at the end of the stretch between them."""
    starts = [0, *ends[:-1]]
    value = real(values[-1], count).expand(count.shape)
    for i in reversed(range(len(ends))):
        part = fraction(count, max(ends[i] - starts[i], 1), starts[i])
        piece = blend(values[i], values[i + 1], weight(part))
        value = torch.where(count < ends[i], piece, value)
    return value


def _require_cycle(fn: str, steps: Any, peak: Any, div_factor: Any, final_div_factor: Any) -> None:
    require_steps(fn, steps=steps)
    require_numbers(fn, peak=peak)
    for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
        require_numbers(fn, low=0.0, **{name: value})
        if not isinstance(value, Tensor) and value == 0:
            raise ValueError(f"{fn}: {name} is {value}, expected above 0")


def _require_part(fn: str, low: float, **values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            kind = type(value).__name__
            raise TypeError(f"{fn}: {name} is a {kind}, expected a float: it picks a step")
        if not low <= value <= 1:
            raise ValueError(f"{fn}: {name} is {value}, expected from {low} to 1")
