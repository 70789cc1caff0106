"""How far to go along an update: searches that read the function itself.

    f(t)   value_fn(params + t u), with u what the search is given; f'(t) its derivative
    t      the step size, 1 at first, so that u is the step that is tried before others

The number of trials is fixed. All are made, whatever the first ones find, because nothing branches
on data: tasks mapped side by side may end at different trials. The step size is differentiable, of
any order, in all that it's made of; which trial is taken is piecewise constant.
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree
from ..autodiff import value_and_grad
from ..tree import root
from .arguments import (
    Hyper,
    Schedule,
    Tree,
    aligned,
    at_count,
    cast,
    parts,
    require_hyper,
    require_int,
    wide,
    zero_count,
)
from .base import Step, Transform
from .leafwise import Work

Point = tuple[Tensor, Tensor, Tensor]  # t, f(t), f'(t)
Along = Callable[[Tensor], Tensor]

SHORTEST = 1e-9  # the interval, times the largest number in u, at which a search gives up; torch's


def scale_by_backtracking_linesearch(
    max_backtracking_steps: int = 10,
    slope_rtol: Hyper | Schedule = 1e-4,
    decrease_factor: Hyper | Schedule = 0.5,
) -> Transform:
    """Updates times the first of 1, d, d^2, ... that makes the function fall enough.

        f(t) <= f(0) + slope_rtol t min(f'(0), 0)

    ``update(grads, state, params, value_fn=loss)``; where there are ``value=`` and ``grad=`` too,
    value and gradient at the params, f(0) and f'(0) are not evaluated anew. The step size is 0
    where none falls enough. An update evaluates f ``max_backtracking_steps + 1`` times.

    Args:
        max_backtracking_steps: how often d is multiplied by, at least 0.
        slope_rtol: how much of the slope counts, float in [0, 1), 0-d tensor or schedule.
        decrease_factor: d; float in [0, 1), 0-d tensor or schedule.

    Returns:
        The transform; its state holds ``count`` and the last ``step_size``.

    Raises:
        ValueError: a number is out of range or a tensor not 0-d; later, in ``update``: ``value_fn``
            is missing, or what it gave isn't 0-d.
        TypeError: an argument is of another kind.

    Reference: Armijo (1966); Nocedal & Wright (2006), algorithm 3.1.
    """
    fn = "scale_by_backtracking_linesearch"
    require_int(fn, "max_backtracking_steps", max_backtracking_steps, 0)
    hyper = {"slope_rtol": slope_rtol, "decrease_factor": decrease_factor}
    for name, value in hyper.items():
        require_hyper(fn, name, value, low=0, below=1)

    def search(along: Along, start: Point, u: list[Tensor], now: dict[str, Any]) -> Tensor:
        t, found = torch.ones_like(start[0]), torch.zeros_like(start[0])
        done = torch.zeros_like(found, dtype=torch.bool)
        slope = now["slope_rtol"] * start[2].clamp(max=0.0)
        for k in range(max_backtracking_steps + 1):
            t = t * now["decrease_factor"] if k else t
            enough = along(t) <= start[1] + t * slope
            found = torch.where(enough & ~done, t, found)
            done = done | enough
        return found

    return _searched(fn, search, hyper)


def scale_by_zoom_linesearch(
    max_linesearch_steps: int = 10,
    slope_rtol: Hyper | Schedule = 1e-4,
    curv_rtol: Hyper | Schedule = 0.9,
) -> Transform:
    """Updates times a step size at which the strong Wolfe conditions hold.

        f(t) <= f(0) + slope_rtol t f'(0),   |f'(t)| <= curv_rtol |f'(0)|

    Steps grow until they enclose such a t, and then cubic interpolation closes in on it, with
    torch's safeguards and numbers (but that torch lets the second trial be higher than the first,
    and goes on from there). ``update(grads, state, params, value_fn=loss)``; where there are
    ``value=`` and ``grad=`` too, value and gradient at the params, f(0) and f'(0) are not evaluated
    anew. After the last trial the best t so far is taken, 0 where none is better. A trial that
    isn't finite halves the interval. An update evaluates f and its derivative
    ``max_linesearch_steps`` times.

    Args:
        max_linesearch_steps: how many t are tried, at least 1.
        slope_rtol: how much of the slope counts, float in [0, 1), 0-d tensor or schedule.
        curv_rtol: how much of the slope may be left, float in [0, 1), 0-d tensor or schedule; close
            to 0 the search is exact.

    Returns:
        The transform; its state holds ``count`` and the last ``step_size``.

    Raises:
        ValueError: a number is out of range or a tensor not 0-d; later, in ``update``: ``value_fn``
            is missing, or what it gave isn't 0-d.
        TypeError: an argument is of another kind.

    Reference: Nocedal & Wright (2006), algorithms 3.5 and 3.6, with the interpolation of equation
        3.59.
    """
    fn = "scale_by_zoom_linesearch"
    require_int(fn, "max_linesearch_steps", max_linesearch_steps, 1)
    hyper = {"slope_rtol": slope_rtol, "curv_rtol": curv_rtol}
    for name, value in hyper.items():
        require_hyper(fn, name, value, low=0, below=1)

    def search(along: Along, start: Point, u: list[Tensor], now: dict[str, Any]) -> Tensor:
        largest = [x.detach().abs().amax().to(start[0].dtype) for x in u if x.numel()]
        reach = torch.stack(largest).amax() if largest else start[0]
        return _zoomed(value_and_grad(along), start, reach, max_linesearch_steps, now)

    return _searched(fn, search, hyper)


def _searched(
    fn: str, search: Callable[..., Tensor], hyper: dict[str, Hyper | Schedule]
) -> Transform:
    """Transform that multiplies by ``search(along, start, u, hyper-parameters now)``."""

    def init(params: Tree) -> TensorDict:
        count = zero_count(aligned(fn, params)[0][0])
        return tree.new({"count": count, "step_size": wide(count) + 1.0})

    def update(
        grads: Tree,
        state: Tree,
        params: Tree,
        *,
        value_fn: Any = None,
        value: Any = None,
        grad: Any = None,
        **extra: Any,
    ) -> Step:
        count, _ = parts(fn, state, "count", "step_size")
        (p, u), structure = aligned(fn, params, grads=grads)
        _require_value_fn(fn, value_fn)

        def along(t: Tensor) -> Tensor:
            there = [x + d * cast(t, x) for x, d in zip(p, u, strict=True)]
            return _number(fn, "value_fn gave", value_fn(tree.unflatten(structure, there)), t)

        zero = wide(torch.zeros_like(count))
        if value is None or grad is None:
            begin, slope = value_and_grad(along)(zero)
        else:
            g = aligned(fn, params, grad=grad)[0][1]
            work = Work(p, structure)
            begin = _number(fn, "value is", value, zero)
            slope = _slope(work.pack(g), work.pack(u), zero)
        now = {name: at_count(fn, name, each, count) for name, each in hyper.items()}
        t = search(along, (zero, begin, slope), u, now)
        updates = tree.unflatten(structure, [d * cast(t, d) for d in u])
        return updates, tree.new({"count": count + 1, "step_size": t})

    return Transform(init, update)


def _zoomed(
    trial: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Point,
    reach: Tensor,
    steps: int,
    now: dict[str, Any],
) -> Tensor:
    """The step size; ``low`` is the best point so far, and ``high`` the other end of the zoom."""
    zero, begin, slope = start
    bound = now["slope_rtol"] * slope.clamp(max=0.0)
    low, high, t = start, start, torch.ones_like(zero)
    done = zooming = stuck = torch.zeros_like(zero, dtype=torch.bool)
    for k in range(steps):
        f, df = trial(t)
        finite = torch.isfinite(f) & torch.isfinite(df)
        # the mirror image of the low point, so that interpolation halves the interval
        new = (t, torch.where(finite, f, low[1]), torch.where(finite, df, -low[2]))
        fails = (new[1] > begin + t * bound) | (new[1] >= low[1]) | ~finite
        good = ~fails & (new[2].abs() <= -now["curv_rtol"] * slope)
        lower = fails & (new[1] < low[1])  # better than the low point, though not by enough
        turns = ~fails & (new[2] * torch.where(zooming, high[0] - low[0], 1.0) >= 0)
        next_low = _pick(fails & ~lower, low, new)
        next_high = _pick(lower | turns, low, _pick(fails, new, high))
        zooms = zooming | fails | turns
        if k + 1 < steps:
            further = _between(low, new, t + 0.01 * (t - low[0]), 10.0 * t)
            inner, near = _within(next_low, next_high, stuck)
            t = torch.where(done | good, t, torch.where(zooms, inner, further))
            stuck = zooms & near
        low, high = _pick(done, low, next_low), _pick(done, high, next_high)
        short = zooms & ((high[0] - low[0]).abs() * reach < SHORTEST)
        zooming, done = zooms, done | good | short
    return low[0]


def _pick(condition: Tensor, left: Point, right: Point) -> Point:
    t, f, df = [torch.where(condition, x, y) for x, y in zip(left, right, strict=True)]
    return t, f, df


def _within(low: Point, high: Point, stuck: Tensor) -> tuple[Tensor, Tensor]:
    """The next trial of a zoom, and whether it's close to an end: no two in a row may be."""
    left, right = torch.minimum(low[0], high[0]), torch.maximum(low[0], high[0])
    t = _between(low, high, left, right)
    margin = 0.1 * (right - left)
    near = torch.minimum(right - t, t - left) < margin
    pushed = near & (stuck | (t >= right) | (t <= left))
    away = torch.where(right - t < t - left, right - margin, left + margin)
    return torch.where(pushed, away, t), near & ~pushed


def _between(a: Point, b: Point, least: Tensor, most: Tensor) -> Tensor:
    """Where the cubic through two points with their slopes is least, or the middle of the bounds.

    Nothing is divided by zero on the way, so that no derivative is NaN.
    """
    (x, f, df), (z, h, dh) = _pick(a[0] <= b[0], a, b), _pick(a[0] <= b[0], b, a)
    width = z - x
    apart = width > 0
    d1 = df + dh + 3.0 * (f - h) / torch.where(apart, width, 1.0)
    square = d1 * d1 - df * dh
    real = (square >= 0) & torch.isfinite(square)
    d2 = root(torch.where(real, square, 0.0))
    below = dh - df + 2.0 * d2
    some = apart & real & (below != 0)
    t = z - width * ((dh + d2 - d1) / torch.where(some, below, 1.0))
    t = torch.minimum(torch.maximum(t, least), most)
    return torch.where(some, t, 0.5 * (least + most))


def _slope(g: list[Tensor], u: list[Tensor], like: Tensor) -> Tensor:
    """``sum Re(conj(g) u)`` over all leaves."""
    terms = []
    for x, d in zip(g, u, strict=True):
        term = (x.conj() * d).real if x.is_complex() else x * d
        terms.append(term.sum().to(like.dtype))
    return torch.stack(terms).sum() if terms else like


def _require_value_fn(fn: str, value_fn: Any) -> None:
    if value_fn is None:
        call = "update(grads, state, params, value_fn=loss)"
        raise ValueError(f"{fn}: value_fn is missing, expected {call}")
    if not callable(value_fn):
        kind = type(value_fn).__name__
        raise TypeError(f"{fn}: value_fn is a {kind}, expected a function of the params")


def _number(fn: str, what: str, value: Any, like: Tensor) -> Tensor:
    """A value as a 0-d tensor of a dtype."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.full_like(like, value)
    if not isinstance(value, Tensor):
        raise TypeError(f"{fn}: {what} a {type(value).__name__}, expected a 0-d tensor")
    if value.ndim:
        shape = tuple(value.shape)
        raise ValueError(f"{fn}: {what} a tensor of shape {shape}, expected a 0-d one")
    if not value.is_floating_point():
        raise TypeError(f"{fn}: {what} a tensor of {value.dtype}, expected a float dtype")
    return value.to(like.dtype)
