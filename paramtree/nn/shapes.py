"""Layers that change shapes, or add to what another layer gives.

A plain function of x is a layer of `sequential` as it is: torch.tanh, a lambda, an instance of
torch.nn.Identity. `flatten` and `reshape` make such functions; the others are models.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree
from ..model import Model
from . import _check, initializers
from ._parts import Call, assembled
from .compose import Layer, sequential
from .initializers import Initializer, make_params


def flatten(start_dim: int = 1, end_dim: int = -1) -> Callable[[Tensor], Tensor]:
    """Makes some dims one.

    Args:
        start_dim: the first of them; the default, as in torch, takes x for one with one batch axis.
            For images with any leading axes it is -3.
        end_dim: the last of them.

    Returns:
        Function from x to x.flatten(start_dim, end_dim).

    Raises:
        TypeError: a dim is not an int.
        ValueError: when called, x has fewer dims.
    """
    _check_dims("flatten", start_dim=start_dim, end_dim=end_dim)

    def fn(x: Tensor) -> Tensor:
        n = _dims("flatten", x)
        if not all([-n <= dim < n for dim in (start_dim, end_dim)]):
            raise ValueError(
                f"flatten: x has shape {tuple(x.shape)}, which lacks dim {start_dim} or {end_dim}"
            )
        if start_dim % n > end_dim % n:
            raise ValueError(
                f"flatten: start_dim is {start_dim} and end_dim {end_dim}, before it for x of "
                f"shape {tuple(x.shape)}"
            )
        return x.flatten(start_dim, end_dim)

    return fn


def reshape(*shape: int, preserve_dims: int = 1) -> Callable[[Tensor], Tensor]:
    """Gives dims another shape, but for the first ones.

    Args:
        shape: the new shape of the dims that are not preserved; one of the sizes may be -1.
        preserve_dims: how many of the first dims stay; the default takes x for one with one batch
            axis. Below 0, all but so many stay: -1 parts the last dim.

    Returns:
        Function from x [*kept, *rest] to [*kept, *shape].

    Raises:
        TypeError: a size is not an int.
        ValueError: when called, x has fewer dims, or does not fit.
    """
    _check_dims("reshape", preserve_dims=preserve_dims)
    _check_dims("reshape", **{f"shape[{i}]": size for i, size in enumerate(shape)})
    if shape.count(-1) > 1 or any([size < -1 for size in shape]):
        raise ValueError(f"reshape: shape is {shape}, expected sizes and at most one -1")

    def fn(x: Tensor) -> Tensor:
        n = _dims("reshape", x)
        if not -n <= preserve_dims <= n:
            got = tuple(x.shape)
            raise ValueError(
                f"reshape: x has shape {got}, expected at least {abs(preserve_dims)} dims (from "
                f"preserve_dims={preserve_dims})"
            )
        kept = n + preserve_dims if preserve_dims < 0 else preserve_dims
        have = math.prod(x.shape[kept:])
        known = math.prod([size for size in shape if size != -1])
        if have % known if -1 in shape and known else have != known:
            raise ValueError(
                f"reshape: x has shape {tuple(x.shape)}, of which {tuple(x.shape[kept:])} was to "
                f"become {shape}"
            )
        return x.reshape(*x.shape[:kept], *shape)

    return fn


def bias(
    *shape: int, bias_init: Initializer | None = None, dtype: torch.dtype = torch.float32
) -> Model:
    """Adds a parameter: y = x + b.

    Params: bias, of the shape that is given.

    Args:
        shape: of b, broadcast to the last dims of x: (C,) for vectors, (C, 1, 1) for images.
        bias_init: initializer of bias; default: zeros.
        dtype: of the params.

    Returns:
        Model from x float [*batch, *shape], or larger where the shape is 1, to the same shape.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1.
    """
    _check.sizes("bias", **{f"shape[{i}]": size for i, size in enumerate(shape)})
    _check.functions("bias", bias_init=bias_init)
    made, shapes = f"bias{shape}", {"bias": shape}
    makers, n = {"bias": bias_init or initializers.zeros}, len(shape)

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make_params("bias", key, shapes, makers, dtype), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, x: Any) -> tuple[Tensor, TensorDict]:
        (b,) = _check.parameters("bias", made, params, shapes)
        last = x.shape[x.dim() - n :] if _dims("bias", x) >= n else ()
        if len(last) < n or any([w not in (1, h) for w, h in zip(shape, last, strict=True)]):
            raise ValueError(
                f"bias: x has shape {tuple(x.shape)}, expected [*batch, *{list(shape)}] (from "
                f"{made})"
            )
        _check.same_dtype("bias", "x", x, b.dtype)
        return x + b, buffers

    return Model(init, apply)


def batch_apply(layer: Layer, n_dims: int = 2) -> Model:
    """Runs a layer that wants one batch axis on tensors that have several.

    The first n_dims of every input become one, and are parted again in every output. The layers of
    this room take any leading axes; this is for plain functions and for models from elsewhere.

    Params and buffers: those of the layer.

    Args:
        layer: a model, or a plain function.
        n_dims: how many axes.

    Returns:
        Model from x [*batch, ...], or a tuple of such tensors, to what the layer gives.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: there are fewer than one axes, or, when applied, inputs do not share them, or
            an output does not begin with their product.
    """
    _check.sizes("batch_apply", n_dims=n_dims)
    model = _as_model("batch_apply", "layer", layer)

    def apply(params: TensorDict, buffers: TensorDict, inputs: Any) -> tuple[Any, TensorDict]:
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        tensors = [x for x in given if isinstance(x, Tensor)]
        if len(tensors) + sum([x is None for x in given]) < len(given) or not tensors:
            kinds = ", ".join([type(x).__name__ for x in given])
            raise TypeError(f"batch_apply: the input is {kinds}, expected tensors")
        batch = tensors[0].shape[:n_dims]
        for i, x in enumerate(tensors):
            if x.dim() < n_dims or x.shape[:n_dims] != batch:
                raise ValueError(
                    f"batch_apply: input {i} has shape {tuple(x.shape)}, expected it to begin with "
                    f"{n_dims} batch axes, {tuple(batch)} (from the first input)"
                )
        count = math.prod(batch)

        def part(x: Any) -> Any:
            if not isinstance(x, Tensor) or x.shape[:1] != (count,):
                got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(
                    f"batch_apply: the layer gave {got}, expected tensors [{count}, ...] (from "
                    f"inputs of batch shape {tuple(batch)})"
                )
            return x.reshape(*batch, *x.shape[1:])

        merged = [None if x is None else x.reshape(count, *x.shape[n_dims:]) for x in given]
        one = merged[0] if not isinstance(inputs, tuple) else tuple(merged)
        out, buffers = model.apply(params, buffers, one)
        return tuple(map(part, out)) if isinstance(out, tuple) else part(out), buffers

    return Model(model.init, apply)


def residual(layer: Layer, shortcut: Layer | None = None, scale: float | Tensor = 1.0) -> Model:
    """Adds what a layer gives to what it was given: y = shortcut(x) + scale layer(x).

    Params and buffers: layer and shortcut, each where it has some.

    Args:
        layer: a model, or a plain function.
        shortcut: likewise, such as a linear map where the layer changes the size; default: x.
        scale: how much of the layer is added, [] or broadcast to its output; below 1 for deep
            stacks.

    Returns:
        Model from x to what the layer gives.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: when applied, the two do not have one shape, or params or buffers hold an
            unknown name.

    Source: He, Zhang, Ren, Sun (2016), Deep residual learning, section 3.2.
    """
    if not isinstance(scale, Tensor):
        _check.real("residual", "scale", scale, -math.inf)
    parts = {"layer": _as_model("residual", "layer", layer)}
    if shortcut is not None:
        parts["shortcut"] = _as_model("residual", "shortcut", shortcut)

    def forward(call: Call, x: Any) -> Tensor:
        right, left = call("layer", x), x if shortcut is None else call("shortcut", x)
        if left.shape != right.shape:
            source = "x; a shortcut may change its size" if shortcut is None else "the shortcut"
            raise ValueError(
                f"residual: the layer gave {tuple(right.shape)}, expected {tuple(left.shape)} "
                f"(from {source})"
            )
        return left + (right if isinstance(scale, float) and scale == 1.0 else scale * right)

    return assembled("residual", parts, forward)


def _as_model(fn: str, argument: str, layer: Layer) -> Model:
    """A plain function as a model without params."""
    if not callable(layer):
        got = type(layer).__name__
        raise TypeError(f"{fn}: {argument} is a {got}, expected a Model or a function")
    return layer if isinstance(layer, Model) else sequential(layer)


def _check_dims(layer: str, **given: int) -> None:
    for name, dim in given.items():
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise TypeError(f"{layer}: {name} is a {type(dim).__name__}, expected an int")


def _dims(layer: str, x: Any) -> int:
    if not isinstance(x, Tensor):
        raise TypeError(f"{layer}: x is a {type(x).__name__}, expected a tensor")
    return x.dim()
