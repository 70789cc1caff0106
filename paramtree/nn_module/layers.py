"""Layers that draw, and rules that torch lacks: for vmap, for a second derivative, without writes.

Fused recurrent functions and attention go step by step where they have to.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import rng
from . import attention, recurrent
from .batching import bare, is_transformed
from .draws import coin, fill
from .rows import Rows, given

ROWS = Rows()


@ROWS.of(torch.dropout, torch.dropout_)
def _dropout(guard: Any, func: Any, x: Tensor, p: float, train: bool) -> Tensor:
    return _scaled(guard, func, x, p, train, x.shape)


@ROWS.of(torch.feature_dropout, torch.feature_dropout_)
def _feature_dropout(guard: Any, func: Any, x: Tensor, p: float, train: bool) -> Tensor:
    return _scaled(guard, func, x, p, train, _features(x))


@ROWS.of(torch.alpha_dropout, torch.alpha_dropout_)
def _alpha_dropout(guard: Any, func: Any, x: Tensor, p: float, train: bool) -> Tensor:
    return _scaled(guard, func, x, p, train, x.shape, alpha=True)


@ROWS.of(torch.feature_alpha_dropout, torch.feature_alpha_dropout_)
def _feature_alpha(guard: Any, func: Any, x: Tensor, p: float, train: bool) -> Tensor:
    return _scaled(guard, func, x, p, train, _features(x), alpha=True)


@ROWS.of(torch.native_dropout)
def _native_dropout(guard: Any, func: Any, x: Tensor, p: float, train: bool | None) -> Any:
    if train is False or not p:
        return x, torch.ones_like(x, dtype=torch.bool)
    mask = coin(guard.key(func, None, x), 1.0 - p, x.shape)
    return x * _noise(mask, p, x.dtype), mask


def _scaled(
    guard: Any,
    func: Any,
    x: Tensor,
    p: float,
    train: bool,
    shape: Sequence[int],
    alpha: bool = False,
) -> Tensor:
    """Dropout with one draw for each entry of a shape that broadcasts.

    The alpha kind keeps mean and variance: what it drops becomes -λα of SELU, and all is scaled.
    """
    if not train or not p:
        return x
    inplace = func.__name__[-1] == "_"
    mask = coin(guard.key(func, None, x), 1.0 - p, shape)
    if not alpha:
        noise = _noise(mask, p, x.dtype)
        return x.mul_(noise) if inplace else x * noise
    low = 1.7580993408473766
    scale = 0.0 if p == 1 else ((low * low * p + 1) * (1 - p)) ** -0.5
    noise = mask.to(x.dtype)
    shift = (noise - 1) * (low * scale) + low * scale * p
    return x.mul_(noise * scale).add_(shift) if inplace else x * (noise * scale) + shift


def _noise(mask: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    return mask.to(dtype) * (0.0 if p == 1 else 1 / (1 - p))


def _features(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], *[1] * (x.dim() - 2))


@ROWS.of(torch.rrelu, torch.rrelu_)
def _rrelu(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    wanted = {"lower": 1 / 8, "upper": 1 / 3, "training": False, "generator": None}
    lower, upper, training, generator = given(args, kwargs, wanted)
    if not training:
        return func(x, lower, upper, False)
    slope = rng.uniform(guard.key(func, generator, x), x.shape, lower, upper, dtype=x.dtype)
    noise = torch.where(x <= 0, slope, 1.0)
    return x.mul_(noise) if func.__name__ == "rrelu_" else x * noise


@ROWS.of(functional.scaled_dot_product_attention)
def _attention(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Fused where that's all it takes: fused kernels know neither vmap nor a second derivative."""
    wanted: dict[str, Any] = {"query": None, "key": None, "value": None, "attn_mask": None}
    wanted |= {"dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    query, key, value, mask, p, causal, scale, grouped = given(args, kwargs, wanted)

    def dropped(weights: Tensor) -> Tensor:
        return _scaled(guard, func, weights, p, True, weights.shape)

    options = (causal, scale, grouped)
    inputs = [query, key, value] if mask is None else [query, key, value, mask]
    if p or any([is_transformed(x) for x in inputs]):
        return attention.steps(inputs, options, dropped)
    recorded = torch.is_grad_enabled() and any([x.requires_grad for x in inputs])
    if torch.compiler.is_compiling() or not recorded:
        return func(*args, **kwargs)
    return attention.Attention.apply(func, options, *inputs)


_PLANES = (functional.fractional_max_pool2d, functional.fractional_max_pool2d_with_indices)


@ROWS.of(
    *_PLANES,
    functional.fractional_max_pool3d,
    functional.fractional_max_pool3d_with_indices,
)
def _fractional(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    names = ("kernel_size", "output_size", "output_ratio", "return_indices", "_random_samples")
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    if kwargs.get("_random_samples") is None:
        dims = 2 if func in _PLANES else 3
        lead = x.shape[: x.dim() - dims]
        shape = (1, *lead, dims) if len(lead) == 1 else (*lead, dims)
        kwargs["_random_samples"] = rng.uniform(guard.key(func, None, x), shape, dtype=x.dtype)
    return func(x, **kwargs)


@ROWS.of(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
def _recurrent(guard: Any, func: Any, *args: Any) -> Any:
    call = recurrent.Call.of(func.__name__, args)
    draws = call.train and call.dropout > 0 and call.layers > 1
    if not draws and not any([is_transformed(x) for x in (call.x, *call.state, *call.weights)]):
        return func(*args)

    def dropped(x: Tensor) -> Tensor:
        return _scaled(guard, func, x, call.dropout, draws, x.shape)

    return recurrent.run(call, dropped)


@ROWS.of(torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell)
def _cell(guard: Any, func: Any, x: Tensor, state: Any, *weights: Tensor | None) -> Any:
    parts = tuple(state) if isinstance(state, (tuple, list)) else (state,)  # noqa: UP038
    known = [w for w in weights if w is not None]
    if not any([is_transformed(y) for y in (x, *parts, *known)]):
        return func(x, state, *weights)
    out = recurrent.step(func.__name__[:-5], x, parts, [*weights, None, None][:4])
    return out if func is torch.lstm_cell else out[0]


@ROWS.of(functional.embedding)
def _embedding(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A row above the greatest norm counts as scaled down; torch scales the parameter itself."""
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type")
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    most, order = kwargs.pop("max_norm", None), kwargs.pop("norm_type", 2.0)
    rest = {"scale_grad_by_freq": args[5], "sparse": args[6]} if len(args) > 6 else {}
    return _within(func(**kwargs, **rest), most, order)


@ROWS.of(functional.embedding_bag)
def _embedding_bag(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    names = ("input", "weight", "offsets", "max_norm", "norm_type")
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    most, order = kwargs.pop("max_norm", None), kwargs.pop("norm_type", 2.0)
    names = ("scale_grad_by_freq", "mode", "sparse", "per_sample_weights", "include_last_offset")
    rest = dict(zip((*names, "padding_idx"), args[5:], strict=False))
    return func(**{**kwargs, "weight": _within(kwargs["weight"], most, order)}, **rest)


def _within(rows: Tensor, most: float | None, order: float) -> Tensor:
    """Rows of a norm of at most this; the gradient is that in the rows as they came out."""
    if most is None:
        return rows
    size = torch.linalg.vector_norm(rows.detach(), order, -1, keepdim=True)
    scale = torch.where(size > most, most / (size + 1e-7), 1.0)
    return rows + (rows * (scale - 1)).detach()


@ROWS.of(functional.one_hot)
def _one_hot(guard: Any, func: Any, x: Tensor, num_classes: int = -1) -> Tensor:
    """Torch looks at the numbers, which vmap doesn't allow."""
    if num_classes < 0 or not is_transformed(x):
        return func(x, num_classes)
    return (x.unsqueeze(-1) == torch.arange(num_classes, device=x.device)).long()


@ROWS.of(functional.normalize)
def _normalize(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """With ``out``, as spectral norms have it, torch has no rule for vmap."""
    p, dim, eps, out = given(args, kwargs, {"p": 2.0, "dim": 1, "eps": 1e-12, "out": None})
    value = func(x, p, dim, eps)
    return value if out is None else fill(guard, func, out, value)


@ROWS.of(torch._weight_norm)
def _weight_norm(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Torch's own has no rule for vmap and a wrong second derivative."""
    v, g, dim = given(args, kwargs, {"v": None, "g": None, "dim": 0})
    return v * (g / _norm_except(v, 2, dim))


@ROWS.of(torch.norm_except_dim)
def _norm_except_dim(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    return _norm_except(*given(args, kwargs, {"v": None, "pow": 2, "dim": 0}))


def _norm_except(v: Tensor, order: int, dim: int) -> Tensor:
    if dim == -1:
        return torch.linalg.vector_norm(v, order)
    return torch.linalg.vector_norm(v, order, [i for i in range(v.dim()) if i != dim], keepdim=True)


@ROWS.of(Tensor.__bool__)
def _bool(guard: Any, func: Any, x: Tensor) -> bool:
    """A condition inside vmap that is the same for the whole batch, as where nothing is wrong."""
    if torch.compiler.is_compiling():
        return func(x)
    values = bare(x)
    if values is x or not values.numel() or not bool((values == values.flatten()[0]).all()):
        return func(x)
    return bool(values.flatten()[0])
