"""Gradients from where the loss is worst nearby, so that the minima that are found are flat."""

from collections.abc import Callable
from typing import Any

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
    parts,
    require_flag,
    require_hyper,
    zero_count,
)
from .base import Step, Transform, apply_updates, require_transform, updated
from .clipping import global_norm
from .leafwise import Work


def sam(
    optimizer: Transform,
    rho: Hyper | Schedule = 0.05,
    adaptive: bool = False,
    alternating: bool = False,
) -> Transform:
    """Sharpness-aware minimization: an optimizer fed with the gradient a little uphill.

        e = rho g / |g|,   u = optimizer(gradient at p + e)

    ``update(grads, state, params, grad_fn=grad_fn)`` calls ``grad_fn(params) -> grads`` once, at
    ``p + e``. The norm is that of all leaves together; e is 0, with its derivatives, where the
    gradient is. Derivatives go through e, of any order.

    Where the loop can't hand over such a function, ``alternating`` makes two updates of a step, as
    optax's ``sam`` does: the first moves the params to ``p + e``, and the one after it, given the
    gradient there, moves them to ``p + u``.

    Args:
        optimizer: the transform that u is from.
        rho: how far uphill; float or 0-d tensor, not negative, or a schedule of the steps so far.
        adaptive: in the units of each parameter, ``e = rho p^2 g / |p g|``, whatever their scale.
        alternating: one update uphill and one that steps, without ``grad_fn``; the updates are to
            be applied as they come.

    Returns:
        The transform; its state holds ``count`` and ``optimizer``, and with ``alternating``
        ``cache``, the params of the last step.

    Raises:
        ValueError: ``rho`` is negative or not 0-d; later, in ``update``: ``grad_fn`` is missing, or
            gave other names or shapes.
        TypeError: an argument is of another kind; later: ``grad_fn`` isn't a function, or gave
            another dtype.

    Reference: Foret et al. (2021), algorithm 1; Kwon et al. (2021), equation 3, with |w| for T_w.
    """
    fn = "sam"
    require_transform(fn, "optimizer", optimizer)
    require_hyper(fn, "rho", rho, low=0)
    require_flag(fn, "adaptive", adaptive)
    require_flag(fn, "alternating", alternating)

    def init(params: Tree) -> TensorDict:
        (leaves,), structure = aligned(fn, params)
        state: dict[str, Any] = {"count": zero_count(leaves), "optimizer": optimizer.init(params)}
        if alternating:
            state["cache"] = tree.unflatten(structure, [leaf.clone() for leaf in leaves])
        return tree.new(state)

    def uphill(grads: Tree, params: Tree, count: Tensor) -> TensorDict:
        (p, g), structure = aligned(fn, params, grads=grads)
        work = Work(p, structure)
        far = _uphill(work.params, work.pack(g), at_count(fn, "rho", rho, count), adaptive)
        return tree.unflatten(structure, [e.to(x.dtype) for e, x in zip(far, p, strict=True)])

    def update(
        grads: Tree, state: Tree, params: Tree, *, grad_fn: Any = None, **extra: Any
    ) -> Step:
        count, before = parts(fn, state, "count", "optimizer")
        there = apply_updates(params, uphill(grads, params, count))
        found = _called(fn, grad_fn, there)
        aligned(fn, params, **{"what grad_fn gave": found})
        updates, after = updated(optimizer, found, before, params, extra)
        return updates, tree.new({"count": count + 1, "optimizer": after})

    def alternate(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        count, before, cache = parts(fn, state, "count", "optimizer", "cache")
        # a step is two updates, and rho's schedule counts steps
        first, climb = count % 2 == 0, uphill(grads, params, count // 2)
        trees = {"state['cache']": cache}
        (p, kept), structure = aligned(fn, params, **trees)
        updates, after = updated(optimizer, grads, before, cache, extra)
        u = aligned(fn, params, updates=updates)[0][1]
        steps = [c - x + y for c, x, y in zip(kept, p, u, strict=True)]
        cached = [torch.where(first, x, c) for x, c in zip(p, kept, strict=True)]
        new = {
            "count": count + 1,
            "optimizer": tree.where(first, before, after),
            "cache": tree.unflatten(structure, cached),
        }
        return tree.where(first, climb, tree.unflatten(structure, steps)), tree.new(new)

    return Transform(init, alternate if alternating else update)


def _uphill(p: list[Tensor], g: list[Tensor], rho: Hyper, adaptive: bool) -> list[Tensor]:
    """The way to the worst point nearby, of length rho."""
    if not p:
        return p
    units = [x.abs() for x in p] if adaptive else [None] * len(p)
    g = [x if t is None else t * x for x, t in zip(g, units, strict=True)]
    size = global_norm(g)
    some = size > 0
    factor = torch.where(some, 1.0 / torch.where(some, size, 1.0), 0.0) * rho
    far = [x * cast(factor, x) for x in g]
    return [x if t is None else t * x for x, t in zip(far, units, strict=True)]


def _called(fn: str, grad_fn: Callable[[Tree], Tree] | None, params: Tree) -> Tree:
    if grad_fn is None:
        call = "update(grads, state, params, grad_fn=paramtree.grad(loss))"
        raise ValueError(f"{fn}: grad_fn is missing, expected {call}")
    if not callable(grad_fn):
        kind = type(grad_fn).__name__
        raise TypeError(f"{fn}: grad_fn is a {kind}, expected a function of the params")
    return grad_fn(params)
