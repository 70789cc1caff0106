"""Convolutions over the last one, two or three dims, in torch's parametrization.

Channels come before the dims that a kernel slides over, and any batch axes before them: x is
[*batch, n_in, L], [*batch, n_in, H, W] or [*batch, n_in, D, H, W].
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.nn import functional

from .. import tree
from ..model import Model
from . import _check, _window, initializers
from ._window import Padding, Sizes
from .compose import sequential
from .initializers import Initializer, make_params

_CONVOLVE: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}
_FEW = 16  # channels


def conv2d(
    n_in: int,
    n_out: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Convolution of images (a cross-correlation, as in torch).

        y[o, i, j] = b[o] + sum_cuv W[o, c, u, v] x[c, s i + d u - p, s j + d v - p]

    with stride s, dilation d and padding p; outputs are floor((H + 2p - d (k - 1) - 1) / s) + 1
    high. Per dim, a size is an int for all or one of a tuple.

    Params: weight [n_out, n_in / groups, k, k] and, with bias, bias [n_out].

    Args:
        n_in: channels of the input.
        n_out: channels of the output.
        kernel_size: k.
        stride: s.
        padding: p, an int for both ends or a pair (before, after), such as (d (k - 1), 0) for a
            causal convolution; or "valid", none, or "same": ceil(H / s) outputs, as in JAX.
        dilation: d.
        groups: into how many the channels are parted; each has its own n_in / groups inputs and
            n_out / groups outputs.
        bias: whether there is a b.
        padding_mode: what is beyond the ends: "zeros", "reflect", "replicate" or "circular".
        weight_init: initializer of weight; default for both, as in torch: uniform on
            [-n^-1/2, n^-1/2), n = k k n_in / groups.
        bias_init: of bias.
        dtype: of the params.

    Returns:
        Model from x float [*batch, n_in, H, W] to [*batch, n_out, H', W'].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range, groups do not divide the channels, or, when applied, x
            is smaller than the kernel.
    """
    sizes = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
    made = f"conv2d({n_in}, {n_out}, {kernel_size})"
    return _conv("conv2d", made, 2, n_in, n_out, *sizes, weight_init, bias_init, dtype)


def conv1d(
    n_in: int,
    n_out: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Convolution of sequences x [*batch, n_in, L]; all else as in `conv2d`, with one dim less.

    Params: weight [n_out, n_in / groups, k] and, with bias, bias [n_out].
    """
    sizes = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
    made = f"conv1d({n_in}, {n_out}, {kernel_size})"
    return _conv("conv1d", made, 1, n_in, n_out, *sizes, weight_init, bias_init, dtype)


def conv3d(
    n_in: int,
    n_out: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Convolution of volumes x [*batch, n_in, D, H, W]; all else as in `conv2d`, with a dim more.

    Params: weight [n_out, n_in / groups, k, k, k] and, with bias, bias [n_out].
    """
    sizes = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
    made = f"conv3d({n_in}, {n_out}, {kernel_size})"
    return _conv("conv3d", made, 3, n_in, n_out, *sizes, weight_init, bias_init, dtype)


def depthwise_conv2d(
    n_in: int,
    kernel_size: Sizes,
    multiplier: int = 1,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Convolution of each channel of an image alone: `conv2d` with groups = n_in.

    Params: weight [n_in multiplier, 1, k, k] and, with bias, bias [n_in multiplier]; output channel
    c multiplier + m is the m-th one of input channel c. Two in a row, with kernels (k, 1) and
    (1, k), are a convolution that is separable in space.

    Args:
        n_in: channels of the input.
        kernel_size: as all that follow in `conv2d`.
        multiplier: output channels for each input channel.
        stride: likewise.
        padding: likewise.
        dilation: likewise.
        bias: likewise.
        padding_mode: likewise.
        weight_init: likewise.
        bias_init: likewise.
        dtype: of the params.

    Returns:
        Model from x float [*batch, n_in, H, W] to [*batch, n_in multiplier, H', W'].

    Raises:
        TypeError: as in `conv2d`.
        ValueError: as in `conv2d`.
    """
    sizes = (kernel_size, stride, padding, dilation, bias, padding_mode)
    inits = (weight_init, bias_init, dtype)
    return _depthwise("depthwise_conv2d", 2, n_in, multiplier, *sizes, *inits)


def depthwise_conv1d(
    n_in: int,
    kernel_size: Sizes,
    multiplier: int = 1,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Convolution of each channel of a sequence alone; all else as in `depthwise_conv2d`.

    Params: weight [n_in multiplier, 1, k] and, with bias, bias [n_in multiplier].
    """
    sizes = (kernel_size, stride, padding, dilation, bias, padding_mode)
    inits = (weight_init, bias_init, dtype)
    return _depthwise("depthwise_conv1d", 1, n_in, multiplier, *sizes, *inits)


def depthwise_conv3d(
    n_in: int,
    kernel_size: Sizes,
    multiplier: int = 1,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Convolution of each channel of a volume alone; all else as in `depthwise_conv2d`.

    Params: weight [n_in multiplier, 1, k, k, k] and, with bias, bias [n_in multiplier].
    """
    sizes = (kernel_size, stride, padding, dilation, bias, padding_mode)
    inits = (weight_init, bias_init, dtype)
    return _depthwise("depthwise_conv3d", 3, n_in, multiplier, *sizes, *inits)


def separable_conv2d(
    n_in: int,
    n_out: int,
    kernel_size: Sizes,
    multiplier: int = 1,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Convolution of each channel of an image alone, then a linear map of the channels.

    Params: depthwise as in `depthwise_conv2d` without bias, pointwise as in `conv2d` with kernel
    size 1.

    Args:
        n_in: channels of the input.
        n_out: channels of the output.
        kernel_size: of the first part, as are multiplier, stride, padding, dilation and
            padding_mode, all as in `depthwise_conv2d`.
        multiplier: see there.
        stride: see there.
        padding: see there.
        dilation: see there.
        bias: whether the second part has one.
        padding_mode: see there.
        weight_init: of both weights.
        bias_init: of the bias.
        dtype: of the params.

    Returns:
        Model from x float [*batch, n_in, H, W] to [*batch, n_out, H', W'].

    Raises:
        TypeError: as in `conv2d`.
        ValueError: as in `conv2d`.

    Source: Chollet (2017), Xception: deep learning with depthwise separable convolutions, section
    2.
    """
    sizes = (kernel_size, stride, padding, dilation, bias, padding_mode)
    inits = (weight_init, bias_init, dtype)
    return _separable("separable_conv2d", 2, n_in, n_out, multiplier, *sizes, *inits)


def separable_conv1d(
    n_in: int,
    n_out: int,
    kernel_size: Sizes,
    multiplier: int = 1,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Convolution of each channel of a sequence, then a linear map, as in `separable_conv2d`."""
    sizes = (kernel_size, stride, padding, dilation, bias, padding_mode)
    inits = (weight_init, bias_init, dtype)
    return _separable("separable_conv1d", 1, n_in, n_out, multiplier, *sizes, *inits)


def _conv(
    layer: str,
    made: str,
    n: int,
    n_in: int,
    n_out: int,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Padding,
    dilation: Sizes,
    groups: int,
    bias: bool,
    padding_mode: str,
    weight_init: Initializer | None,
    bias_init: Initializer | None,
    dtype: torch.dtype,
) -> Model:
    _check.sizes(layer, n_in=n_in, n_out=n_out, groups=groups)
    _check.functions(layer, weight_init=weight_init, bias_init=bias_init)
    kernel = _window.per_dim(layer, "kernel_size", kernel_size, n)
    strides = _window.per_dim(layer, "stride", stride, n)
    dilations = _window.per_dim(layer, "dilation", dilation, n)
    fixed = _window.padding_of(layer, padding, n)
    for name, size in (("n_in", n_in), ("n_out", n_out)):
        if size % groups:
            raise ValueError(f"{layer}: {name} is {size}, expected a multiple of groups, {groups}")
    if padding_mode not in _MODES:
        known = ", ".join(_MODES)
        raise ValueError(f"{layer}: padding_mode is {padding_mode!r}, expected one of {known}")
    mode = _MODES[padding_mode]
    default = initializers.uniform((n_in // groups * math.prod(kernel)) ** -0.5)
    shapes: dict[str, tuple[int, ...]] = {"weight": (n_out, n_in // groups, *kernel)}
    makers = {"weight": weight_init or default}
    if bias:
        shapes["bias"], makers["bias"] = (n_out,), bias_init or default
    extent, convolve = _window.extents(kernel, dilations), _CONVOLVE[n]

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make_params(layer, key, shapes, makers, dtype), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, x: Any) -> tuple[Tensor, TensorDict]:
        weight, *rest = _check.parameters(layer, made, params, shapes)
        _window.channels(layer, made, x, n_in, n, weight)
        pairs = _window.same(x.shape[-n:], extent, strides) if fixed is None else fixed
        _window.require_fit(layer, made, x, pairs, extent)
        x, batch = _window.fold(x, n + 1)
        even = mode == "constant" and all([before == after for before, after in pairs])
        if not even:
            _require_enough(layer, padding_mode, x, pairs)
            x = _window.pad(x, pairs, mode)
        amounts = [before if even else 0 for before, _ in pairs]
        weight = _laid_out(weight, x)
        out = convolve(x, weight, *(rest or [None]), strides, amounts, dilations, groups)
        return _window.unfold(out, batch), buffers

    return Model(init, apply)


def _require_enough(layer: str, padding_mode: str, x: Tensor, pairs: _window.Pairs) -> None:
    """Refuses more padding than there is to reflect or to go round."""
    spare = {"reflect": 1, "circular": 0}.get(padding_mode)
    if spare is None:
        return
    for i, pair in enumerate(pairs, -len(pairs)):
        if max(pair) > x.shape[i] - spare:
            raise ValueError(
                f"{layer}: x has size {x.shape[i]} in dim {i}, expected at least "
                f"{max(pair) + spare} (from padding {pair} with padding_mode {padding_mode!r})"
            )


def _laid_out(weight: Tensor, x: Tensor) -> Tensor:
    """The weight, channels last in memory where torch's CPU kernels are slow without.

    With weights and inputs mapped, vmap makes groups of the mapped axis. oneDNN's kernels for
    groups of few channels take up to ten times as long when channels come first.
    """
    few = weight.shape[1] < _FEW and weight.device.type == "cpu"
    if few and not torch.compiler.is_compiling() and _is_mapped(weight) and _is_mapped(x):
        return weight.movedim(1, -1).contiguous().movedim(-1, 1)
    return weight


def _is_mapped(tensor: Tensor) -> bool:
    """Whether a vmap at any level maps a tensor."""
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return True
        tensor = get_unwrapped(tensor)
    return False


def _depthwise(layer: str, n: int, n_in: int, multiplier: int, *rest: Any) -> Model:
    _check.sizes(layer, n_in=n_in, multiplier=multiplier)
    kernel_size, stride, padding, dilation, *options = rest
    sizes = (kernel_size, stride, padding, dilation)
    made = f"{layer}({n_in}, {kernel_size}, {multiplier})"
    return _conv(layer, made, n, n_in, n_in * multiplier, *sizes, n_in, *options)


def _separable(layer: str, n: int, n_in: int, n_out: int, multiplier: int, *rest: Any) -> Model:
    _check.sizes(layer, n_in=n_in, n_out=n_out, multiplier=multiplier)
    kernel_size, stride, padding, dilation, bias, mode, weight_init, bias_init, dtype = rest
    inits = (weight_init, bias_init, dtype)
    sizes = (kernel_size, stride, padding, dilation)
    made, middle = f"{layer}({n_in}, {n_out}, {kernel_size}, {multiplier})", n_in * multiplier
    pointwise = (1, 1, 0, 1, 1, bias, "zeros", *inits)
    return sequential(
        depthwise=_conv(layer, made, n, n_in, middle, *sizes, n_in, False, mode, *inits),
        pointwise=_conv(layer, made, n, middle, n_out, *pointwise),
    )
