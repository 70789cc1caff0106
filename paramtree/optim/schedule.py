"""Hyper-parameters that change with the step: pure functions of the count of updates.

A schedule is a function of the 0-d int64 count of the updates so far, 0 at the first one. It also
takes a Python int and an int64 tensor of any shape, so ``schedule(torch.arange(100))`` is its
curve. Most are a blend of two values,

    w(f) start + (1 - w(f)) end,    f = min(max(count - begin, 0) / steps, 1)

exact at both ends, with a weight w that falls from 1 to 0. Counts below 0 are read as 0. Values are
floats or 0-d tensors, and get their gradients; numbers of steps are ints. What a schedule gives is
float64 where the device has it, ``constant`` excepted.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .arguments import Hyper, Schedule, require_flag, wide
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
    to_the,
)


def constant(value: Hyper) -> Callable[[Count], Hyper]:
    """The same value at every step.

    Args:
        value: float or 0-d tensor.

    Returns:
        The schedule; it gives the value itself, or as many as there are counts.

    Raises:
        ValueError: a tensor isn't 0-d.
        TypeError: the value is of another kind.
    """
    require_numbers("constant", value=value)

    def schedule(count: Count) -> Hyper:
        count = counts("constant", count)
        return real(value, count).expand(count.shape) if count.ndim else value

    return schedule


def linear(start: Hyper, end: Hyper, steps: int, begin: int = 0) -> Curve:
    """From one value to another in equal steps.

    ``(1 - f) start + f end``, with ``f = min(max(count - begin, 0) / steps, 1)``. From a start of
    0 or so it's a warmup; ``join`` puts another schedule behind it.

    Args:
        start: float or 0-d tensor, the value up to ``count = begin``.
        end: float or 0-d tensor, the value from ``count = begin + steps`` on.
        steps: number of steps, at least 1.
        begin: number of steps before the first change.

    Returns:
        The schedule, differentiable in ``start`` and ``end``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number of steps is out of range.
        TypeError: an argument is of another kind.
    """
    require_numbers("linear", start=start, end=end)
    require_steps("linear", steps=steps)
    require_steps("linear", 0, begin=begin)
    return lambda count: blend(start, end, 1.0 - fraction(counts("linear", count), steps, begin))


def polynomial(start: Hyper, end: Hyper, power: Hyper, steps: int, begin: int = 0) -> Curve:
    """From one value to another along a power.

    ``w start + (1 - w) end``, with ``w = (1 - f)^power`` and f as in ``linear``.

    Args:
        start: float or 0-d tensor, the value up to ``count = begin``.
        end: float or 0-d tensor, the value from ``count = begin + steps`` on.
        power: float or 0-d tensor, at least 0; 1 is ``linear``, and 0 stays at the start.
        steps: number of steps, at least 1.
        begin: number of steps before the first change.

    Returns:
        The schedule, differentiable in ``start``, ``end`` and ``power``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.
    """
    require_numbers("polynomial", start=start, end=end)
    require_numbers("polynomial", low=0.0, power=power)
    require_steps("polynomial", steps=steps)
    require_steps("polynomial", 0, begin=begin)

    def schedule(count: Count) -> Tensor:
        left = 1.0 - fraction(counts("polynomial", count), steps, begin)
        return blend(start, end, to_the(left, power))

    return schedule


def piecewise_constant(init: Hyper, boundaries_and_scales: Mapping[int, Hyper]) -> Curve:
    """A value that is scaled from given steps on.

    ``init prod_{b <= count} scale_b``. With one scale throughout it's torch's ``MultiStepLR``.

    Args:
        init: float or 0-d tensor, the value before the first boundary.
        boundaries_and_scales: for each step from which the value is scaled, the factor: a float or
            0-d tensor, at least 0.

    Returns:
        The schedule, differentiable in ``init`` and the scales.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.
    """
    fn = "piecewise_constant"
    require_numbers(fn, init=init)
    if not isinstance(boundaries_and_scales, Mapping):
        kind = type(boundaries_and_scales).__name__
        raise TypeError(
            f"{fn}: boundaries_and_scales is a {kind}, expected a mapping, such as {{100: 0.1}}"
        )
    scales = dict(boundaries_and_scales)
    for boundary, scale in scales.items():
        require_steps(fn, 0, **{"a boundary": boundary})
        require_numbers(fn, low=0.0, **{f"the scale at {boundary}": scale})

    def schedule(count: Count) -> Tensor:
        count = counts(fn, count)
        value = real(init, count).expand(count.shape)
        for boundary, scale in scales.items():
            value = value * torch.where(count >= boundary, real(scale, count), 1.0)
        return value

    return schedule


def exponential_decay(
    init: Hyper,
    steps: int,
    rate: Hyper,
    begin: int = 0,
    staircase: bool = False,
    end: Hyper | None = None,
) -> Curve:
    """A value that is scaled by the same factor every so many steps.

    ``init rate^p`` with ``p = max(count - begin, 0) / steps``, rounded down with ``staircase``. It
    goes no further than ``end``: not below it for a rate below 1, else not above it. With one step
    it's torch's ``ExponentialLR``, as a staircase ``StepLR``. For a rate of 0 optax stays at
    ``init``; here it is 0 from the first change on.

    Args:
        init: float or 0-d tensor, the value up to ``count = begin``.
        steps: number of steps in which the value changes by the rate, at least 1.
        rate: float or 0-d tensor, at least 0.
        begin: number of steps before the first change.
        staircase: whether the value changes only every ``steps`` steps.
        end: float or 0-d tensor, where the value stops; None for nowhere.

    Returns:
        The schedule, differentiable in ``init``, ``rate`` and ``end``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.
    """
    fn = "exponential_decay"
    require_numbers(fn, init=init)
    if end is not None:
        require_numbers(fn, end=end)
    require_numbers(fn, low=0.0, rate=rate)
    require_steps(fn, steps=steps)
    require_steps(fn, 0, begin=begin)
    require_flag(fn, "staircase", staircase)

    def schedule(count: Count) -> Tensor:
        power = wide((counts(fn, count) - begin).clamp(min=0)) / steps
        power = power.floor() if staircase else power
        value = init * powers(rate, power)
        if end is None:
            return value
        over = (value < end) & (rate < 1.0) | (value > end) & (rate >= 1.0)
        power = torch.where(over, 0.0, power)  # what has grown to infinity gives no gradient
        return torch.where(over, real(end, power), init * powers(rate, power))

    return schedule


def cosine_decay(init: Hyper, steps: int, alpha: Hyper = 0.0, exponent: Hyper = 1.0) -> Curve:
    """From a value down to a part of it, along half a cosine.

    ``init ((1 - alpha) w + alpha)``, with ``w = ((1 + cos(pi f)) / 2)^exponent`` and
    ``f = min(count / steps, 1)``. Where torch's ``CosineAnnealingLR`` goes up again after the last
    step, it stays.

    Args:
        init: float or 0-d tensor, the value at the first step.
        steps: number of steps, at least 1.
        alpha: float or 0-d tensor, what part is left from ``count = steps`` on.
        exponent: float or 0-d tensor, at least 0.

    Returns:
        The schedule, differentiable in ``init``, ``alpha`` and ``exponent``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Loshchilov & Hutter (2017), SGDR: Stochastic Gradient Descent with Warm Restarts,
    equation 5.
    """
    require_numbers("cosine_decay", init=init, alpha=alpha)
    require_numbers("cosine_decay", low=0.0, exponent=exponent)
    require_steps("cosine_decay", steps=steps)

    def schedule(count: Count) -> Tensor:
        weight = half_cosine(fraction(counts("cosine_decay", count), steps))
        return init * blend(1.0, alpha, to_the(weight, exponent))

    return schedule


def warmup_cosine_decay(
    init: Hyper,
    peak: Hyper,
    warmup_steps: int,
    decay_steps: int,
    end: Hyper = 0.0,
    exponent: Hyper = 1.0,
) -> Curve:
    """Up to a peak in equal steps, then down along half a cosine.

    ``linear(init, peak, warmup_steps)`` before ``count = warmup_steps``; from there on
    ``w peak + (1 - w) end``, with ``w = ((1 + cos(pi f)) / 2)^exponent`` and
    ``f = min((count - warmup_steps) / (decay_steps - warmup_steps), 1)``. For a peak of 0 optax
    stays at 0; here it goes on to ``end``.

    Args:
        init: float or 0-d tensor, the value at the first step.
        peak: float or 0-d tensor, the value at ``count = warmup_steps``.
        warmup_steps: number of steps up to the peak; 0 begins there.
        decay_steps: number of steps in all, the warmup's among them.
        end: float or 0-d tensor, the value from ``count = decay_steps`` on.
        exponent: float or 0-d tensor, at least 0.

    Returns:
        The schedule, differentiable in ``init``, ``peak``, ``end`` and ``exponent``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.
    """
    fn = "warmup_cosine_decay"
    require_numbers(fn, init=init, peak=peak, end=end)
    require_numbers(fn, low=0.0, exponent=exponent)
    require_steps(fn, 0, warmup_steps=warmup_steps)
    require_steps(fn, decay_steps=decay_steps)
    if decay_steps <= warmup_steps:
        wanted = f"more than warmup_steps, which is {warmup_steps}"
        raise ValueError(f"{fn}: decay_steps is {decay_steps}, expected {wanted}")

    def schedule(count: Count) -> Tensor:
        count = counts(fn, count)
        up = blend(init, peak, 1.0 - fraction(count, max(warmup_steps, 1)))
        weight = half_cosine(fraction(count, decay_steps - warmup_steps, warmup_steps))
        down = blend(peak, end, to_the(weight, exponent))
        return torch.where(count < warmup_steps, up, down)

    return schedule


def join(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Curve:
    """Schedules one after another, each counting from its own first step.

    ``s_i(count - b_i)`` where ``b_i <= count < b_{i+1}``, with ``b_0 = 0``. A schedule is called
    with counts of its own stretch only.

    Args:
        schedules: at least one.
        boundaries: the count at which each but the first begins, in rising order.

    Returns:
        The schedule, differentiable in what its parts are.

    Raises:
        ValueError: there are no schedules, not one boundary fewer, or these aren't in order.
        TypeError: an argument is of another kind.
    """
    for name, value in (("schedules", schedules), ("boundaries", boundaries)):
        if not isinstance(value, Sequence):
            raise TypeError(f"join: {name} is a {type(value).__name__}, expected a list")
    for index, part in enumerate(schedules):
        if not callable(part):
            raise TypeError(
                f"join: schedule {index} is a {type(part).__name__}, expected a schedule"
            )
    parts, starts = list(schedules), [0, *boundaries]
    if not parts:
        raise ValueError("join: schedules is empty, expected at least one")
    if len(starts) != len(parts):
        wanted = f"expected {len(parts) - 1}, one fewer than schedules"
        raise ValueError(f"join: boundaries has {len(boundaries)} entries, {wanted}")
    for boundary in boundaries:
        require_steps("join", 0, **{"a boundary": boundary})
    if starts != sorted(starts):
        raise ValueError(f"join: boundaries is {list(boundaries)}, expected rising numbers")
    ends = [*starts[1:], None]

    def schedule(count: Count) -> Tensor:
        count = counts("join", count)
        value = None
        for part, start, end in zip(parts, starts, ends, strict=True):
            last = None if end is None else max(end - start - 1, 0)
            own = real(part((count - start).clamp(0, last)), count)
            value = own if value is None else torch.where(count < start, value, own)
        assert value is not None
        return value

    return schedule
