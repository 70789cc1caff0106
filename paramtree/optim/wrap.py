"""Transforms around transforms: against bad gradients, with rates in the state, with slow weights.

Each keeps the state of what it wraps under a name of its own. Nothing branches on data: both sides
of a condition are computed and one is taken, so that tasks mapped side by side may differ.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from .. import tree
from .arguments import (
    Hyper,
    Schedule,
    Tree,
    aligned,
    at_count,
    cast,
    parts,
    require_flag,
    require_hyper,
    require_int,
    zero_count,
)
from .base import Step, Transform, require_transform, updated

Measure = Callable[[Tree], Tensor | Tree]


def apply_if_finite(inner: Transform, max_consecutive_errors: int) -> Transform:
    """A transform that skips gradients with NaN or infinity in them: no update, the state stays.

    After ``max_consecutive_errors`` skipped in a row it gives up, and the inner transform gets what
    comes, until a finite gradient sets the count back. For a skipped gradient the inner transform
    is fed zeros, so that derivatives through it are finite.

    Args:
        inner: the transform.
        max_consecutive_errors: how many gradients in a row are skipped, at least 0.

    Returns:
        The transform; its state holds ``notfinite_count`` (of those in a row), ``last_finite``,
        ``total_notfinite`` and ``inner``.

    Raises:
        ValueError: ``max_consecutive_errors`` is negative.
        TypeError: an argument is of another kind.
    """
    fn = "apply_if_finite"
    require_transform(fn, "inner", inner)
    require_int(fn, "max_consecutive_errors", max_consecutive_errors, 0)
    names = ("notfinite_count", "last_finite", "total_notfinite", "inner")

    def init(params: Tree) -> TensorDict:
        zero = zero_count(aligned(fn, params)[0][0])
        values = (zero, zero == 0, zero.clone(), inner.init(params))
        return tree.new(dict(zip(names, values, strict=True)))

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        in_a_row, _, total, before = parts(fn, state, *names)
        (_, g), structure = aligned(fn, params, grads=grads)
        tests = [torch.isfinite(leaf).all() for leaf in g]
        finite = torch.stack(tests).all() if tests else in_a_row == in_a_row
        in_a_row = torch.where(finite, 0, in_a_row + 1)
        taken = finite | (in_a_row > max_consecutive_errors)
        fed = tree.unflatten(structure, [torch.where(taken, leaf, 0.0) for leaf in g])
        updates, after = updated(inner, fed, before, params, extra)
        counts = (in_a_row, finite, total + (~finite).to(total.dtype))
        values = (*counts, tree.where(taken, after, before))
        updates = tree.map(lambda u: torch.where(taken, u, 0.0), updates)
        return updates, tree.new(dict(zip(names, values, strict=True)))

    return Transform(init, update)


def lookahead(
    fast_optimizer: Transform,
    sync_period: int,
    slow_step_size: Hyper | Schedule,
    reset_state: bool = False,
) -> Transform:
    """Fast weights that are drawn back to slow ones every k steps; the params are the fast ones.

        p = p + u,   and at every k-th step   s = s + a (p - s),   p = s

    The slow weights, for evaluation, are ``state["slow"]``. The updates are to be applied as they
    come: of a chain this is the last link.

    Args:
        fast_optimizer: the transform that u is from.
        sync_period: k, at least 1.
        slow_step_size: a; float or 0-d tensor, not negative, or a schedule of the updates so far.
        reset_state: whether the fast optimizer begins anew after each k-th step.

    Returns:
        The transform; its state holds ``count``, ``slow`` and ``fast``.

    Raises:
        ValueError: ``sync_period`` is less than 1, ``slow_step_size`` negative or not 0-d.
        TypeError: an argument is of another kind.

    Reference: Zhang, Lucas, Hinton & Ba (2019), algorithm 1.
    """
    fn = "lookahead"
    require_transform(fn, "fast_optimizer", fast_optimizer)
    require_int(fn, "sync_period", sync_period, 1)
    require_hyper(fn, "slow_step_size", slow_step_size, low=0)
    require_flag(fn, "reset_state", reset_state)

    def init(params: Tree) -> TensorDict:
        (leaves,), structure = aligned(fn, params)
        slow = tree.unflatten(structure, [leaf.clone() for leaf in leaves])
        state = {"count": zero_count(leaves), "slow": slow, "fast": fast_optimizer.init(params)}
        return tree.new(state)

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        count, slow, before = parts(fn, state, "count", "slow", "fast")
        trees = {"grads": grads, "state['slow']": slow}
        (p, _, s), structure = aligned(fn, params, **trees)
        updates, after = updated(fast_optimizer, grads, before, params, extra)
        u = aligned(fn, params, updates=updates)[0][1]
        due = (count + 1) % sync_period == 0
        a = at_count(fn, "slow_step_size", slow_step_size, count)
        apart = [x + y - z for x, y, z in zip(p, u, s, strict=True)]
        u = [torch.where(due, x - (1 - cast(a, d)) * d, x) for x, d in zip(u, apart, strict=True)]
        s = [torch.where(due, x + cast(a, d) * d, x) for x, d in zip(s, apart, strict=True)]
        if reset_state:
            after = tree.where(due, fast_optimizer.init(params), after)
        new = {"count": count + 1, "slow": tree.unflatten(structure, s), "fast": after}
        return tree.unflatten(structure, u), tree.new(new)

    return Transform(init, update)


def monitor(
    updates: Measure | Mapping[str, Measure], params: Measure | Mapping[str, Measure] | None = None
) -> Transform:
    """Measurements of what comes by, kept in the state; the updates pass through unchanged.

        >>> from paramtree import optim, tree
        >>> seen = monitor({"size": tree.norm}, {"weights": tree.norm})
        >>> optimizer = optim.chain(adam=optim.adam(1e-3), seen=seen)

    holds ``state["seen", "size"]`` and ``state["seen", "weights"]``. In ``init`` updates of zeros
    are measured.

    Args:
        updates: function of the updates that gives a tensor or a tree, under its own name, or
            several under names of yours.
        params: the same of the params.

    Returns:
        The transform; its state holds the measurements of the last update by name.

    Raises:
        ValueError: there are no functions, or a name comes twice; later: a measurement's name is
            missing in the state.
        TypeError: one isn't a function; later: it gave something other than a tensor or a tree.
    """
    of_updates = _measures("updates", updates)
    of_params = _measures("params", {} if params is None else params)
    if not of_updates and not of_params:
        raise ValueError("monitor: no measurements given, expected at least one")
    for name in of_params:
        if name in of_updates:
            raise ValueError(f"monitor: {name!r} is in updates and in params, expected two names")

    def measured(updates: Tree, params: Tree) -> TensorDict:
        found = {name: _measured(name, fn(updates)) for name, fn in of_updates.items()}
        found |= {name: _measured(name, fn(params)) for name, fn in of_params.items()}
        return tree.new(found)

    def init(params: Tree) -> TensorDict:
        (leaves,), structure = aligned("monitor", params)
        zeros = tree.unflatten(structure, [torch.zeros_like(leaf) for leaf in leaves])
        return measured(zeros, params)

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        parts("monitor", state, *of_updates, *of_params)
        (_, g), structure = aligned("monitor", params, grads=grads)
        grads = tree.unflatten(structure, g)
        return grads, measured(grads, params)

    return Transform(init, update)


def _measures(argument: str, given: Any) -> dict[str, Measure]:
    """Functions by name."""
    if not isinstance(given, Mapping):
        name = getattr(given, "__name__", type(given).__name__)
        given = {name if name.isidentifier() else "measurement": given}
    for name, fn in given.items():
        if not callable(fn) or isinstance(fn, type):
            kind = type(fn).__name__
            text = f"monitor: {argument} has a {kind} under {name!r}"
            raise TypeError(f"{text}, expected a function such as tree.norm")
    return dict(given)


def _measured(name: str, value: Any) -> Any:
    if isinstance(value, TensorDictBase):
        return tree.lock(value)
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise TypeError(f"monitor: {name!r} gave a {kind}, expected a tensor or a TensorDict")
    return value
