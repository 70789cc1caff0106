"""Normalization by moments of the last dims, of groups of channels, or of each channel alone.

Where there are channels they come before `spatial` more dims, and any batch axes before them: x is
[*batch, C] with spatial=0, [*batch, C, H, W] with spatial=2. Moments over the batch are in
`batch_norm.py`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from .. import tree
from ..model import Model
from . import _check, _window, initializers
from .initializers import Initializer, make_params


def layer_norm(
    normalized_shape: int | Sequence[int],
    eps: float | Tensor = 1e-5,
    elementwise_affine: bool = True,
    bias: bool = True,
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Normalizes over the last dims.

        y = (x - mean) / sqrt(variance + eps) weight + bias

    Params, with elementwise_affine: weight and, with bias, bias, of the normalized shape.

    Args:
        normalized_shape: of the last dims, an int for one.
        eps: added to the variance, which is the mean square distance from the mean.
        elementwise_affine: whether there are weight and bias.
        bias: whether there is a bias.
        weight_init: initializer of weight; default: ones.
        bias_init: of bias; default: zeros.
        dtype: of the params.

    Returns:
        Model from x float [*batch, *normalized_shape] to the same shape.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range.

    Source: Ba, Kiros, Hinton (2016), Layer normalization, section 3.
    """
    name, made = "layer_norm", f"layer_norm({normalized_shape})"
    size = _window.shape_of(name, "normalized_shape", normalized_shape)
    _check.real(name, "eps", eps)
    names = ("weight", "bias") if bias else ("weight",)
    inits = (weight_init, bias_init)
    make, read = affine_params(name, made, size, names if elementwise_affine else (), inits, dtype)

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make(key), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, x: Any) -> tuple[Tensor, TensorDict]:
        weight, shift = read(params)
        _window.last(name, made, x, size, weight)
        if not isinstance(eps, Tensor):
            return functional.layer_norm(x, size, weight, shift, eps), buffers
        out = _standardized(x, len(size), eps)
        out = out if weight is None else out * weight
        return (out if shift is None else out + shift), buffers

    return Model(init, apply)


def rms_norm(
    normalized_shape: int | Sequence[int],
    eps: float | Tensor | None = None,
    elementwise_affine: bool = True,
    *,
    weight_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Divides by the root of the mean square over the last dims.

        y = x / sqrt(mean(x^2) + eps) weight

    Params, with elementwise_affine: weight, of the normalized shape.

    Args:
        normalized_shape: of the last dims, an int for one.
        eps: added to the mean square; default, as in torch: the spacing of x's dtype at 1.
        elementwise_affine: whether there is a weight.
        weight_init: initializer of weight; default: ones.
        dtype: of the params.

    Returns:
        Model from x float [*batch, *normalized_shape] to the same shape.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range.

    Source: Zhang & Sennrich (2019), Root mean square layer normalization, section 4.
    """
    name, made = "rms_norm", f"rms_norm({normalized_shape})"
    size = _window.shape_of(name, "normalized_shape", normalized_shape)
    if eps is not None:
        _check.real(name, "eps", eps)
    names = ("weight",) if elementwise_affine else ()
    make, read = affine_params(name, made, size, names, (weight_init, None), dtype)

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make(key), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, x: Any) -> tuple[Tensor, TensorDict]:
        weight, _ = read(params)
        _window.last(name, made, x, size, weight)
        if not isinstance(eps, Tensor):
            return functional.rms_norm(x, size, weight, eps), buffers
        square = x.square().mean(tuple(range(-len(size), 0)), keepdim=True)
        out = x * torch.rsqrt(square + eps)
        return (out if weight is None else out * weight), buffers

    return Model(init, apply)


def group_norm(
    n_groups: int,
    n_channels: int,
    eps: float | Tensor = 1e-5,
    affine: bool = True,
    *,
    spatial: int = 0,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Normalizes over groups of channels and the dims that follow.

        y = (x - mean) / sqrt(variance + eps) weight + bias

    with mean and variance of each group, weight and bias of each channel.

    Params, with affine: weight [C], bias [C].

    Args:
        n_groups: how many groups.
        n_channels: C, a multiple of n_groups.
        eps: added to the variance, which is the mean square distance from the mean.
        affine: whether there are weight and bias.
        spatial: how many dims follow the channels, 2 for images.
        weight_init: initializer of weight; default: ones.
        bias_init: of bias; default: zeros.
        dtype: of the params.

    Returns:
        Model from x float [*batch, C, *spatial] to the same shape.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range.

    Source: Wu & He (2018), Group normalization, section 3.1.
    """
    made = f"group_norm({n_groups}, {n_channels}, spatial={spatial})"
    _check.sizes("group_norm", n_groups=n_groups, n_channels=n_channels)
    if n_channels % n_groups:
        raise ValueError(
            f"group_norm: n_channels is {n_channels}, expected a multiple of n_groups, {n_groups}"
        )
    inits = (weight_init, bias_init)
    names = ("weight", "bias") if affine else ()
    return _grouped("group_norm", made, n_groups, n_channels, eps, names, spatial, inits, dtype)


def instance_norm(
    n_channels: int,
    eps: float | Tensor = 1e-5,
    affine: bool = False,
    *,
    spatial: int,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Normalizes each channel over the dims that follow: `group_norm` with a group a channel.

    Params, with affine: weight [C], bias [C].

    Args:
        n_channels: C.
        eps: added to the variance.
        affine: whether there are weight and bias.
        spatial: how many dims follow the channels, 2 for images.
        weight_init: initializer of weight; default: ones.
        bias_init: of bias; default: zeros.
        dtype: of the params.

    Returns:
        Model from x float [*batch, C, *spatial] to the same shape.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range.

    Source: Ulyanov, Vedaldi, Lempitsky (2016), Instance normalization, section 2.
    """
    made = f"instance_norm({n_channels}, spatial={spatial})"
    _check.sizes("instance_norm", n_channels=n_channels, spatial=spatial)
    inits = (weight_init, bias_init)
    names = ("weight", "bias") if affine else ()
    return _grouped(
        "instance_norm", made, n_channels, n_channels, eps, names, spatial, inits, dtype
    )


def affine_params(
    layer: str,
    made: str,
    size: tuple[int, ...],
    names: tuple[str, ...],
    inits: tuple[Initializer | None, Initializer | None],
    dtype: torch.dtype,
) -> tuple[Callable[[Tensor], TensorDict], Callable[[Any], tuple[Tensor | None, Tensor | None]]]:
    """How to make weight and bias of one size, and how to read them; None where there is none."""
    weight_init, bias_init = inits
    _check.functions(layer, weight_init=weight_init, bias_init=bias_init)
    all_makers = {
        "weight": weight_init or initializers.constant(1.0),
        "bias": bias_init or initializers.zeros,
    }
    makers = {name: all_makers[name] for name in names}
    shapes = dict.fromkeys(names, size)

    def init(key: Tensor) -> TensorDict:
        return make_params(layer, key, shapes, makers, dtype)

    def read(params: Any) -> tuple[Tensor | None, Tensor | None]:
        if not shapes:
            _check.level(layer, "params", params, shapes)
            return None, None
        found = _check.parameters(layer, made, params, shapes)
        return found[0], found[1] if len(found) > 1 else None

    return init, read


def _standardized(x: Tensor, n: int, eps: Tensor) -> Tensor:
    """Centered x over its standard deviation, of the last n dims."""
    dims = tuple(range(-n, 0))
    centered = x - x.mean(dims, keepdim=True)
    return centered * torch.rsqrt(centered.square().mean(dims, keepdim=True) + eps)


def _grouped(
    layer: str,
    made: str,
    n_groups: int,
    n_channels: int,
    eps: float | Tensor,
    names: tuple[str, ...],
    spatial: int,
    inits: tuple[Initializer | None, Initializer | None],
    dtype: torch.dtype,
) -> Model:
    _check.real(layer, "eps", eps)
    _window.per_dim(layer, "spatial", spatial, 1, 0)
    make, read = affine_params(layer, made, (n_channels,), names, inits, dtype)
    wide = (n_channels, *[1] * spatial)

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make(key), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, x: Any) -> tuple[Tensor, TensorDict]:
        weight, bias = read(params)
        _window.channels(layer, made, x, n_channels, spatial, weight)
        if n_channels // n_groups * math.prod(x.shape[x.dim() - spatial :]) < 2:
            raise ValueError(
                f"{layer}: x has shape {tuple(x.shape)}, one value in each group, expected at "
                f"least two (from {made})"
            )
        x, batch = _window.fold(x, spatial + 1)
        if not isinstance(eps, Tensor):
            out = functional.group_norm(x, n_groups, weight, bias, eps)
        else:
            groups = x.reshape(x.shape[0], n_groups, -1)
            out = _standardized(groups, 1, eps).reshape(x.shape)
            out = out if weight is None else out * weight.view(wide)
            out = out if bias is None else out + bias.view(wide)
        return _window.unfold(out, batch), buffers

    return Model(init, apply)
