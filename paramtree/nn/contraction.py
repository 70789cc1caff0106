"""Affine maps of tensors of several axes: over the last ones, or as an equation of indices."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from .. import tree
from ..model import Model
from . import _check, _window, initializers
from .initializers import Initializer, make_params


def linear_general(
    n_in: int | Sequence[int],
    n_out: int | Sequence[int],
    bias: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Affine map of the last axes to others, such as (heads, size) to size.

        y[o...] = sum_i... W[o..., i...] x[i...] + b[o...]

    Params: weight [*n_out, *n_in] and, with bias, bias [*n_out].

    Args:
        n_in: sizes of the last axes of the input, an int for one.
        n_out: sizes of the axes that take their place.
        bias: whether there is a b.
        weight_init: initializer of weight, called for the matrix [prod(n_out), prod(n_in)]; default
            for both, as in `linear`: uniform on [-n^-1/2, n^-1/2), n = prod(n_in).
        bias_init: of bias.
        dtype: of the params.

    Returns:
        Model from x float [*batch, *n_in] to [*batch, *n_out].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1.
    """
    layer, made = "linear_general", f"linear_general({n_in}, {n_out})"
    inner, outer = _window.shape_of(layer, "n_in", n_in), _window.shape_of(layer, "n_out", n_out)
    _check.functions(layer, weight_init=weight_init, bias_init=bias_init)
    rows, columns = math.prod(outer), math.prod(inner)
    default = initializers.uniform(columns**-0.5)

    def matrix(key: Tensor, shape: Sequence[int], dtype: torch.dtype = dtype) -> Tensor:
        return (weight_init or default)(key, (rows, columns), dtype).reshape(tuple(shape))

    shapes: dict[str, tuple[int, ...]] = {"weight": (*outer, *inner)}
    makers: dict[str, Initializer] = {"weight": matrix}
    if bias:
        shapes["bias"], makers["bias"] = outer, bias_init or default

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make_params(layer, key, shapes, makers, dtype), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, x: Any) -> tuple[Tensor, TensorDict]:
        weight, *rest = _check.parameters(layer, made, params, shapes)
        _window.last(layer, made, x, inner, weight)
        batch = x.shape[: x.dim() - len(inner)]
        x, weight = x.reshape(*batch, columns), weight.reshape(rows, columns)
        out = functional.linear(x, weight, *[b.reshape(rows) for b in rest])
        return out.reshape(*batch, *outer), buffers

    return Model(init, apply)


def einsum(
    equation: str,
    weight_shape: Sequence[int],
    bias_shape: Sequence[int] | None = None,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Contraction of the input and a weight, given as an equation in torch.einsum's form.

        y = einsum(equation, x, W) + b

    `einsum("...td,dhk->...htk", (8, 2, 4))` maps vectors of 8 to those of two heads. A letter that
    all three have is an axis along which each entry has a weight of its own.

    Params: weight and, with a bias_shape, bias.

    Args:
        equation: letters of x, of the weight and of y, "x,w->y"; x and y may have "...".
        weight_shape: one size for each of the weight's letters.
        bias_shape: shape of b, broadcast to the last axes of y; default: no b.
        weight_init: initializer of weight; default for both: uniform on [-n^-1/2, n^-1/2), with n
            the size of what is summed over.
        bias_init: of bias.
        dtype: of the params.

    Returns:
        Model from x float to y.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the equation is none, or does not fit the shapes.
    """
    layer = "einsum"
    _check.functions(layer, weight_init=weight_init, bias_init=bias_init)
    read, letters, written = _parse(equation)
    size = _window.shape_of(layer, "weight_shape", weight_shape)
    made = f"einsum({equation!r}, {size})"
    if len(letters) != len(size):
        raise ValueError(
            f"{layer}: weight_shape is {size}, expected {len(letters)} sizes (from {letters!r} in "
            f"{equation!r})"
        )
    summed = [n for letter, n in zip(letters, size, strict=True) if letter not in written]
    default = initializers.uniform(math.prod(summed) ** -0.5)
    shapes, makers = {"weight": size}, {"weight": weight_init or default}
    if bias_shape is not None:
        shapes["bias"] = _window.shape_of(layer, "bias_shape", bias_shape)
        makers["bias"] = bias_init or default
    sizes = dict(zip(letters, size, strict=True))

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make_params(layer, key, shapes, makers, dtype), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, x: Any) -> tuple[Tensor, TensorDict]:
        weight, *rest = _check.parameters(layer, made, params, shapes)
        if not isinstance(x, Tensor):
            raise TypeError(f"{layer}: x is a {type(x).__name__}, expected a tensor {read}")
        if not _fits(read, sizes, tuple(x.shape)):
            known = ", ".join([f"{a} = {n}" for a, n in sizes.items() if a in read])
            raise ValueError(
                f"{layer}: x has shape {tuple(x.shape)}, expected {read!r} with {known} (from "
                f"{made})"
            )
        _window.float_like(layer, x, weight)
        out = torch.einsum(equation, x, weight)
        if not rest:
            return out, buffers
        b = rest[0]
        last = out.shape[max(out.dim() - b.dim(), 0) :]
        if len(last) < b.dim() or any(n not in (1, m) for n, m in zip(b.shape, last, strict=True)):
            raise ValueError(
                f"{layer}: bias has shape {tuple(b.shape)}, expected one that broadcasts to the "
                f"last axes of y, {tuple(out.shape)}"
            )
        return out + b, buffers

    return Model(init, apply)


def _parse(equation: Any) -> tuple[str, str, str]:
    """The letters of x, of the weight and of y."""
    if not isinstance(equation, str):
        raise TypeError(f"einsum: equation is a {type(equation).__name__}, expected text")
    left, arrow, written = equation.replace(" ", "").partition("->")
    read, comma, letters = left.partition(",")
    parts = [part.replace("...", "", 1) for part in (read, written)] + [letters]
    plain = all([part.isalpha() or not part for part in parts]) and letters
    if not (arrow and comma and plain) or len(set(letters)) < len(letters):
        raise ValueError(
            f'einsum: equation is {equation!r}, expected "x,w->y" with letters, each once in w, '
            'and "..." in x and y alone'
        )
    lost = [letter for letter in parts[1] if letter not in parts[0] + letters]
    if lost:
        raise ValueError(f"einsum: equation is {equation!r}, and neither x nor w has {lost[0]!r}")
    return read, letters, written


def _fits(read: str, sizes: dict[str, int], shape: tuple[int, ...]) -> bool:
    """Whether a shape has the axes that are read, of the sizes that the weight gives them."""
    before, dots, after = read.partition("...")
    n = len(before) + len(after)
    if len(shape) < n or (not dots and len(shape) > n):
        return False
    ends = shape[: len(before)] + shape[len(shape) - len(after) :]
    return all([sizes.get(a, have) == have for a, have in zip(before + after, ends, strict=True)])
