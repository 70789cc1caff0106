"""Gradients of several calls put together: a step every k-th call, zero updates in between.

``multi_steps`` wraps an optimizer, whose state stays as it is in between; ``apply_every`` is a link
of a chain, whose other links see every call. Sums of float16 and bfloat16 are kept in float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree
from .arguments import (
    Tree,
    aligned,
    parts,
    require_flag,
    require_int,
    working,
    zero_count,
)
from .base import Step, Transform, require_transform, updated


def multi_steps(
    inner: Transform, every: int | Callable[[Tensor], int | Tensor], mean: bool = True
) -> Transform:
    """An optimizer that steps at every k-th call, with the gradients of all k put together.

        acc = acc + (g - acc) / (i + 1)      at the i-th call of a step, i = 0 ... k - 1
        u = inner(acc) at i = k - 1, where acc and i begin anew;  u = 0 before

    Args:
        inner: the optimizer; its state changes at its steps alone.
        every: k, at least 1, or a function of the 0-d int64 count of the inner optimizer's steps.
        mean: whether it gets the mean of the gradients, or their sum.

    Returns:
        The transform; its state holds ``mini_step`` (i), ``gradient_step`` (the inner steps so
        far), ``acc_grads`` and ``inner``.

    Raises:
        ValueError: ``every`` is less than 1; later, in ``update``: so is what the function gave.
        TypeError: an argument is of another kind.
    """
    fn = "multi_steps"
    require_transform(fn, "inner", inner)
    if not callable(every):
        require_int(fn, "every", every, 1)
    require_flag(fn, "mean", mean)

    def init(params: Tree) -> TensorDict:
        (leaves,), structure = aligned(fn, params)
        counts = {name: zero_count(leaves) for name in ("mini_step", "gradient_step")}
        return tree.new(
            {**counts, "acc_grads": _zeros(structure, leaves), "inner": inner.init(params)}
        )

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        names = ("mini_step", "gradient_step", "acc_grads", "inner")
        mini, steps, acc_grads, before = parts(fn, state, *names)
        (_, g), structure = aligned(fn, params, grads=grads)
        acc = _sums(fn, "acc_grads", acc_grads, params)
        if mean:
            acc = [a + (x.to(a.dtype) - a) / (mini + 1).to(a.dtype) for x, a in _pairs(g, acc)]
        else:
            acc = [a + x.to(a.dtype) for x, a in _pairs(g, acc)]
        due = mini + 1 >= _calls(every, steps)
        mixed = tree.unflatten(structure, [a.to(x.dtype) for x, a in _pairs(g, acc)])
        updates, after = updated(inner, mixed, before, params, extra)
        new = {
            "mini_step": torch.where(due, 0, mini + 1),
            "gradient_step": steps + due.to(steps.dtype),
            "acc_grads": tree.unflatten(structure, [torch.where(due, 0.0, a) for a in acc]),
            "inner": tree.where(due, after, before),
        }
        return tree.map(lambda u: torch.where(due, u, 0.0), updates), tree.new(new)

    return Transform(init, update)


def apply_every(k: int = 1) -> Transform:
    """The sum of the updates of k calls at each k-th, zeros in between.

    Args:
        k: at least 1.

    Returns:
        The transform; its state holds ``count`` and ``grad_acc``.

    Raises:
        ValueError: ``k`` is less than 1.
        TypeError: it's of another kind.
    """
    fn = "apply_every"
    require_int(fn, "k", k, 1)

    def init(params: Tree) -> TensorDict:
        (leaves,), structure = aligned(fn, params)
        return tree.new({"count": zero_count(leaves), "grad_acc": _zeros(structure, leaves)})

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        count, grad_acc = parts(fn, state, "count", "grad_acc")
        (_, g), structure = aligned(fn, params, grads=grads)
        first, due = count % k == 0, (count + 1) % k == 0
        acc = _sums(fn, "grad_acc", grad_acc, params)
        acc = [torch.where(first, 0.0, a) + x.to(a.dtype) for x, a in _pairs(g, acc)]
        updates = [torch.where(due, a, 0.0).to(x.dtype) for x, a in _pairs(g, acc)]
        after = {"count": count + 1, "grad_acc": tree.unflatten(structure, acc)}
        return tree.unflatten(structure, updates), tree.new(after)

    return Transform(init, update)


def _calls(every: int | Callable[[Tensor], int | Tensor], steps: Tensor) -> int | Tensor:
    """The number of calls that the next inner step takes."""
    if not callable(every):
        return every
    found = every(steps)
    if isinstance(found, Tensor):
        if found.ndim:
            shape = f"shape {tuple(found.shape)}, expected a 0-d tensor"
            raise ValueError(f"multi_steps: what the function every gave has {shape}")
        return found
    if not isinstance(found, int | float) or isinstance(found, bool):
        kind = type(found).__name__
        raise TypeError(f"multi_steps: the function every gave a {kind}, expected an int")
    if found < 1:
        raise ValueError(f"multi_steps: the function every gave {found}, expected at least 1")
    return int(found)


def _pairs(grads: list[Tensor], sums: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(grads, sums, strict=True))


def _sums(fn: str, name: str, sums: Tree, params: Tree) -> list[Tensor]:
    """The leaves of a tree of sums, checked against the params."""
    wide = tree.map(lambda leaf: leaf.to(working(leaf)), params)
    return aligned(fn, wide, **{f"state[{name!r}]": sums})[0][1]


def _zeros(structure: tree.Structure, leaves: list[Tensor]) -> TensorDict:
    sums = [torch.zeros_like(leaf, dtype=working(leaf)) for leaf in leaves]
    return tree.unflatten(structure, sums)
