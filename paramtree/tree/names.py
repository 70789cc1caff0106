"""Trees by name: select, partition, merge, replace.

A *pattern* is a path whose names may hold ``*`` (any text within one name), and in which ``**``
stands for any number of names. A pattern or path that names a sub-tree selects all of it.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from .structure import (
    Path,
    Structure,
    as_tree,
    entries,
    flatten,
    lock,
    new,
    parse_path,
    paths,
    rebuild,
    require_same,
    require_tree,
    show_path,
    unflatten,
)

Selection = str | Path | Callable[[Path, Tensor], bool]


def select(tree: TensorDictBase, *selections: Selection) -> TensorDict:
    """Tree of the leaves that any of the selections names.

    Args:
        tree: the tree.
        selections: patterns (``"policy.*.weight"``, ``"**.bias"``), paths (``("meta", "lstm")``),
            or predicates of ``(path, leaf)``.

    Returns:
        A tree with the same names, without what was not selected.

    Raises:
        ValueError: a selection matches nothing; the message lists the nearest names.
        TypeError: a selection is of another kind.
    """
    return _split("select", tree, selections)[0]


def exclude(tree: TensorDictBase, *selections: Selection) -> TensorDict:
    """Tree without the leaves that any of the selections names: the complement of ``select``.

    Args:
        tree: the tree.
        selections: as in ``select``.

    Returns:
        What is left.

    Raises:
        ValueError: a selection matches nothing; the message lists the nearest names.
        TypeError: a selection is of another kind.
    """
    return _split("exclude", tree, selections)[1]


def partition(tree: TensorDictBase, *selections: Selection) -> tuple[TensorDict, TensorDict]:
    """Two trees, of the selected leaves and of the rest; ``merge`` puts them together again.

    Args:
        tree: the tree.
        selections: as in ``select``.

    Returns:
        ``(selected, rest)``; sub-trees without leaves go to the rest.

    Raises:
        ValueError: a selection matches nothing; the message lists the nearest names.
        TypeError: a selection is of another kind.
    """
    return _split("partition", tree, selections)


def _split(
    fn: str, tree: TensorDictBase, selections: Sequence[Any]
) -> tuple[TensorDict, TensorDict]:
    require_tree(fn, "tree", tree)
    if not selections:
        raise ValueError(f"{fn}: no selection given, expected patterns, paths or predicates")
    chosen, rest = _divide(tree, (), matched(fn, *flatten(tree), selections))
    empty = rebuild(tree, {})
    return (empty if chosen is None else chosen), (empty if rest is None else rest)


def matched(
    fn: str, leaves: Sequence[Tensor], structure: Structure, selections: Sequence[Any]
) -> set[Path]:
    """Paths of the leaves that any of the selections names.

    Args:
        fn: name of the function that was called, for the message.
        leaves: of a tree.
        structure: of the tree.
        selections: as in ``select``.

    Returns:
        The paths.

    Raises:
        ValueError: a selection matches nothing.
        TypeError: a selection is of another kind.
    """
    known = structure.paths()
    wanted: set[Path] = set()
    for selection in selections:
        if callable(selection):
            found = {
                path for path, leaf in zip(known, leaves, strict=True) if selection(path, leaf)
            }
            if not found:
                raise ValueError(f"{fn}: the predicate holds for none of {_list(known)}")
        else:
            pattern = parse_path(fn, selection)
            compare = _same if isinstance(selection, tuple) else _like
            found = {path for path in known if _matches(pattern, path, compare)}
            if not found:
                raise ValueError(
                    f"{fn}: {show_path(pattern)} matches nothing; {_nearest(known, pattern)}"
                )
        wanted |= found
    return wanted


def _divide(tree: TensorDictBase, prefix: Path, wanted: set[Path]) -> tuple[Any, Any]:
    source = entries(tree)
    chosen: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in source.items():
        path = (*prefix, name)
        subtree = as_tree(value)
        if subtree is not None:
            inside, outside = _divide(subtree, path, wanted)
            if inside is not None:
                chosen[name] = inside
            if outside is not None:
                rest[name] = outside
        else:
            (chosen if path in wanted else rest)[name] = value
    return (
        rebuild(tree, chosen) if chosen else None,
        rebuild(tree, rest) if rest or not source else None,
    )


def _matches(pattern: Path, path: Path, compare: Callable[[str, str], bool]) -> bool:
    """Whether the pattern names this path or a sub-tree that holds it."""
    if not pattern:
        return True
    if pattern[0] == "**" and compare is _like:
        rest = pattern[1:]
        return not rest or any(_matches(rest, path[i:], compare) for i in range(len(path)))
    return bool(path) and compare(pattern[0], path[0]) and _matches(pattern[1:], path[1:], compare)


def _same(pattern: str, name: str) -> bool:
    return pattern == name


def _like(pattern: str, name: str) -> bool:
    first, *parts = pattern.split("*")
    if not parts:
        return name == first
    if not name.startswith(first) or len(name) < len(first) + len(parts[-1]):
        return False
    at, end = len(first), len(name) - len(parts[-1])
    for part in parts[:-1]:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return name.endswith(parts[-1])


def _list(known: Sequence[Path]) -> str:
    shown = ", ".join(show_path(path) for path in known[:5])
    return f"{shown} and {len(known) - 5} more" if len(known) > 5 else shown or "no leaves"


def _nearest(known: Sequence[Path], wanted: Sequence[Any]) -> str:
    prefixes = {path[:i] for path in known for i in range(1, len(path) + 1)}
    texts = {".".join(path): show_path(path) for path in sorted(prefixes)}
    if not texts:
        return "the tree is empty"
    near = difflib.get_close_matches(".".join(map(str, wanted)), list(texts), n=3, cutoff=0.0)
    return f"the nearest names are {', '.join(texts[text] for text in near)}"


def merge(*trees: TensorDictBase) -> TensorDict:
    """One tree of several whose leaves have different paths.

    Args:
        trees: the trees; a sub-tree that several of them hold is merged in turn.

    Returns:
        The tree with the leaves of all.

    Raises:
        ValueError: a path is in two of the trees, or a sub-tree has two batch sizes.
        TypeError: an argument isn't a tree.
    """
    if not trees:
        raise ValueError("merge: no trees given, expected at least one")
    for index, tree in enumerate(trees):
        require_tree("merge", f"argument {index}", tree)
    out = lock(trees[0])
    for tree in trees[1:]:
        out = _merge(out, lock(tree), ())
    return out


def _merge(left: TensorDict, right: TensorDict, prefix: Path) -> TensorDict:
    if left.batch_size != right.batch_size:
        where = show_path(prefix) if prefix else "the root"
        sizes = f"{list(left.batch_size)} and {list(right.batch_size)}"
        raise ValueError(f"merge: {where} has batch sizes {sizes}, expected one")
    values = entries(left)
    for name, value in entries(right).items():
        path = (*prefix, name)
        if name not in values:
            values[name] = value
        elif isinstance(value, TensorDictBase) and isinstance(values[name], TensorDictBase):
            values[name] = _merge(values[name], value, path)
        else:
            text = show_path(path)
            raise ValueError(
                f"merge: {text} is in two trees; drop it from one first: exclude(tree, {text})"
            )
    return rebuild(left, values)


def replace(tree: TensorDictBase, values: Mapping[Any, Any]) -> TensorDict:
    """Tree with other values at some paths, as in ``replace(params, {("policy", i): tree})``.

    Args:
        tree: the tree.
        values: a value for each path, applied in order. A path may hold indices of batch axes; the
            last name may be a new one. A number or a 0-d tensor is expanded to the batch size of
            the tree that it goes into; a tree takes the place of a sub-tree.

    Returns:
        The new tree; it shares all other leaves, and carries the gradient of the values.

    Raises:
        ValueError: a path leads nowhere, an index is out of range, or a shape does not fit.
        TypeError: a path or a value is of another kind, or a row of another dtype.
    """
    require_tree("replace", "tree", tree)
    if not isinstance(values, Mapping):
        kind = type(values).__name__
        raise TypeError(f"replace: values is a {kind}, expected {{path: value}}")
    out = lock(tree)
    for path, value in values.items():
        out = _replace(out, parse_path("replace", path, indices=True), value, ())
    return out


def _replace(node: Any, path: tuple[Any, ...], value: Any, done: tuple[Any, ...]) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if not isinstance(head, str):
        return _replace_row(node, head, rest, value, done)
    subtree = as_tree(node)
    if subtree is None:
        raise ValueError(
            f"replace: {show_path(done)} is a leaf, so {show_path((*done, *path))} is not there"
        )
    node, source = subtree, entries(subtree)
    if rest and head not in source:
        raise ValueError(
            f"replace: {show_path((*done, head))} is not there; {_nearest(paths(node), path)}"
        )
    if not rest:
        value = _fitting(value, node, (*done, head), source.get(head))
    source[head] = _replace(source.get(head), rest, value, (*done, head))
    return rebuild(node, source)


def _fitting(value: Any, node: TensorDictBase, path: tuple[Any, ...], old: Any) -> Any:
    """The value as an entry of the node."""
    size = node.batch_size
    if isinstance(value, (bool, int, float, complex)):
        like = old if isinstance(old, Tensor) else next(iter(flatten(node)[0]), torch.zeros(()))
        value = _number(value, path, old.dtype if isinstance(old, Tensor) else None, like.device)
    if isinstance(value, TensorDictBase):
        value = lock(value)
    elif not isinstance(value, Tensor):
        kind = type(value).__name__
        raise TypeError(
            f"replace: the value for {show_path(path)} is a {kind}, "
            "expected a tensor or a TensorDict"
        )
    elif value.ndim == 0 and len(size):
        value = value.expand(size)
    if value.shape[: len(size)] != size:
        raise ValueError(
            f"replace: the value for {show_path(path)} has shape {tuple(value.shape)}, "
            f"expected it to begin with {list(size)} (the batch size that it goes into)"
        )
    return value


def _replace_row(
    node: Any, index: int, rest: tuple[Any, ...], value: Any, done: tuple[Any, ...]
) -> Any:
    path = (*done, index)
    size = node.batch_size if isinstance(node, TensorDictBase) else node.shape
    if not len(size) or not -size[0] <= index < size[0]:
        where = f"the batch size {list(size)} of {show_path(done) if done else 'the root'}"
        raise ValueError(f"replace: index {index} in {show_path(path)} is out of range for {where}")
    leaves, structure = flatten(node)
    row = unflatten(structure, [leaf[index] for leaf in leaves])
    if isinstance(row, TensorDictBase):
        row = _with_batch_size(row, node)
    fresh = _replace(row, rest, value, path)
    if isinstance(fresh, (bool, int, float, complex)) and isinstance(row, Tensor):
        fresh = _number(fresh, path, row.dtype, row.device).expand(row.shape)
    elif not isinstance(fresh, Tensor if isinstance(row, Tensor) else TensorDictBase):
        kinds = f"{type(fresh).__name__}, expected a {type(row).__name__}"
        raise TypeError(f"replace: the value for {show_path(path)} is a {kinds}")
    parts, other = flatten(fresh)
    require_same("replace", (f"the value for {show_path(path)}", other), ("the tree", structure))
    for name, leaf, part in zip(structure.paths(), leaves, parts, strict=True):
        text = show_path((*path, *name))
        if part.shape != leaf.shape[1:]:
            wanted = f"{tuple(leaf.shape[1:])} (from {show_path((*done, *name))})"
            raise ValueError(
                f"replace: the value for {text} has shape {tuple(part.shape)}, expected {wanted}"
            )
        if part.dtype != leaf.dtype:
            raise TypeError(f"replace: the value for {text} is {part.dtype}, expected {leaf.dtype}")
    rows = [
        torch.select_scatter(leaf, part, 0, index) for leaf, part in zip(leaves, parts, strict=True)
    ]
    return unflatten(structure, rows)


def _number(
    value: complex, path: tuple[Any, ...], dtype: torch.dtype | None, device: Any
) -> Tensor:
    """0-d tensor of a number; of a dtype where one is given, which has to hold it."""
    kinds = (int, float) if dtype is None or dtype.is_floating_point else int
    if dtype is not None and not dtype.is_complex and not isinstance(value, kinds):
        raise TypeError(f"replace: the value for {show_path(path)} is {value}, expected {dtype}")
    return torch.as_tensor(value, dtype=dtype, device=device)


def _with_batch_size(row: TensorDict, node: TensorDictBase) -> TensorDict:
    """One row of a node: every batch size without its first axis."""
    values = {
        name: _with_batch_size(value, node.get(name))
        if isinstance(value, TensorDictBase)
        else value
        for name, value in entries(row).items()
    }
    return new(values, node.batch_size[1:])
