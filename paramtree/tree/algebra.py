"""Trees as values: map, ravel, norm, where."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from .structure import (
    Structure,
    flatten,
    require_same,
    require_tree,
    show_path,
    unflatten,
)


def map(fn: Callable[..., Tensor], tree: TensorDictBase, *others: TensorDictBase) -> TensorDict:
    """Tree of ``fn(leaf, *other_leaves)``, leaves brought together by name.

    Args:
        fn: function of one leaf of each tree.
        tree: the tree whose batch sizes the result keeps, as far as the new shapes begin with them.
        others: trees with the same names, in any order.

    Returns:
        The tree of the results.

    Raises:
        ValueError: the names differ; the message says which.
        TypeError: an argument isn't a tree, or ``fn`` gives something other than a tensor.
    """
    return _map("map", lambda _, *leaves: fn(*leaves), tree, others)


def map_with_path(
    fn: Callable[..., Tensor], tree: TensorDictBase, *others: TensorDictBase
) -> TensorDict:
    """Tree of ``fn(path, leaf, *other_leaves)``.

    Args:
        fn: function of a path, a tuple of names, and one leaf of each tree.
        tree: as in ``map``.
        others: as in ``map``.

    Returns:
        The tree of the results.

    Raises:
        ValueError: the names differ; the message says which.
        TypeError: an argument isn't a tree, or ``fn`` gives something other than a tensor.
    """
    return _map("map_with_path", fn, tree, others)


def _map(
    name: str, fn: Callable[..., Tensor], tree: TensorDictBase, others: Sequence[Any]
) -> TensorDict:
    columns, structure = aligned(name, [tree, *others])
    results = []
    for path, *row in zip(structure.paths(), *columns, strict=True):
        result = fn(path, *row)
        if not isinstance(result, Tensor):
            kind = type(result).__name__
            raise TypeError(f"{name}: fn gave a {kind} for {show_path(path)}, expected a tensor")
        results.append(result)
    return unflatten(structure, results)


def aligned(fn: str, trees: Sequence[Any]) -> tuple[list[list[Tensor]], Structure]:
    """Leaves of trees, brought together by name.

    Args:
        fn: name of the function that was called, for the message.
        trees: at least one.

    Returns:
        ``(columns, structure)``: the leaves of each tree, and the structure of the first.

    Raises:
        ValueError: the names differ.
        TypeError: one isn't a tree.
    """
    columns = []
    first: Structure | None = None
    for index, tree in enumerate(trees):
        require_tree(fn, f"tree {index}", tree)
        leaves, structure = flatten(tree)
        first = first or structure
        require_same(fn, ("tree 0", first), (f"tree {index}", structure))
        columns.append(leaves)
    assert first is not None
    return columns, first


def paired(fn: str, left: Any, right: Any) -> tuple[list[Tensor], list[Tensor], Structure]:
    """Leaves of two trees of the same names and shapes.

    Args:
        fn: name of the function that was called, for the message.
        left: a tree.
        right: a tree.

    Returns:
        ``(left leaves, right leaves, structure)``, with the structure of the left one.

    Raises:
        ValueError: names or shapes differ.
        TypeError: one isn't a tree.
    """
    (a, b), structure = aligned(fn, [left, right])
    for at, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape:
            where = f"{show_path(structure.paths()[at])} of tree 1 has shape {tuple(y.shape)}"
            raise ValueError(f"{fn}: {where}, expected {tuple(x.shape)} (from tree 0)")
    return a, b, structure


def ravel(tree: TensorDictBase) -> tuple[Tensor, Callable[[Tensor], TensorDict]]:
    """All leaves as one vector, the names of each level sorted, and the way back.

    Args:
        tree: a tree whose leaves have one dtype.

    Returns:
        ``(vector [n], unravel)``; ``unravel(vector [n]) -> tree`` keeps the vector's dtype.

    Raises:
        TypeError: the leaves' dtypes differ.
    """
    require_tree("ravel", "tree", tree)
    leaves, structure = flatten(tree)
    for path, leaf in zip(structure.paths(), leaves, strict=True):
        if leaf.dtype != leaves[0].dtype:
            first = f"{leaves[0].dtype} (from {show_path(structure.paths()[0])})"
            raise TypeError(
                f"ravel: {show_path(path)} is {leaf.dtype}, expected {first}; "
                "select one dtype first"
            )
    shapes = [leaf.shape for leaf in leaves]
    sizes = [leaf.numel() for leaf in leaves]
    vector = torch.cat([leaf.reshape(-1) for leaf in leaves]) if leaves else torch.zeros(0)

    def unravel(vector: Tensor) -> TensorDict:
        if vector.ndim != 1 or vector.shape[0] != sum(sizes):
            raise ValueError(
                f"unravel: vector has shape {tuple(vector.shape)}, "
                f"expected [{sum(sizes)}] (from the tree)"
            )
        parts = vector.split(sizes) if sizes else ()
        return unflatten(structure, [p.reshape(s) for p, s in zip(parts, shapes, strict=True)])

    return vector, unravel


def norm(tree: TensorDictBase, ord: float = 2) -> Tensor:
    """Norm of all leaves as one vector: ``(sum |x|^ord)^(1/ord)``, its derivative taken as 0 at 0.

    Args:
        tree: a tree of float leaves.
        ord: 1, 2 or infinity.

    Returns:
        0-d tensor, 0 for a tree without leaves.

    Raises:
        ValueError: ``ord`` is another number.
        TypeError: a leaf is not of a float dtype.
    """
    require_tree("norm", "tree", tree)
    if ord not in (1, 2, float("inf")):
        raise ValueError(f"norm: ord is {ord!r}, expected 1, 2 or inf")
    leaves, structure = flatten(tree)
    for path, leaf in zip(structure.paths(), leaves, strict=True):
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(f"norm: {show_path(path)} is {leaf.dtype}, expected a float dtype")
    parts = [
        leaf.abs() if ord != 2 or leaf.is_complex() else leaf for leaf in leaves if leaf.numel()
    ]
    if not parts:
        return torch.zeros((), device=leaves[0].device if leaves else None)
    if ord == 2:
        return root(sum_of([(part * part).sum() for part in parts]))
    if ord == 1:
        return sum_of([part.sum() for part in parts])
    return torch.stack([part.amax() for part in parts]).amax()


def sum_of(terms: Sequence[Tensor]) -> Tensor:
    """Sum of 0-d tensors.

    Args:
        terms: at least one.

    Returns:
        0-d tensor.
    """
    return torch.stack(list(terms)).sum() if len(terms) > 1 else terms[0]


def root(x: Tensor) -> Tensor:
    """Square root whose derivatives are taken as 0 at 0.

    Args:
        x: any shape, not negative; 0 stands for what is.

    Returns:
        The same shape.
    """
    zero = x <= 0
    return x.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def vdot(left: TensorDictBase, right: TensorDictBase) -> Tensor:
    """Inner product of two trees, ``sum conj(x) y`` over all leaves.

    Args:
        left: a tree.
        right: a tree with the same names and shapes.

    Returns:
        0-d tensor, 0 for trees without leaves.

    Raises:
        ValueError: names or shapes differ.
    """
    a, b, _ = paired("vdot", left, right)
    terms = [((x.conj() if x.is_complex() else x) * y).sum() for x, y in zip(a, b, strict=True)]
    return sum_of(terms) if terms else torch.zeros(())


def where(condition: Tensor, left: TensorDictBase, right: TensorDictBase) -> TensorDict:
    """Tree with the leaves of one tree where the condition holds, and of the other elsewhere.

    Args:
        condition: bool, 0-d or of a shape that every leaf's shape begins with, such as
            ``[n_tasks]``.
        left: the tree where it holds.
        right: the tree elsewhere, with the same names and shapes.

    Returns:
        The tree, with the batch sizes of the left one.

    Raises:
        ValueError: names or shapes differ.
        TypeError: the condition isn't bool.
    """
    if not isinstance(condition, Tensor) or condition.dtype != torch.bool:
        got = getattr(condition, "dtype", type(condition).__name__)
        raise TypeError(f"where: condition is {got}, expected a bool tensor")
    a, b, structure = paired("where", left, right)
    out = []
    for path, x, y in zip(structure.paths(), a, b, strict=True):
        if x.shape[: condition.ndim] != condition.shape:
            raise ValueError(
                f"where: condition has shape {tuple(condition.shape)}, "
                f"expected a beginning of {tuple(x.shape)} (from {show_path(path)})"
            )
        wide = condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim))
        out.append(torch.where(wide, x, y))
    return unflatten(structure, out)
