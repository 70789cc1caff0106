"""Functions over a batch axis, of trees whose sub-trees may be batched or shared."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._functorch.vmap import _add_batch_dim as to_batched
from torch._functorch.vmap import _remove_batch_dim as from_batched
from torch._functorch.vmap import lazy_load_decompositions, vmap_increment_nesting

from .. import tree
from ..tree import Structure, flatten, unflatten
from .levels import intercepted


def vmap(fn: Callable[..., Any], in_dims: Any = 0, out_dims: Any = 0) -> Callable[..., Any]:
    """Function over a batch axis, of trees whose sub-trees may be batched or shared.

    Args:
        fn: function of trees, tensors, and nests of them, written for one element.
        in_dims: for all arguments or, as a tuple, for each: ``0`` maps axis 0 of a tensor, and of a
            tree axis 0 of each sub-tree whose batch size is not ``[]`` (those of batch size ``[]``
            are shared); ``None`` shares all; ``{"meta": None, "policy": 0}`` says it by name. What
            isn't a tensor is shared, and keyword arguments are mapped over axis 0.
        out_dims: the same for what ``fn`` returns: ``0`` puts the axis first, ``None`` keeps what
            does not depend on the mapped arguments as it is, names say it for each sub-tree.

    Returns:
        The function; trees that it returns have the axis in front of every batch size. In compiled
        code other sizes of the axis share one graph, but where torch's rule for an operation, such
        as gather, fixes the size.

    Raises:
        ValueError: when called, nothing is mapped, sizes differ, or in_dims doesn't fit the
            arguments.
    """

    def mapped(*args: Any, **kwargs: Any) -> Any:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
        if len(dims) != len(args):
            raise ValueError(
                f"vmap: in_dims has {len(dims)} entries, expected {len(args)} (from the arguments)"
            )
        leaves, structure = flatten((*args, kwargs))
        leaves = intercepted(leaves)
        axes: list[int | None] = []
        inner = _mapped(structure, (*dims, 0), axes, ())
        size = _mapped_size(structure, leaves, axes, len(args))
        rest: list[
            Structure
        ] = []  # what fn returned, without its tensors; left by flat, read after it
        out_axes: list[int | None] = []

        def flat(*inputs: Tensor) -> tuple[Tensor, ...]:
            *arguments, keywords = unflatten(inner, inputs)
            outputs, out_structure = flatten(fn(*arguments, **keywords))
            rest[:], out_axes[:] = [out_structure], []
            _unmapped(out_structure, out_dims, out_axes, (), size)
            _require_shared(out_structure, outputs, out_axes)
            return tuple(outputs)

        stacked = _over(flat, axes, size, leaves)
        outputs = [
            x[0] if axis is None else x if axis == 0 else x.movedim(0, axis)
            for x, axis in zip(stacked, out_axes, strict=True)
        ]
        return unflatten(_unmapped(rest[0], out_dims, [], (), size), outputs)

    return mapped


def _over(
    flat: Callable[..., tuple[Tensor, ...]],
    axes: Sequence[int | None],
    size: int,
    leaves: Sequence[Tensor],
) -> Sequence[Tensor]:
    """``torch.func.vmap`` of a function from tensors to a tuple of tensors.

    torch's own takes nests apart and puts them together again, which we did already: that is 60 of
    its 70 µs. Compiled code knows torch's own alone.
    """
    if torch.compiler.is_compiling():
        return torch.func.vmap(flat, tuple(axes))(*leaves)
    lazy_load_decompositions()
    with vmap_increment_nesting(size, "error") as level:
        inputs = [
            x if axis is None else to_batched(x, axis % x.ndim, level)
            for x, axis in zip(leaves, axes, strict=True)
        ]
        return [from_batched(x, level, size, 0) for x in flat(*inputs)]


def _mapped(
    structure: Structure, spec: Any, axes: list[int | None], path: tuple[Any, ...]
) -> Structure:
    """Structure as fn sees it; the axis of each leaf is added to ``axes``."""
    kind = structure.kind
    if kind == "static":
        return structure
    if kind == "leaf":
        axes.append(_leaf_axis("in_dims", spec, path))
        return structure
    size, dim_names = structure.batch_size, structure.dim_names
    if kind == "tree" and isinstance(spec, int):
        if spec < 0 or 0 < len(size) <= spec:
            raise ValueError(
                f"vmap: in_dims is {spec} for {_where(path)}, whose batch size is {list(size)}"
            )
        own = spec if len(size) else None  # the axis of this level's leaves
        specs: Sequence[Any] = [
            own if child.kind == "leaf" else spec for child in structure.children
        ]
        size = size[:spec] + size[spec + 1 :]
        dim_names = dim_names and [*dim_names[:spec], *dim_names[spec + 1 :]]
    else:
        specs = _children_specs("in_dims", structure, spec, path)
        size, dim_names = (size, dim_names) if spec is None else (torch.Size(()), None)
    rows = zip(structure.names, structure.children, specs, strict=True)
    children = tuple([_mapped(child, inner, axes, (*path, name)) for name, child, inner in rows])
    return Structure(kind, structure.names, children, structure.order, size, dim_names)


def _leaf_axis(argument: str, spec: Any, path: tuple[Any, ...]) -> int | None:
    """The axis given for one tensor."""
    if spec is not None and not isinstance(spec, int):
        where = _where(path)
        raise ValueError(f"vmap: {argument} for {where} is {spec!r}, expected an axis or None")
    return spec


def _children_specs(
    argument: str, structure: Structure, spec: Any, path: tuple[Any, ...]
) -> Sequence[Any]:
    """The axes of a level's children, given for all of them or one by one."""
    if spec is None or isinstance(spec, int):
        return [spec] * len(structure.children)
    if isinstance(spec, dict) and structure.kind in ("tree", dict):
        if sorted(spec) != sorted(structure.names):
            names = f"{sorted(spec)}, expected {sorted(structure.names)}"
            raise ValueError(f"vmap: {argument} for {_where(path)} names {names} (from the tree)")
        return [spec[name] for name in structure.names]
    if (
        isinstance(spec, tuple | list)
        and len(spec) == len(structure.children)
        and structure.kind not in ("tree", dict)
    ):
        return spec
    raise ValueError(
        f"vmap: {argument} for {_where(path)} is {spec!r}, which does not fit what is there"
    )


def _mapped_size(
    structure: Structure, leaves: Sequence[Tensor], axes: Sequence[int | None], n_args: int
) -> int:
    """Size of the mapped axis, the same in all leaves that have one."""
    found: tuple[int, tuple[Any, ...]] | None = None
    for path, leaf, axis in zip(structure.paths(), leaves, axes, strict=True):
        if axis is None:
            continue
        if not -leaf.ndim <= axis < leaf.ndim:
            text = f"{_where(path, n_args)} has shape {tuple(leaf.shape)}, expected an axis {axis}"
            way = "share it with None" if path[0] < n_args else "to share it, let fn close over it"
            raise ValueError(f"vmap: {text}; {way}")
        if found is None:
            found = leaf.shape[axis], path
        elif leaf.shape[axis] != found[0]:
            wanted = f"{found[0]} (from {_where(found[1], n_args)})"
            raise ValueError(
                f"vmap: {_where(path, n_args)} has size {leaf.shape[axis]} along axis {axis}, "
                f"expected {wanted}"
            )
    if found is None:
        raise ValueError(
            "vmap: nothing is mapped: every tree has batch size [] or every in_dims is None"
        )
    return found[0]


def _unmapped(
    structure: Structure,
    spec: Any,
    axes: list[int | None],
    path: tuple[Any, ...],
    size: int,
) -> Structure:
    """Structure of what comes out of the map; the axis of each leaf is added to ``axes``."""
    kind = structure.kind
    if kind == "static":
        return structure
    if kind == "leaf":
        axes.append(_leaf_axis("out_dims", spec, path))
        return structure
    batch, dim_names = structure.batch_size, structure.dim_names
    if kind == "tree" and isinstance(spec, int):
        if not 0 <= spec <= len(batch):
            raise ValueError(f"vmap: out_dims is {spec} for a tree with batch size {list(batch)}")
        batch = torch.Size((*batch[:spec], size, *batch[spec:]))
        dim_names = dim_names and [*dim_names[:spec], None, *dim_names[spec:]]
    elif kind == "tree" and spec is not None:
        batch, dim_names = torch.Size(()), None
    specs = _children_specs("out_dims", structure, spec, path)
    rows = zip(structure.names, structure.children, specs, strict=True)
    children = tuple(
        [_unmapped(child, inner, axes, (*path, name), size) for name, child, inner in rows]
    )
    return Structure(kind, structure.names, children, structure.order, batch, dim_names)


def _require_shared(
    structure: Structure, outputs: Sequence[Tensor], axes: Sequence[int | None]
) -> None:
    """Refuse an output that is said to be shared and depends on what is mapped."""
    if torch.compiler.is_compiling() or all([axis is not None for axis in axes]):
        return
    level = _functorch.maybe_current_level()
    for path, out, axis in zip(structure.paths(), outputs, axes, strict=True):
        if axis is None and _functorch.maybe_get_level(out) == level:
            text = tree.show_path(path) if path else "the output"
            raise ValueError(
                f"vmap: out_dims is None for {text}, which depends on the mapped arguments"
            )


def _where(path: tuple[Any, ...], n_args: int | None = None) -> str:
    if not path:
        return "the arguments"
    if path[0] == n_args:  # the keywords come after the arguments
        return f"the keyword {tree.show_path(path[1:])}"
    return f"argument {path[0]}" + (f" at {tree.show_path(path[1:])}" if path[1:] else "")
