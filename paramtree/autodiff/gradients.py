"""Gradients of functions of trees, with the names of what they belong to.

Any tensor that the function closes over keeps its place in an outer graph, so a gradient of a
gradient with respect to anything is right. Where no transform of torch.func is at work, gradients
come from ``torch.autograd.grad``, three times faster for small functions and with the same results.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward

from .. import tree
from ..tree import Structure, flatten, unflatten
from .levels import intercepted, transformed


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
        with ``has_aux``. In compiled code a Python number that ``fn`` alone reads is a constant,
        and another one compiles again; a tensor is data.

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
        if len(numbers) > 1 and len({number % len(args) for number in numbers}) < len(numbers):
            raise ValueError(f"{name}: argnums is {argnums}, which names an argument twice")
        leaves, structure = flatten(tuple([args[number] for number in numbers]))
        leaves = intercepted(leaves)
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
            if not has_aux:
                return value, ()
            aux_leaves, aux_structure = flatten(aux)
            rest[:] = [aux_structure]
            return value, tuple(aux_leaves)

        if transformed() or _inference(leaves):
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
    for at, leaf in enumerate(leaves):
        if not (leaf.is_floating_point() or leaf.is_complex()):
            path = structure.paths()[at]
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
            f"{name}: fn returned {kind_of(out)}, expected (scalar, aux) with has_aux=True"
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
        raise ValueError(f"{name}: fn returned {kind_of(value)}, expected a 0-d tensor{hint}")
    return value, aux


def kind_of(value: Any) -> str:
    """What a value is, for messages: the shape of a tensor, or the name of a type."""
    return (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )


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
        graph = outer and any([x.requires_grad for x in leaves])
        inputs = [x.view_as(x) if graph and x.requires_grad else call.leaf(x) for x in leaves]
        value, aux = flat(*inputs)
        keep = graph or (outer and _reaches_out([value, *aux], call))
        if value.requires_grad and inputs:
            slopes = _slopes(value, inputs, keep)
            pairs = zip(slopes, leaves, strict=True)
            grads = tuple([torch.zeros_like(x) if g is None else g for g, x in pairs])
        else:
            grads = tuple([torch.zeros_like(x) for x in leaves])
    call.over = True
    if not keep:
        value, aux = value.detach(), tuple([x.detach() for x in aux])
    return grads, (value, aux)


def _slopes(value: Tensor, inputs: list[Tensor], keep: bool) -> Sequence[Tensor | None]:
    """``torch.autograd.grad`` of a real scalar, without its checks where nothing listens."""
    if torch._C._len_torch_function_stack() or type(value) is not Tensor:
        return torch.autograd.grad(value, inputs, create_graph=keep, allow_unused=True)
    ones = torch.ones_like(value)
    return _engine_run_backward(
        (value,), (ones,), keep, keep, tuple(inputs), True, accumulate_grad=False
    )


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
    todo: list[Any] = [x.grad_fn for x in outputs if x.grad_fn is not None]
    seen = {None, *todo}
    for node in todo:  # grows as it goes
        after = node.next_functions
        if not after:  # what a leaf is accumulated by, or a constant
            variable = getattr(node, "variable", None)
            if variable is not None and call.is_foreign(variable):
                return True
        for following, _ in after:
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return False


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
    parts = _like_argument("hvp", argument, vector)

    def slope(x: Any) -> Tensor:
        return _inner(tree.leaves(grad(fn)(x, *args)), parts)

    return grad(slope)(argument) if parts else detach(argument)


def gnvp(
    model_fn: Callable[[Any], Any], loss_fn: Callable[[Any], Tensor], params: Any, vector: Any
) -> Any:
    """Product of the Gauss-Newton matrix of ``loss_fn(model_fn(params))`` with a vector.

        G v = J^T H J v

    with J the Jacobian of the model and H the Hessian of the loss in the model's outputs. It is the
    Hessian without the model's own curvature: not negative for a convex loss, and Fisher's matrix
    where the loss is a negative log-likelihood of an exponential family in its natural parameters.

    Args:
        model_fn: function that returns a tensor, a tree or a nest of them; entries that are not of
            a float dtype are constants.
        loss_fn: function of what the model returns, that returns a 0-d tensor.
        params: tree or tensor at which to take it.
        vector: of the same names and shapes.

    Returns:
        The product, of the params' structure, differentiable in ``params`` and ``vector``.

    Raises:
        ValueError: names or shapes differ, the model returned no float tensor, or the loss didn't
            return a scalar.

    Source: Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient
    descent", section 3.
    """
    parts = _like_argument("gnvp", params, vector)
    out, structure = flatten(model_fn(params))
    places = [i for i, x in enumerate(out) if x.is_floating_point()]
    if not places:
        raise ValueError("gnvp: model_fn returned no float tensor")

    def outputs(p: Any) -> list[Tensor]:
        leaves = tree.leaves(model_fn(p))
        return [leaves[i] for i in places]

    def loss(floats: list[Tensor]) -> Tensor:
        whole = list(out)
        for i, x in zip(places, floats, strict=True):
            whole[i] = x
        return loss_fn(unflatten(structure, whole))

    def pull(weights: list[Tensor]) -> list[Tensor]:
        return tree.leaves(grad(lambda p: _inner(outputs(p), weights))(params))

    if not parts:
        return detach(params)
    z = [out[i] for i in places]
    tangent = grad(lambda weights: _inner(pull(weights), parts))([torch.zeros_like(x) for x in z])
    curved = hvp(loss, z, tangent)
    return grad(lambda p: _inner(outputs(p), curved))(params)


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Sum of all products of two lists of tensors, of one at least."""
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def _like_argument(fn: str, argument: Any, vector: Any) -> list[Tensor]:
    """Leaves of a vector with the names and shapes of an argument; raises where they differ."""
    parts, structure = flatten(vector)
    leaves, own = flatten(argument)
    tree.require_same(fn, ("the argument", own), ("the vector", structure))
    for path, leaf, part in zip(own.paths(), leaves, parts, strict=True):
        if part.shape != leaf.shape:
            text = f"the vector{' at ' + tree.show_path(path) if path else ''}"
            wanted = f"{tuple(leaf.shape)} (from the argument)"
            raise ValueError(f"{fn}: {text} has shape {tuple(part.shape)}, expected {wanted}")
    return parts


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
        if transformed():
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
