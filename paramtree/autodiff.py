"""Derivatives and batching of functions of trees: ``grad``, ``vmap`` and what goes with them.

Gradients are trees with the names of what they belong to. Any tensor that the function closes over
keeps its place in an outer graph, so a gradient of a gradient with respect to anything is right.
Where no transform of torch.func is at work, gradients come from ``torch.autograd.grad``, three
times faster for small functions and with the same results.
"""

import inspect
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

from . import rng, tree
from .tree import Structure, flatten, unflatten


def grad(
    fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Gradient of a scalar function with respect to trees or tensors.

    Args:
        fn: function that returns a 0-d tensor; ``(scalar, aux)`` with ``has_aux``.
        argnums: which positional argument, or tuple of them.
        has_aux: whether ``fn`` returns something beside the scalar.

    Returns:
        Function of the same arguments that gives the gradient, of the argument's structure (a tuple
        of them for a tuple of ``argnums``), zero for leaves without influence; ``(gradient, aux)``
        with ``has_aux``.

    Raises:
        ValueError: when called, ``fn`` did not return a scalar, or there is no such argument, or
            it is named twice.
        TypeError: when called, the argument is neither a tree nor a tensor, a leaf of it is not of
            a float dtype, or the scalar isn't real.
    """
    both = _value_and_grad("grad", fn, argnums, has_aux)

    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return gradient


def value_and_grad(
    fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Value and gradient of a scalar function with respect to trees or tensors.

    Args:
        fn: as in ``grad``.
        argnums: as in ``grad``.
        has_aux: as in ``grad``.

    Returns:
        Function that gives ``(value, gradient)``; ``((value, aux), gradient)`` with ``has_aux``.

    Raises:
        ValueError: as in ``grad``.
        TypeError: as in ``grad``.
    """
    return _value_and_grad("value_and_grad", fn, argnums, has_aux)


def _value_and_grad(
    name: str, fn: Callable[..., Any], argnums: int | tuple[int, ...], has_aux: bool
) -> Any:
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    if not (isinstance(numbers, tuple) and all([isinstance(number, int) for number in numbers])):
        raise TypeError(f"{name}: argnums is {argnums!r}, expected an int or a tuple of them")

    def both(*args: Any, **kwargs: Any) -> Any:
        for number in numbers:
            if not -len(args) <= number < len(args):
                raise ValueError(
                    f"{name}: argnums is {argnums}, but there are {len(args)} positional arguments"
                )
        if len({number % len(args) for number in numbers}) < len(numbers):
            raise ValueError(f"{name}: argnums is {argnums}, which names an argument twice")
        leaves, structure = flatten(tuple([args[number] for number in numbers]))
        _require_float(name, leaves, structure, numbers)
        rest: list[
            Any
        ] = []  # how to build value and aux again; left by the function, read after it

        def flat(*inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            arguments = list(args)
            for number, value in zip(numbers, unflatten(structure, inputs), strict=True):
                arguments[number] = value
            out = fn(*arguments, **kwargs)
            value, aux = _scalar(name, out, has_aux)
            aux_leaves, aux_structure = flatten(aux)
            rest[:] = [aux_structure]
            return value, tuple(aux_leaves)

        if torch.compiler.is_compiling() or _transformed() or _inference(leaves):
            grads, (value, aux) = _functional(flat, leaves)
        else:
            grads, (value, aux) = _direct(flat, leaves)
        gradients = unflatten(structure, grads)
        result = (value, unflatten(rest[0], aux)) if has_aux else value
        return result, gradients[0] if isinstance(argnums, int) else gradients

    return both


def _require_float(
    name: str, leaves: list[Tensor], structure: Structure, numbers: tuple[int, ...]
) -> None:
    for number, child in zip(numbers, structure.children, strict=True):
        if child.kind == "static":
            kind = type(child.static).__name__
            raise TypeError(f"{name}: argument {number} is a {kind}, expected a tensor or a tree")
    for path, leaf in zip(structure.paths(), leaves, strict=True):
        if not (leaf.is_floating_point() or leaf.is_complex()):
            where = f"argument {numbers[path[0]]}" + (
                f" at {tree.show_path(path[1:])}" if path[1:] else ""
            )
            raise TypeError(
                f"{name}: {where} is {leaf.dtype}, expected a float dtype; "
                "tree.partition takes it out"
            )


def _scalar(name: str, out: Any, has_aux: bool) -> tuple[Tensor, Any]:
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(
            f"{name}: fn returned {_kind(out)}, expected (scalar, aux) with has_aux=True"
        )
    value, aux = out if has_aux else (out, ())
    if isinstance(value, Tensor) and not value.is_floating_point():
        raise TypeError(f"{name}: fn returned a tensor of {value.dtype}, expected a real float")
    if not isinstance(value, Tensor) or value.ndim:
        hint = (
            "; losses.total adds the losses of a TensorDict"
            if not isinstance(value, Tensor)
            else ""
        )
        raise ValueError(f"{name}: fn returned {_kind(value)}, expected a 0-d tensor{hint}")
    return value, aux


def _kind(value: Any) -> str:
    return (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )


def _transformed() -> bool:
    """Whether a transform of torch.func, or forward mode, is at work."""
    forward = torch.autograd.forward_ad._current_level >= 0
    return forward or _functorch.maybe_current_level() is not None


def _inference(leaves: Sequence[Tensor]) -> bool:
    """Whether torch.autograd is off beyond recall; torch.func differentiates there too."""
    return torch.is_inference_mode_enabled() or any([leaf.is_inference() for leaf in leaves])


def _functional(flat: Callable[..., Any], leaves: Sequence[Tensor]) -> Any:
    if not leaves:
        value, aux = flat()
        return (), (value, aux)
    numbers = tuple(range(len(leaves)))
    grads, (value, aux) = torch.func.grad_and_value(flat, numbers, has_aux=True)(*leaves)
    return grads, (value, aux)


def _direct(flat: Callable[..., Any], leaves: Sequence[Tensor]) -> Any:
    """Gradient by torch.autograd, its graph kept only where something outside depends on it."""
    outer = torch.is_grad_enabled()
    call = _Call()
    with torch.enable_grad():
        # an alias keeps the outer graph of what has one; the rest gets leaves of its own
        inputs = [x.view_as(x) if outer and x.requires_grad else call.leaf(x) for x in leaves]
        value, aux = flat(*inputs)
        keep = outer and (
            any([x.requires_grad for x in leaves]) or _reaches_out([value, *aux], call)
        )
        if value.requires_grad and inputs:
            slopes = torch.autograd.grad(value, inputs, create_graph=keep, allow_unused=True)
            pairs = zip(slopes, leaves, strict=True)
            grads = tuple([torch.zeros_like(x) if g is None else g for g, x in pairs])
        else:
            grads = tuple([torch.zeros_like(x) for x in leaves])
    call.over = True
    if not keep:
        value, aux = value.detach(), tuple([x.detach() for x in aux])
    return grads, (value, aux)


class _Call:
    """One call of a gradient; the leaves that it made mean nothing to others, or once it's over."""

    def __init__(self) -> None:
        self.over = False

    def leaf(self, x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        leaf._paramtree_call = self  # pyright: ignore[reportAttributeAccessIssue]
        return leaf

    def is_foreign(self, variable: Tensor) -> bool:
        owner = getattr(variable, "_paramtree_call", None)
        return owner is not self and not (owner is not None and owner.over)


def _reaches_out(outputs: Sequence[Tensor], call: _Call) -> bool:
    """Whether any output depends on a tensor with a gradient from outside of the call."""
    if any([x.requires_grad and x.grad_fn is None and call.is_foreign(x) for x in outputs]):
        return True
    todo = [x.grad_fn for x in outputs if x.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        variable = getattr(node, "variable", None)
        if variable is not None and call.is_foreign(variable):
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return False


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
        The function; trees that it returns have the axis in front of every batch size.

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

        stacked = torch.func.vmap(flat, tuple(axes))(*leaves)
        outputs = [
            x[0] if axis is None else x if axis == 0 else x.movedim(0, axis)
            for x, axis in zip(stacked, out_axes, strict=True)
        ]
        return unflatten(_unmapped(rest[0], out_dims, [], (), size), outputs)

    return mapped


def _mapped(
    structure: Structure, spec: Any, axes: list[int | None], path: tuple[Any, ...]
) -> Structure:
    """Structure as fn sees it; the axis of each leaf is added to ``axes``."""
    kind = structure.kind
    if kind == "static":
        return structure
    if kind == "leaf":
        if spec is not None and not isinstance(spec, int):
            raise ValueError(
                f"vmap: in_dims for {_where(path)} is {spec!r}, expected an axis or None"
            )
        axes.append(spec)
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
        if spec is not None and not isinstance(spec, int):
            raise ValueError(
                f"vmap: out_dims for {_where(path)} is {spec!r}, expected an axis or None"
            )
        axes.append(spec)
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


def detach(nest: Any) -> Any:
    """Nest of the same values, cut off from every graph: the full stop.

    Args:
        nest: a tree, a tensor, or tuples, lists and dictionaries of them.

    Returns:
        The nest; it shares memory with what was given.
    """
    leaves, structure = flatten(nest)
    return unflatten(structure, [leaf.detach() for leaf in leaves])


def hvp(fn: Callable[..., Tensor], argument: Any, vector: Any, *args: Any) -> Any:
    """Product of the Hessian of ``fn(argument, *args)`` with a vector, ``d/dx <grad fn(x), v>``.

    Args:
        fn: function that returns a 0-d tensor.
        argument: tree or tensor at which to take it.
        vector: of the same names and shapes.
        args: further arguments of ``fn``.

    Returns:
        The product, of the argument's structure.

    Raises:
        ValueError: names or shapes differ, or ``fn`` did not return a scalar.

    Source: Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """
    parts, structure = flatten(vector)
    leaves, own = flatten(argument)
    tree.require_same("hvp", ("the argument", own), ("the vector", structure))
    for path, leaf, part in zip(own.paths(), leaves, parts, strict=True):
        if part.shape != leaf.shape:
            text = f"the vector{' at ' + tree.show_path(path) if path else ''}"
            wanted = f"{tuple(leaf.shape)} (from the argument)"
            raise ValueError(f"hvp: {text} has shape {tuple(part.shape)}, expected {wanted}")

    def slope(x: Any) -> Tensor:
        slopes = tree.leaves(grad(fn)(x, *args))
        return torch.stack([(a * b).sum() for a, b in zip(slopes, parts, strict=True)]).sum()

    return grad(slope)(argument) if leaves else detach(argument)


def checkpoint(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Function that keeps no intermediates and computes them again backward; same numbers.

    Args:
        fn: pure function of trees, tensors and nests of them.

    Returns:
        The function. Inside a transform of torch.func, which has no room for it, and where ``fn``
        holds a gradient inside a vmap, it is ``fn`` itself: the numbers are the same and the memory
        is not saved.
    """

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or _transformed():
            return fn(*args, **kwargs)
        rest: list[Structure] = []

        def flat(*inputs: Tensor) -> tuple[Tensor, ...]:
            arguments, keywords = unflatten(structure, inputs)
            outputs, out_structure = flatten(fn(*arguments, **keywords))
            rest[:] = [out_structure]
            return tuple(outputs)

        leaves, structure = flatten((args, kwargs))
        from torch.utils.checkpoint import checkpoint as torch_checkpoint

        try:
            outputs = torch_checkpoint(flat, *leaves, use_reentrant=False, preserve_rng_state=False)
            return unflatten(rest[0], outputs)
        except RuntimeError as error:  # torch.func.grad refuses to start under saved-tensor hooks
            if "saved tensor hooks" not in str(error):
                raise
        return fn(*args, **kwargs)

    return checkpointed


def check_grads(
    fn: Callable[..., Any],
    *trees: Any,
    step: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    max_entries: int = 32,
) -> None:
    """Hold autodiff against central differences for each named entry.

        df/dx = (f(x + h) - f(x - h)) / 2h

    Args:
        fn: function of the trees that returns tensors; several numbers are added up with fixed
            weights.
        trees: trees or tensors of float64; integer leaves are left alone.
        step: h, times the entry's size where that is above 1.
        rtol: relative tolerance.
        atol: absolute tolerance, times the size of the value where that is above 1.
        max_entries: a leaf with more numbers than this is held along as many fixed random
            directions.

    Raises:
        AssertionError: they differ somewhere; the message says where, and where a path is cut, as
            in ``hyper["gamma"]: autodiff 0, central 4.956: no path (detached)``.
        TypeError: a leaf is of a float dtype other than float64, too coarse for central
            differences, or there is nothing to hold: no float tensor goes in, or none comes out.
    """
    leaves, structure = flatten(trees)
    names = [_entry_name(fn, path) for path in structure.paths()]
    for name, leaf in zip(names, leaves, strict=True):
        if (leaf.is_floating_point() and leaf.dtype != torch.float64) or leaf.is_complex():
            raise TypeError(
                f"check_grads: {name} is {leaf.dtype}, expected float64, as tree.double() makes it"
            )
    chosen = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point() and leaf.numel()]
    if not chosen:
        raise TypeError("check_grads: there is no float64 tensor in the trees, so nothing to hold")

    def value(*inputs: Tensor) -> Tensor:
        full = [leaf.detach() for leaf in leaves]
        for i, x in zip(chosen, inputs, strict=True):
            full[i] = x
        out = fn(*unflatten(structure, full))
        parts = [torch.view_as_real(x) if x.is_complex() else x for x in tree.leaves(out)]
        outputs = [x for x in parts if x.is_floating_point()]
        if not outputs:
            raise TypeError(f"check_grads: fn returned {_kind(out)}, expected float tensors")
        terms = [(x.double() * _weights(x, i)).sum() for i, x in enumerate(outputs)]
        return torch.stack(terms).sum()

    points = [leaves[i].detach().clone() for i in chosen]
    size, slopes = value_and_grad(value, tuple(range(len(points))))(*points)
    floor = atol * max(1.0, abs(float(size)))
    wrong = []
    for k, (point, slope) in enumerate(zip(points, slopes, strict=True)):
        for label, direction in _directions(point, max_entries):
            h = step * max(1.0, float((point * direction).abs().max()))
            ends = []
            for sign in (1.0, -1.0):
                moved = [x if i != k else x + sign * h * direction for i, x in enumerate(points)]
                with torch.no_grad():
                    ends.append(float(value(*moved)))
            central = (ends[0] - ends[1]) / (2 * h)
            auto = float((slope * direction).sum())
            if not abs(auto - central) <= floor + rtol * abs(central):
                cut = ": no path (detached)" if auto == 0.0 else ""
                wrong.append(
                    f"{names[chosen[k]]}{label}: autodiff {auto:.10g}, central {central:.10g}{cut}"
                )
    if wrong:
        more = f"\n... and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise AssertionError("check_grads:\n" + "\n".join(wrong[:20]) + more)


def _entry_name(fn: Callable[..., Any], path: tuple[Any, ...]) -> str:
    """Entry as a user would type it: ``hyper["policy", "gamma"]``."""
    index, *rest = path
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        known = [p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        known = []
    name = known[index] if index < len(known) else f"argument {index}"
    parts = [json.dumps(part, ensure_ascii=False) for part in rest]
    return name + (f"[{', '.join(parts)}]" if rest else "")


def _weights(x: Tensor, index: int) -> Tensor:
    """Fixed numbers, so that errors in several outputs cannot cancel; 1 for a scalar."""
    if x.ndim == 0:
        return torch.ones((), dtype=torch.float64, device=x.device)
    key = rng.fold_in(rng.key(0, device=x.device), index)
    return rng.uniform(key, tuple(x.shape), 0.5, 1.5, dtype=torch.float64)


def _directions(x: Tensor, most: int) -> list[tuple[str, Tensor]]:
    """Directions along which a leaf is held: its entries, or random ones where there are many."""
    if x.numel() <= most:
        units = torch.eye(x.numel(), dtype=x.dtype, device=x.device).reshape(-1, *x.shape)
        places = itertools.product(*[range(n) for n in x.shape])
        return [
            (f"{list(place)}" if place else "", unit)
            for place, unit in zip(places, units, strict=True)
        ]
    keys = rng.split(rng.key(1, device=x.device), most)
    signs = [
        2.0 * rng.bernoulli(key, torch.full(tuple(x.shape), 0.5, device=x.device)).to(x.dtype) - 1.0
        for key in keys
    ]
    return [(f" along random direction {i}", sign) for i, sign in enumerate(signs)]
