"""Slow copies of a tree: moved a little at each step, or replaced every so often."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree
from .arguments import (
    Hyper,
    Tree,
    cast,
    require_hyper,
    require_int,
    working,
)


def incremental_update(new: Tree, old: Tree, step_size: Hyper) -> TensorDict:
    """A slow copy after a step towards a tree: ``step_size new + (1 - step_size) old``.

    Half-precision leaves are mixed in float32 and rounded once.

    Args:
        new: tree of float or complex leaves, such as the params of the agent that learns.
        old: the slow copy, with the same names, shapes and dtypes.
        step_size: float in [0, 1] or 0-d tensor.

    Returns:
        The next slow copy, differentiable in all three.

    Raises:
        ValueError: names or shapes differ, or ``step_size`` is out of range or not 0-d.
        TypeError: an argument is of another kind, dtypes differ, or a leaf is of integers: these
            have no mean (``periodic_update`` takes them).

    Reference: Polyak & Juditsky (1992), in the exponential form of Lillicrap et al. (2016),
    algorithm 1.
    """
    fn = "incremental_update"
    rows, structure = _rows(fn, new, old)
    _require_step_size(fn, step_size)
    mixed = []
    for path, x, y in rows:
        if not x.is_floating_point() and not x.is_complex():
            what = f"{x.dtype}, expected a float dtype; tree.partition takes it out"
            raise TypeError(f"{fn}: new at {tree.show_path(path)} is {what}")
        wide = x.to(working(x))
        a = cast(step_size, wide)
        mixed.append((a * wide + (1 - a) * y.to(wide.dtype)).to(x.dtype))
    return tree.unflatten(structure, mixed)


def periodic_update(new: Tree, old: Tree, steps: int | Tensor, every: int | Tensor) -> TensorDict:
    """A slow copy that is replaced at every k-th step: ``new`` where k divides ``steps``.

    Args:
        new: tree of leaves of any dtype, such as the params of the agent that learns.
        old: the slow copy, with the same names, shapes and dtypes.
        steps: int, not negative, or 0-d integer tensor.
        every: k; int, at least 1, or 0-d integer tensor.

    Returns:
        The next slow copy, differentiable in the tree that it's made of.

    Raises:
        ValueError: names or shapes differ, a number is out of range or a tensor not 0-d.
        TypeError: an argument is of another kind, or dtypes differ.

    Reference: Mnih et al. (2015), algorithm 1.
    """
    fn = "periodic_update"
    rows, structure = _rows(fn, new, old)
    _require_whole(fn, "steps", steps, 0)
    _require_whole(fn, "every", every, 1)
    rest = steps % every
    if not isinstance(rest, Tensor):
        rest = torch.tensor(rest, device=rows[0][1].device if rows else None)
    due = rest == 0
    return tree.unflatten(structure, [torch.where(due, x, y) for _, x, y in rows])


def _rows(fn: str, new: Any, old: Any) -> tuple[list[tuple[Any, Tensor, Tensor]], tree.Structure]:
    """Path and leaves of two trees that have to agree, and the structure of the old one."""
    tree.require_tree(fn, "new", new)
    tree.require_tree(fn, "old", old)
    (x, given), (y, structure) = tree.flatten(new), tree.flatten(old)
    tree.require_same(fn, ("new", given), ("old", structure))
    rows = list(zip(structure.paths(), x, y, strict=True))
    for path, a, b in rows:
        where = f"{fn}: new at {tree.show_path(path)}"
        if a.shape != b.shape:
            shapes = f"{tuple(a.shape)}, expected {tuple(b.shape)}"
            raise ValueError(f"{where} has shape {shapes} (from old)")
        if a.dtype != b.dtype:
            raise TypeError(f"{where} is {a.dtype}, expected {b.dtype} (from old)")
    return rows, structure


def _require_step_size(fn: str, value: Any) -> None:
    require_hyper(fn, "step_size", value, low=0, schedule=False)
    if not isinstance(value, Tensor) and value > 1:
        raise ValueError(f"{fn}: step_size is {value}, expected at most 1")


def _require_whole(fn: str, name: str, value: Any, low: int) -> None:
    if not isinstance(value, Tensor):
        return require_int(fn, name, value, low)
    if value.ndim:
        shape = f"shape {tuple(value.shape)}, expected an int or a 0-d tensor"
        raise ValueError(f"{fn}: {name} has {shape}; vmap maps over one value per task")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{fn}: {name} is {value.dtype}, expected an integer dtype")
    return None
