"""A nest as nodes to look at: names, kinds and tensors, the transforms' wrappers taken off."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from tensordict import LazyStackedTensorDict, TensorDictBase, is_non_tensor
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from .. import tree


@dataclass
class Side:
    """One tensor of a leaf.

    Attributes:
        shape: as its user sees it.
        dtype: its name, without "torch.".
        device: its name.
        size: number of elements.
        bytes: their memory.
        values: the plain tensor with the numbers until they have been read; None where there are
            none.
        notes: what else there is to say, such as "requires grad".
        mapped: leading axes of ``values`` that vmap hides from the shape.
    """

    shape: tuple[int, ...]
    dtype: str
    device: str
    size: int
    bytes: int
    values: Tensor | None
    notes: list[str]
    mapped: int = 0


@dataclass
class Node:
    """A sub-tree, a leaf or what is neither.

    Attributes:
        name: name or index by which its parent knows it; None for the root.
        kind: "tree", "class" (a tensorclass), "dict", "list", "leaf" or "other".
        batch: batch size of a tree.
        axes: names of the batch axes, "" where they have none.
        children: what a sub-tree holds, in its order.
        sides: tensors of a leaf: one, or those of the two trees, None where one lacks it.
        text: what is shown of what is neither a sub-tree nor a tensor.
        notes: what else there is to say of a sub-tree.
        leaves: number of tensors in it.
        size: number of their elements.
        bytes: their memory.
    """

    name: Any
    kind: str
    batch: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    children: list["Node"] = field(default_factory=list)
    sides: tuple[Side | None, ...] = ()
    text: str = ""
    notes: list[str] = field(default_factory=list)
    leaves: int = 0
    size: int = 0
    bytes: int = 0

    def walk(self) -> Iterator["Node"]:
        """The node and all below it, in order."""
        yield self
        for child in self.children:
            yield from child.walk()


def read(nest: Any, name: Any = None) -> Node:
    """Nodes of a nest.

    Args:
        nest: a tree, a tensor, or tuples, lists and dictionaries of them.
        name: by which its parent knows it.

    Returns:
        The root.
    """
    if isinstance(nest, Tensor):
        try:
            side = _side(nest)
        except RuntimeError:  # a nested tensor, or a parameter that isn't initialized
            return Node(name, "other", text=f"{type(nest).__name__} without a shape")
        return Node(name, "leaf", sides=(side,), leaves=1, size=side.size, bytes=side.bytes)
    subtree = tree.as_tree(nest)
    if subtree is not None:
        kind = "tree" if isinstance(nest, TensorDictBase) else "class"
        node = Node(name, kind, tuple(subtree.batch_size))
        node.axes = tuple(axis or "" for axis in subtree.names)
        if kind == "class":
            node.notes.append(type(nest).__name__)
        entries = _entries(node, subtree)
    elif isinstance(nest, dict):
        node, entries = Node(name, "dict"), nest
    elif isinstance(nest, list | tuple) and not isinstance(nest, torch.Size):
        node, entries = Node(name, "list"), dict(enumerate(nest))
    else:
        return Node(name, "other", text=_told(nest))
    for key, value in entries.items():
        child = read(value, key)
        node.children.append(child)
        node.leaves += child.leaves
        node.size += child.size
        node.bytes += child.bytes
    return node


def join(left: Node, right: Node) -> Node:
    """Nodes of two trees beside each other, by name.

    Args:
        left: root of one; its order of names comes first.
        right: root of the other.

    Returns:
        Nodes whose leaves have two sides. Where a name is a leaf here and a sub-tree there, both
        are listed.
    """
    if not (left.children or right.children or left.kind != "leaf" or right.kind != "leaf"):
        sides = left.sides[0], right.sides[0]
        size = max(left.size, right.size)
        return Node(
            left.name, "leaf", sides=sides, leaves=1, size=size, bytes=max(left.bytes, right.bytes)
        )
    node = Node(left.name, left.kind, left.batch, left.axes, notes=left.notes)
    if left.batch != right.batch:
        node.notes.append(f"batch {list(right.batch)} in the other")
    others = {child.name: child for child in right.children}
    for child in left.children:
        other = others.get(child.name)
        if other is not None and (other.kind in _LEAVES) == (child.kind in _LEAVES):
            node.children.append(_joined(child, others.pop(child.name)))
        else:
            node.children.append(_alone(child, 0))
    node.children += [_alone(child, 1) for child in others.values()]
    for child in node.children:
        node.leaves += child.leaves
        node.size += child.size
        node.bytes += child.bytes
    return node


_LEAVES = ("leaf", "other")


def _joined(left: Node, right: Node) -> Node:
    if left.kind == "leaf" and right.kind == "leaf" or left.kind not in _LEAVES:
        return join(left, right)
    if left.kind == right.kind == "other":
        same = left.text == right.text
        return Node(left.name, "other", text=left.text if same else f"{left.text} → {right.text}")
    only = _alone(left if left.kind == "leaf" else right, 0 if left.kind == "leaf" else 1)
    only.notes.append("no tensor in the other")
    return only


def _alone(node: Node, side: int) -> Node:
    """A node that only one of two trees has."""
    sides = (None, *node.sides) if side else (*node.sides, None)
    children = [_alone(child, side) for child in node.children]
    return Node(
        node.name, node.kind, node.batch, node.axes, children,
        sides if node.kind == "leaf" else (), node.text, node.notes,
        node.leaves, node.size, node.bytes,
    )  # fmt: skip


def _entries(node: Node, subtree: TensorDictBase) -> dict[Any, Any]:
    """Names and values of a level; rows of a lazy stack that has no common ones."""
    if isinstance(subtree, LazyStackedTensorDict):
        node.notes.append("lazy stack")
        rows = subtree.tensordicts
        if any(set(row.keys()) != set(rows[0].keys()) for row in rows[1:]):
            node.kind, node.batch = "list", ()
            return dict(enumerate(rows))
        try:
            return tree.entries(subtree)
        except RuntimeError:  # rows of different shapes
            node.kind, node.batch = "list", ()
            return dict(enumerate(rows))
    return tree.entries(subtree)


def _told(value: Any) -> str:
    """One line of what holds no tensors."""
    if is_non_tensor(value):
        value = value.tolist() if type(value).__name__ == "NonTensorStack" else value.data
    try:
        text = " ".join(repr(value).split())
    except Exception as error:  # noqa: BLE001 (whatever a stranger's __repr__ raises)
        text = f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    text = "".join([c if c.isprintable() else repr(c)[1:-1] for c in text[:81]])
    return text if len(text) <= 80 else text[:79] + "…"


@cache
def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _side(x: Tensor) -> Side:
    shape, notes, mapped = tuple(x.shape), [], 0
    if x.requires_grad:
        notes.append("requires grad")
    if x.is_complex():
        notes.append("absolute values")
    values = x
    while _functorch.is_functorch_wrapped_tensor(values):
        if _functorch.is_batchedtensor(values):
            axis = _functorch.maybe_get_bdim(values)
            values = _functorch.get_unwrapped(values).movedim(axis, 0)
            notes.append(f"vmap of {values.shape[0]}")
            mapped += 1
        else:
            values = _functorch.get_unwrapped(values)
    size = x.numel()
    told = _dtype(x.dtype), str(x.device), size, size * x.element_size()
    if x.is_meta or isinstance(values, FakeTensor):
        notes.append("no values")
        return Side(shape, *told, None, notes)
    if x.layout != torch.strided or x.is_quantized:
        notes.append("quantized" if x.is_quantized else str(x.layout).removeprefix("torch."))
        return Side(shape, *told, None, notes)
    return Side(shape, *told, forward_ad.unpack_dual(values).primal, notes, mapped)
