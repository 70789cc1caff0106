"""Building and reading trees: leaves out, leaves in, names kept.

What tensordict keeps private is touched here and in ``donation.py`` alone. TensorDict is registered
with optree under the namespace ``"paramtree"``.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import optree
import torch
from tensordict import NonTensorData, TensorDict, TensorDictBase, is_non_tensor
from torch import Tensor

Path = tuple[str, ...]


def new(entries: Mapping[str, Any], batch_size: Sequence[int] = ()) -> TensorDict:
    """Locked tree, built without checks: ``TensorDict(entries, batch_size).lock_()``, but fast.

    Args:
        entries: tensors whose shapes begin with ``batch_size``, and trees that are locked already.
        batch_size: leading shape that the entries share.

    Returns:
        The tree; it shares the tensors.
    """
    return _node(dict(entries), torch.Size(batch_size))


def rebuild(tree: TensorDictBase, entries: Mapping[str, Any]) -> TensorDict:
    """Locked tree of other entries, with the batch size and the named dimensions of a tree.

    Args:
        tree: the tree whose level is built again.
        entries: tensors whose shapes begin with its batch size, and trees that are locked already.

    Returns:
        The tree; it shares the tensors.
    """
    return _node(dict(entries), tree.batch_size, _dim_names(tree))


def entries(tree: TensorDictBase) -> dict[str, Any]:
    """Names and values of one level: ``dict(tree.items())`` in a fifth of the time.

    Args:
        tree: the tree.

    Returns:
        A new dictionary of tensors, sub-trees and whatever else the tree holds.
    """
    if type(tree) is TensorDict:
        return dict(tree._tensordict)
    names = tree.keys()  # a lazy stack iterates over its rows, so its keys are asked for
    return {name: tree.get(name) for name in names}


def values(tree: Any, names: Collection[str]) -> list[Any] | None:
    """Values of one level in the order of some names: ``[tree[name] for name in names]``, but fast.

    Args:
        tree: the tree.
        names: names, each of them once.

    Returns:
        The values; None where the tree has other names, or is none.
    """
    if type(tree) is TensorDict:
        source = tree._tensordict
    elif isinstance(tree, TensorDictBase):
        source = entries(tree)
    else:
        return None
    if len(source) != len(names):
        return None
    try:
        return [source[name] for name in names]
    except KeyError:
        return None


def lock(tree: TensorDictBase) -> TensorDict:
    """Locked tree with the same leaves; the one that was given stays as it was.

    Args:
        tree: a tree, locked or not.

    Returns:
        The tree itself where it's locked, else a new one that shares its leaves.
    """
    if type(tree) is TensorDict and tree._is_locked:
        return tree
    return rebuild(tree, {name: _locked(value) for name, value in entries(tree).items()})


def _locked(value: Any) -> Any:
    subtree = as_tree(value)
    return value if subtree is None else lock(subtree)


def as_tree(value: Any) -> TensorDictBase | None:
    """The tree that a value is, if it's one; a tensorclass is one too: its names are what matters.

    Args:
        value: an entry of a tree, or of a nest.

    Returns:
        The tree, or None for a tensor and for data that holds no tensors.
    """
    if type(value) is TensorDict:
        return value
    if isinstance(value, Tensor) or is_non_tensor(value):
        return None
    if isinstance(value, TensorDictBase):
        return value
    # not tensordict's is_tensorclass: it keeps a list of types that compiled code would depend on
    return value._tensordict if getattr(type(value), "_is_tensorclass", False) else None


class Structure:
    """What is left of a nest when its tensors are taken out; equal where kinds and names are.

    Batch sizes and the order of names are kept, for building the nest again, and not compared.
    ``count`` is the number of leaves.
    """

    def __init__(
        self,
        kind: Any,
        names: tuple[Any, ...] = (),
        children: tuple["Structure", ...] = (),
        order: tuple[Any, ...] = (),
        batch_size: torch.Size = torch.Size(()),  # noqa: B008 (a constant)
        dim_names: Any = None,
        static: Any = None,
        count: int | None = None,
    ) -> None:
        self.kind, self.names, self.children, self.order = kind, names, children, order
        self.batch_size, self.dim_names, self.static = batch_size, dim_names, static
        if count is None:
            count = 1 if kind == "leaf" else sum([child.count for child in children])
        self.count = count

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Structure)
            and self.kind == other.kind
            and self.names == other.names
            and self.children == other.children
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.names, self.children))

    def __repr__(self) -> str:
        return f"Structure({', '.join(show_path(path) for path in self.paths())})"

    def paths(self) -> list[tuple[Any, ...]]:
        """Path of each leaf, in the order of ``flatten``."""
        if self.kind == "leaf":
            return [()]
        pairs = zip(self.names, self.children, strict=True)
        return [(name, *path) for name, child in pairs for path in child.paths()]


_LEAF = Structure("leaf")


def flatten(nest: Any) -> tuple[list[Tensor], Structure]:
    """Tensors of a nest, the names of each level sorted, and the structure that is left.

    Args:
        nest: a tree, a tensor, or tuples, lists and dictionaries of them; whatever else there is
            stays in the structure.

    Returns:
        ``(leaves, structure)``, which ``unflatten`` puts together again.
    """
    leaves: list[Tensor] = []
    return leaves, _flatten(nest, leaves)


def _flatten(value: Any, leaves: list[Tensor]) -> Structure:
    if isinstance(value, Tensor):
        leaves.append(value)
        return _LEAF
    tree = value if type(value) is TensorDict else as_tree(value)
    if tree is not None:
        source = tree._tensordict if type(tree) is TensorDict else entries(tree)
        names, children, before = tuple(sorted(source)), [], len(leaves)
        for name in names:
            item = source[name]
            if isinstance(item, Tensor):  # what a call would do, without the call
                leaves.append(item)
                children.append(_LEAF)
            else:
                children.append(_flatten(item, leaves))
        size, dim_names, count = tree.batch_size, _dim_names(tree), len(leaves) - before
        parts = names, tuple(children), tuple(source), size, dim_names
        return Structure("tree", *parts, count=count)
    if isinstance(value, (tuple, list)):  # noqa: UP038 (compiled code knows this form)
        children = tuple([_flatten(item, leaves) for item in value])
        return Structure(type(value), tuple(range(len(children))), children)
    if isinstance(value, dict):
        names = tuple(sorted(value))
        children = tuple([_flatten(value[name], leaves) for name in names])
        return Structure(dict, names, children, tuple(value))
    return Structure("static", static=value)


def unflatten(structure: Structure, leaves: Sequence[Tensor]) -> Any:
    """Nest of a structure and its leaves: the inverse of ``flatten``.

    Args:
        structure: what ``flatten`` gave.
        leaves: one tensor for each of its leaves. Where the shapes no longer begin with a
            sub-tree's batch size, it keeps as much of it as they share.

    Returns:
        The nest, its trees locked.

    Raises:
        ValueError: there are more or fewer leaves than the structure has.
    """
    if len(leaves) != structure.count:
        raise ValueError(
            f"unflatten: got {len(leaves)} leaves, expected {structure.count} (from {structure})"
        )
    return _unflatten(structure, leaves, 0)


def _unflatten(structure: Structure, leaves: Sequence[Tensor], at: int) -> Any:
    """Nest of a structure whose leaves begin at a place of a list."""
    kind = structure.kind
    if kind == "tree" or kind is dict:
        named = {}
        for name, child in zip(structure.names, structure.children, strict=True):
            if child is _LEAF:  # what a call would do, without the call
                named[name] = leaves[at]
                at += 1
            else:
                named[name] = _unflatten(child, leaves, at)
                at += child.count
        if structure.order != structure.names:
            named = {name: named[name] for name in structure.order}
        return named if kind is dict else _tree(structure, named)
    if kind == "leaf":
        return leaves[at]
    if kind == "static":
        return structure.static
    values = []
    for child in structure.children:
        values.append(_unflatten(child, leaves, at))
        at += child.count
    if kind is tuple:
        return tuple(values)
    if kind is list:
        return values
    # a NamedTuple, or another kind, such as torch.Size
    return kind(*values) if hasattr(kind, "_fields") else kind(values)


def _tree(structure: Structure, named: dict[str, Any]) -> TensorDict:
    """Tree of a structure and its values."""
    size, names = structure.batch_size, structure.dim_names
    if len(size):
        size = shared_batch_size(named, size)
        names = names if len(size) == len(structure.batch_size) else None
    for name, child in zip(structure.names, structure.children, strict=True):
        if child is not _LEAF and type(child.static) is NonTensorData:
            named[name] = NonTensorData(child.static.data, batch_size=size)
    return _node(named, size, names)


def shared_batch_size(values: Mapping[str, Any], batch_size: Sequence[int]) -> torch.Size:
    """As much of a batch size as the shapes of all values begin with.

    Args:
        values: tensors and trees; whatever else there is has no say.
        batch_size: what to keep as much of as possible.

    Returns:
        The batch size or a beginning of it.
    """
    size = tuple(batch_size)
    for value in values.values():
        if size and isinstance(value, (Tensor, TensorDictBase)):
            shape, same = tuple(value.shape), 0
            while same < min(len(size), len(shape)) and shape[same] == size[same]:
                same += 1
            size = size[:same]
    return torch.Size(size)


def _node(values: dict[str, Any], batch_size: torch.Size, dim_names: Any = None) -> TensorDict:
    """Locked tree that owns the dictionary ``values``."""
    # what TensorDict._new_unsafe does, in a quarter of its time; compiled code, where that one is
    # the checking constructor, is traced in two thirds of the time
    tree = object.__new__(TensorDict)
    tree._device, tree._tensordict = None, values  # pyright: ignore
    tree._batch_size, tree._td_dim_names = batch_size, dim_names  # pyright: ignore
    tree._is_locked = True
    return tree


def _dim_names(tree: TensorDictBase) -> Any:
    if type(tree) is TensorDict:
        return tree._td_dim_names
    return list(tree.names) if any([name is not None for name in tree.names]) else None


def leaves_like(structure: Structure, tree: Any) -> list[Tensor] | None:
    """Leaves of a tree that has the names of a structure: ``flatten`` in half of its time.

    Args:
        structure: what ``flatten`` gave.
        tree: the tree.

    Returns:
        ``flatten(tree)[0]`` where ``flatten(tree)[1] == structure``, else None.
    """
    leaves: list[Tensor] = []
    return leaves if _read(structure, tree, leaves) else None


def _read(structure: Structure, value: Any, leaves: list[Tensor]) -> bool:
    if structure.kind != "tree" or type(value) is not TensorDict:
        found, own = flatten(value)
        leaves += found
        return own == structure
    source = value._tensordict
    if len(source) != len(structure.names):
        return False
    for name, child in zip(structure.names, structure.children, strict=True):
        item = source.get(name)
        if child is _LEAF:
            if not isinstance(item, Tensor):
                return False
            leaves.append(item)
        elif not _read(child, item, leaves):
            return False
    return True


def leaves(tree: Any) -> list[Tensor]:
    """Leaves of a tree, the names of each level sorted.

    Args:
        tree: a tree, or a nest as in ``flatten``.

    Returns:
        The tensors themselves.
    """
    return flatten(tree)[0]


def paths(tree: Any) -> list[Path]:
    """Paths of a tree's leaves, in the order of ``leaves``.

    Args:
        tree: a tree, or a nest as in ``flatten``.

    Returns:
        Tuples of names.
    """
    return flatten(tree)[1].paths()


def show_path(path: Sequence[Any]) -> str:
    """Path as a user would type it: ``'policy.weight'``, or a tuple where that would not do.

    Args:
        path: names, and indices where there are any.

    Returns:
        The text.
    """
    dotted = all([isinstance(name, str) and "." not in name for name in path])
    return repr(".".join(path)) if dotted and path else repr(tuple(path))


def parse_path(fn: str, path: Any, *, indices: bool = False) -> tuple[Any, ...]:
    """Tuple of a path that was given as text or as a tuple.

    Args:
        fn: name of the function that was called, for the message.
        path: text, split at dots, or a tuple of names.
        indices: whether integers are welcome, as indices of a batch axis.

    Returns:
        The tuple.

    Raises:
        TypeError: it's neither.
    """
    if isinstance(path, str) and path:
        return tuple(path.split("."))
    kinds = (str, int) if indices else (str,)
    if isinstance(path, tuple) and path and all([isinstance(part, kinds) for part in path]):
        return path
    wanted = "a tuple of names and indices" if indices else "a tuple of names"
    raise TypeError(
        f"{fn}: the path is {path!r}, expected text such as 'policy.weight' or {wanted}"
    )


def require_tree(fn: str, argument: str, value: Any) -> None:
    """Refuse what is not a tree.

    Args:
        fn: name of the function that was called.
        argument: name of its argument.
        value: what came in.

    Raises:
        TypeError: it's not a TensorDict.
    """
    if not isinstance(value, TensorDictBase):
        hint = "; TensorDict(...) makes one of a dict" if isinstance(value, dict) else ""
        raise TypeError(
            f"{fn}: {argument} is a {type(value).__name__}, expected a TensorDict{hint}"
        )


def require_same(fn: str, left: tuple[str, Structure], right: tuple[str, Structure]) -> None:
    """Refuse two structures whose names differ.

    Args:
        fn: name of the function that was called.
        left: name and structure of one argument.
        right: name and structure of the other.

    Raises:
        ValueError: the message lists the names that only one of them has.
    """
    if left[1] == right[1]:
        return
    sides = [(name, set(structure.paths())) for name, structure in (left, right)]
    parts = []
    for (name, own), (_, other) in (sides, sides[::-1]):
        only = sorted(own - other, key=repr)
        if only:
            more = f" and {len(only) - 5} more" if len(only) > 5 else ""
            parts.append(
                f"only {name} has {', '.join([show_path(path) for path in only[:5]])}{more}"
            )
    raise ValueError(
        f"{fn}: the names differ: {'; '.join(parts) or 'the kinds of the nests differ'}"
    )


class _Names:
    """A tree's names for optree: equal in any order, the batch size not compared."""

    def __init__(self, tree: TensorDict) -> None:
        self.order, self.batch_size = tuple(map(str, tree.keys())), tree.batch_size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Names) and sorted(self.order) == sorted(other.order)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.order)))

    def __repr__(self) -> str:
        return f"names {sorted(self.order)}"


def _optree_flatten(tree: TensorDict) -> tuple[list[Any], _Names, tuple[str, ...]]:
    source = entries(tree)
    names = tuple(sorted(source))
    return [source[name] for name in names], _Names(tree), names


def _optree_unflatten(names: _Names, children: Any) -> TensorDict:
    named = dict(zip(sorted(names.order), children, strict=True))
    ordered = {name: named[name] for name in names.order}
    return _node(ordered, shared_batch_size(ordered, names.batch_size))


optree.register_pytree_node(
    TensorDict,
    _optree_flatten,  # pyright: ignore[reportArgumentType]
    _optree_unflatten,  # pyright: ignore[reportArgumentType]
    path_entry_type=optree.MappingEntry,
    namespace="paramtree",
)
