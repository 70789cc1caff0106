"""Trees by row: the leading batch axis of a tree, or of each of its sub-trees that has one.

In a tree such as ``{meta: [], policy: [n_tasks]}`` the rows are the tasks, and what lies at a batch
size of ``[]`` is shared by all of them, as for ``vmap``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, is_non_tensor
from torch import Tensor

from .algebra import aligned
from .structure import (
    Structure,
    as_tree,
    entries,
    flatten,
    require_tree,
    show_path,
    unflatten,
)

Rows = Sequence[int] | Tensor


def stack(trees: Sequence[TensorDictBase]) -> TensorDict:
    """One tree with a new leading batch axis, of trees with the same names and shapes.

    Args:
        trees: n of them, with batch sizes ``[*b]``, each sub-tree with its own.

    Returns:
        The tree, with batch sizes ``[n, *b]``.

    Raises:
        ValueError: there are none, or their names, shapes, batch sizes or data beside the tensors
            differ.
        TypeError: one isn't a tree, or leaves differ in dtype.
    """
    trees = list(trees)
    if not trees:
        raise ValueError("stack: no trees given, expected at least one")
    columns, structure = aligned("stack", trees)
    for index, (tree, column) in enumerate(zip(trees, columns, strict=True)):
        for path, first, leaf in zip(structure.paths(), columns[0], column, strict=True):
            text = f"stack: {show_path(path)} of tree {index}"
            if leaf.shape != first.shape:
                wanted = f"{tuple(first.shape)} (from tree 0)"
                raise ValueError(f"{text} has shape {tuple(leaf.shape)}, expected {wanted}")
            if leaf.dtype != first.dtype:
                raise TypeError(f"{text} is {leaf.dtype}, expected {first.dtype} (from tree 0)")
        _require_batch_sizes(index, trees[0], tree, ())
    rows = [torch.stack(column) for column in zip(*columns, strict=True)]
    return unflatten(with_axis(structure, len(trees)), rows)


def _require_batch_sizes(index: int, first: Any, tree: Any, path: tuple[str, ...]) -> None:
    if tree.batch_size != first.batch_size:
        where = f"{show_path(path)} of tree {index}" if path else f"tree {index}"
        sizes = f"{list(tree.batch_size)}, expected {list(first.batch_size)} (from tree 0)"
        raise ValueError(f"stack: {where} has batch size {sizes}")
    for name, value in entries(tree).items():
        subtree, data = as_tree(value), is_non_tensor(value)
        if subtree is not None:
            _require_batch_sizes(index, as_tree(entries(first)[name]), subtree, (*path, name))
        elif data and value.data != entries(first)[name].data:
            wanted = f"{entries(first)[name].data!r} (from tree 0)"
            text = f"{show_path((*path, name))} of tree {index} is {value.data!r}"
            raise ValueError(f"stack: {text}, expected {wanted}")


def unstack(tree: TensorDictBase) -> list[TensorDict]:
    """Trees along the leading batch axis: the inverse of ``stack``.

    Args:
        tree: a tree with batch size ``[n, *b]``.

    Returns:
        n trees, views that carry gradient.

    Raises:
        ValueError: the tree has no batch axis.
        TypeError: it isn't a tree.
    """
    require_tree("unstack", "tree", tree)
    if not len(tree.batch_size):
        raise ValueError(
            "unstack: the tree has batch size [], expected a leading axis, as stack makes it"
        )
    leaves, structure = flatten(tree)
    inner = without_axis(structure)
    columns = [leaf.unbind(0) for leaf in leaves]
    return [unflatten(inner, [column[i] for column in columns]) for i in range(tree.batch_size[0])]


def with_axis(structure: Structure, size: int) -> Structure:
    """Structure whose every batch size has one more leading axis.

    Args:
        structure: what ``flatten`` gave.
        size: length of the axis.

    Returns:
        The structure.
    """
    return _rebatched(structure, lambda dims, new: [new, *dims], size)


def without_axis(structure: Structure) -> Structure:
    """Structure whose batch sizes lack their leading axis; one of ``[]`` stays.

    Args:
        structure: what ``flatten`` gave.

    Returns:
        The structure.
    """
    return _rebatched(structure, lambda dims, _: dims[1:], 0)


def _rebatched(structure: Structure, change: Callable[..., Any], size: int) -> Structure:
    """Structure with ``change(dims, new)`` for its batch sizes and the names of its dimensions."""
    if not structure.children and structure.kind != "tree":
        return structure
    children = tuple([_rebatched(child, change, size) for child in structure.children])
    sizes, dim_names = structure.batch_size, structure.dim_names
    if structure.kind == "tree":
        sizes = torch.Size(change(sizes, size))
        dim_names = None if dim_names is None else change(dim_names, None)
    kind, names, order = structure.kind, structure.names, structure.order
    return Structure(kind, names, children, order, sizes, dim_names)


def take(tree: TensorDictBase, rows: Rows) -> TensorDict:
    """Tree of some rows, in the order that is given: tasks dropped, reordered or repeated.

    Args:
        tree: a tree; its sub-trees of batch size ``[]`` are shared by all rows, and kept.
        rows: their numbers, integers or an int64 tensor ``[m]``; negative ones count from the end.

    Returns:
        The tree, with m rows; it carries gradient.

    Raises:
        ValueError: nothing has a row, sub-trees differ in how many they have, or a number is out of
            range (in a tensor: where torch says so, on the CPU).
        TypeError: it isn't a tree, or the rows are of another kind.
    """
    leaves, structure, owned, size = _with_rows("take", tree)
    index = _index("take", rows, size, leaves)
    taken = [x.index_select(0, index) if own else x for x, own in zip(leaves, owned, strict=True)]
    return unflatten(_resized(structure, index.shape[0]), taken)


def drop(tree: TensorDictBase, rows: Sequence[int]) -> TensorDict:
    """Tree without some rows; the others keep their order.

    Args:
        tree: as in ``take``.
        rows: numbers of the rows that go, integers; negative ones count from the end.

    Returns:
        The tree of the rows that are left, of which there may be none.

    Raises:
        ValueError: nothing has a row, sub-trees differ in how many they have, or a number is out of
            range.
        TypeError: it isn't a tree, or the rows are of another kind.
    """
    size = _with_rows("drop", tree)[3]
    gone = {row % size for row in _numbers("drop", rows, size)}
    return take(tree, [row for row in range(size) if row not in gone])


def concat(trees: Sequence[TensorDictBase]) -> TensorDict:
    """One tree with the rows of several, one after the other: tasks added.

    Args:
        trees: trees with the same names. What they share, at a batch size of ``[]``, has to be the
            same tensors in all.

    Returns:
        The tree, with as many rows as all have together.

    Raises:
        ValueError: there are none; names, shapes or what is shared differ; or nothing has a row.
        TypeError: one isn't a tree, or leaves differ in dtype.
    """
    trees = list(trees)
    if not trees:
        raise ValueError("concat: no trees given, expected at least one")
    columns, structure = aligned("concat", trees)
    parts = [_with_rows("concat", tree, index) for index, tree in enumerate(trees)]
    paths, joined = structure.paths(), []
    for at, (path, *column) in enumerate(zip(paths, *columns, strict=True)):
        first = column[0]
        for index, leaf in enumerate(column):
            text = f"concat: {show_path(path)} of tree {index}"
            own = parts[index][2][at]
            if own != parts[0][2][at]:
                kinds = "has rows" if own else "is shared"
                raise ValueError(f"{text} {kinds}, expected it as in tree 0")
            if not own and leaf is not first:
                way = "take the shared part from one of them, with tree.merge"
                raise ValueError(f"{text} is shared, and another tensor than in tree 0; {way}")
            if own and leaf.shape[1:] != first.shape[1:]:
                wanted = f"[rows, *{list(first.shape[1:])}] (from tree 0)"
                raise ValueError(f"{text} has shape {tuple(leaf.shape)}, expected {wanted}")
            if leaf.dtype != first.dtype:
                raise TypeError(f"{text} is {leaf.dtype}, expected {first.dtype} (from tree 0)")
        joined.append(torch.cat(column) if parts[0][2][at] else first)
    return unflatten(_resized(structure, sum([size for *_, size in parts])), joined)


def _with_rows(
    fn: str, tree: Any, index: int | None = None
) -> tuple[list[Tensor], Structure, list[bool], int]:
    """Leaves, structure, which of the leaves have rows, and how many those are."""
    name = "tree" if index is None else f"tree {index}"
    require_tree(fn, name, tree)
    leaves, structure = flatten(tree)
    owned: list[bool] = []
    sizes: dict[int, tuple[str, ...]] = {}
    _find_rows(structure, (), owned, sizes)
    if not sizes:
        raise ValueError(f"{fn}: no part of the {name} has a batch axis, so there are no rows")
    if len(sizes) > 1:
        parts = [f"{show_path(path) if path else 'the root'} {n}" for n, path in sizes.items()]
        raise ValueError(f"{fn}: parts of the {name} differ in their rows: {', '.join(parts)}")
    return leaves, structure, owned, next(iter(sizes))


def _find_rows(
    structure: Structure, path: tuple[str, ...], owned: list[bool], sizes: dict[int, Any]
) -> None:
    size = structure.batch_size
    if len(size):
        sizes.setdefault(size[0], path)
    for name, child in zip(structure.names, structure.children, strict=True):
        if child.kind == "leaf":
            owned.append(len(size) > 0)
        else:
            _find_rows(child, (*path, name), owned, sizes)


def _resized(structure: Structure, size: int) -> Structure:
    """Structure in which every batch size begins with another number of rows."""
    return _rebatched(structure, lambda dims, new: [new, *dims[1:]] if len(dims) else dims, size)


def _index(fn: str, rows: Rows, size: int, leaves: list[Tensor]) -> Tensor:
    if isinstance(rows, Tensor):
        if rows.dtype != torch.int64 or rows.ndim != 1:
            got = f"{rows.dtype} of shape {tuple(rows.shape)}"
            raise TypeError(f"{fn}: rows are {got}, expected an int64 tensor [m] or integers")
        return torch.where(rows < 0, rows + size, rows)
    numbers = [row % size for row in _numbers(fn, rows, size)]
    return torch.tensor(numbers, dtype=torch.int64, device=leaves[0].device)


def _numbers(fn: str, rows: Any, size: int) -> list[int]:
    if not isinstance(rows, list | tuple | range) or not all([type(row) is int for row in rows]):
        raise TypeError(f"{fn}: rows are {rows!r}, expected integers, such as [2, 0, 1]")
    for row in rows:
        if not -size <= row < size:
            raise ValueError(f"{fn}: row {row} is out of range for {size} rows")
    return list(rows)
