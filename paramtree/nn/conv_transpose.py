"""Transposed convolutions over the last one, two or three dims, in torch's parametrization.

The linear map that the gradient of a convolution is: x is [*batch, n_in, L], [*batch, n_in, H, W]
or [*batch, n_in, D, H, W], and each of its places adds a kernel to the output.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from .. import tree
from ..model import Model
from . import _check, _window, initializers
from ._window import Padding, Sizes
from .initializers import Initializer, make_params

_CONVOLVE: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def conv_transpose2d(
    n_in: int,
    n_out: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Padding = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Sizes = 1,
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Transposed convolution of images.

        y[o, s i + d u - p, s j + d v - p] = b[o] + sum_cuvij W[c, o, u, v] x[c, i, j]

    with stride s, dilation d and padding p; the output is (H - 1) s - 2p + d (k - 1) + 1 + q high,
    with q the output padding. Per dim, a size is an int for all or one of a tuple.

    Params: weight [n_in, n_out / groups, k, k] and, with bias, bias [n_out].

    Args:
        n_in: channels of the input.
        n_out: channels of the output.
        kernel_size: k.
        stride: s.
        padding: p, what is cut off the output: an int for both ends or a pair (before, after); or
            "valid", nothing, or "same": the output is H s high, as in JAX.
        output_padding: q, less than the stride or the dilation: how much longer the output is at
            its end; for strides above 1, inputs of several sizes have an output of the same.
        groups: into how many the channels are parted.
        bias: whether there is a b.
        dilation: d.
        weight_init: initializer of weight; default for both, as in torch: uniform on
            [-n^-1/2, n^-1/2), n = k k n_out / groups. Fans are those of the convolution that this
            one is the transpose of, so fan_in is n.
        bias_init: of bias.
        dtype: of the params.

    Returns:
        Model from x float [*batch, n_in, H, W] to [*batch, n_out, H', W'].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range, groups do not divide the channels, or, when applied,
            nothing of the output is left.
    """
    sizes = (kernel_size, stride, padding, output_padding, groups, bias, dilation)
    return _transposed("conv_transpose2d", 2, n_in, n_out, *sizes, weight_init, bias_init, dtype)


def conv_transpose1d(
    n_in: int,
    n_out: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Padding = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Sizes = 1,
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Transposed convolution of sequences x [*batch, n_in, L]; all else as in `conv_transpose2d`.

    Params: weight [n_in, n_out / groups, k] and, with bias, bias [n_out].
    """
    sizes = (kernel_size, stride, padding, output_padding, groups, bias, dilation)
    return _transposed("conv_transpose1d", 1, n_in, n_out, *sizes, weight_init, bias_init, dtype)


def conv_transpose3d(
    n_in: int,
    n_out: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Padding = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Sizes = 1,
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Transposed convolution of volumes x [*batch, n_in, D, H, W]; else as in `conv_transpose2d`.

    Params: weight [n_in, n_out / groups, k, k, k] and, with bias, bias [n_out].
    """
    sizes = (kernel_size, stride, padding, output_padding, groups, bias, dilation)
    return _transposed("conv_transpose3d", 3, n_in, n_out, *sizes, weight_init, bias_init, dtype)


def _transposed(
    layer: str,
    n: int,
    n_in: int,
    n_out: int,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Padding,
    output_padding: Sizes,
    groups: int,
    bias: bool,
    dilation: Sizes,
    weight_init: Initializer | None,
    bias_init: Initializer | None,
    dtype: torch.dtype,
) -> Model:
    _check.sizes(layer, n_in=n_in, n_out=n_out, groups=groups)
    _check.functions(layer, weight_init=weight_init, bias_init=bias_init)
    kernel = _window.per_dim(layer, "kernel_size", kernel_size, n)
    strides = _window.per_dim(layer, "stride", stride, n)
    dilations = _window.per_dim(layer, "dilation", dilation, n)
    extent = _window.extents(kernel, dilations)
    pairs, more = _cut(layer, padding, output_padding, extent, strides, dilations)
    for name, size in (("n_in", n_in), ("n_out", n_out)):
        if size % groups:
            raise ValueError(f"{layer}: {name} is {size}, expected a multiple of groups, {groups}")
    made = f"{layer}({n_in}, {n_out}, {kernel_size})"
    default = initializers.uniform((n_out // groups * math.prod(kernel)) ** -0.5)
    shapes: dict[str, tuple[int, ...]] = {"weight": (n_in, n_out // groups, *kernel)}
    makers = {"weight": weight_init or default}
    if bias:
        shapes["bias"], makers["bias"] = (n_out,), bias_init or default
    both = [min(pair) for pair in pairs]  # what is cut off both ends, and then the rest of each
    rest = [(before - cut, after - cut) for (before, after), cut in zip(pairs, both, strict=True)]
    convolve = _CONVOLVE[n]

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make_params(layer, key, shapes, makers, dtype), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, x: Any) -> tuple[Tensor, TensorDict]:
        weight, *biases = _check.parameters(layer, made, params, shapes)
        _window.channels(layer, made, x, n_in, n, weight)
        for i in range(n):
            left = (x.shape[i - n] - 1) * strides[i] + extent[i] + more[i] - sum(pairs[i])
            if left < 1:
                raise ValueError(
                    f"{layer}: x has shape {tuple(x.shape)}, of whose dim {i - n} the padding "
                    f"{pairs[i]} leaves {left} in the output, expected at least 1 (from {made})"
                )
        x, batch = _window.fold(x, n + 1)
        out = convolve(x, weight, *(biases or [None]), strides, both, more, groups, dilations)
        for i, (before, after) in enumerate(rest):
            if before or after:
                out = out.narrow(i - n, before, out.shape[i - n] - before - after)
        return _window.unfold(out, batch), buffers

    return Model(init, apply)


def _cut(
    layer: str,
    padding: Padding,
    output_padding: Sizes,
    extent: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[_window.Pairs, tuple[int, ...]]:
    """What is cut off both ends of the output, and what is added to the second."""
    fixed = _window.padding_of(layer, padding, len(extent))
    more = _window.per_dim(layer, "output_padding", output_padding, len(extent), 0)
    if fixed is None:
        if any(more):
            raise ValueError(
                f'{layer}: output_padding is {output_padding}, expected 0 with padding "same"'
            )
        # d (k - 1) + 1 - s, and the odd one at the end; below 0 the output is made longer
        over = [wide - step for wide, step in zip(extent, strides, strict=True)]
        fixed = tuple([(max(o, 0) // 2, max(o, 0) - max(o, 0) // 2) for o in over])
        return fixed, tuple([max(-o, 0) for o in over])
    for added, step, dilation in zip(more, strides, dilations, strict=True):
        if added >= max(step, dilation):
            raise ValueError(
                f"{layer}: output_padding is {output_padding}, expected less than the stride, "
                f"{step}, or the dilation, {dilation}"
            )
    return fixed, more
