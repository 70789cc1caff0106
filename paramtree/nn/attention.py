"""Attention in torch's parametrization: over any keys, and over the past of a sequence.

Time is the last dim but one, after any batch axes: x is [*batch, T, n]. (Recurrent layers, which go
through time, have it first.) A mask is True where a query may attend to a key, as in torch's
scaled_dot_product_attention, flax, haiku and equinox; torch.nn.MultiheadAttention's is the
opposite. A query that may attend to nothing gets zeros, and no gradient.

Symbols: E features, H heads of d numbers, G groups of heads that share their keys and values, T
queries, S keys.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..model import Model
from . import _check
from ._attention import Heads, make_heads
from .initializers import Initializer


def multi_head_attention(
    n_embed: int,
    n_heads: int,
    bias: bool = True,
    kdim: int | None = None,
    vdim: int | None = None,
    *,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
    causal: bool = False,
    rotary_base: float | Tensor | None = None,
    dropout: float | Tensor = 0.0,
    need_weights: bool = False,
    train: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Attention of several heads.

        head_h = softmax(Q_h K_hᵀ / d^(1/2) + mask) V_h,  out = W_o [head_1, ..., head_H] + b_o

    with Q, K, V affine in query, key and value.

    Params: in_proj_weight [3 H d, E], or q_proj_weight [H d, E], k_proj_weight [G d, kdim] and
    v_proj_weight [G d, vdim] where these differ from one another; in_proj_bias, of as many entries
    as they have rows; and a tree out_proj of weight [E, H d] and bias [E].
    Buffers: dropout.key, where there is dropout.

    Args:
        n_embed: E, features of query and output.
        n_heads: H.
        bias: whether there are biases.
        kdim: features of key; default: n_embed.
        vdim: features of value; default: n_embed.
        n_kv_heads: G, heads of keys and values, each for H / G heads of queries; default: H.
        head_dim: d; default: E / H.
        causal: whether query t sees the keys 0, ..., t alone.
        rotary_base: base of a rotary embedding of queries and keys, as in `rotary`; default: none.
        dropout: rate at which weights are set to zero.
        need_weights: whether the weights [*batch, H, T, S] are given too.
        train: whether there is dropout.
        weight_init: initializer of all weights; default, as in torch: Glorot's uniform, and for
            out_proj uniform on [-(H d)^-1/2, (H d)^-1/2).
        bias_init: of all biases; default: zeros.
        dtype: of the params.

    Returns:
        Model from query float [*batch, T, E], which attends to itself, or from a tuple (query, key,
        value, mask, key_mask), of which None and what is left out stand for: query for key, key for
        value, no mask. key [*batch, S, kdim], value [*batch, S, vdim]; mask bool, True where
        allowed, or float to be added to the scores, broadcast to [*batch, H, T, S]; key_mask bool
        [*batch, S], True where there is a key and no padding. To out [*batch, T, E], or with
        need_weights (out, weights).

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range, or does not divide what it should.

    Source: Vaswani et al. (2017), Attention is all you need, section 3.2; for groups: Ainslie et
    al. (2023), GQA: training generalized multi-query transformer models, section 2.2.
    """
    layer, made = "multi_head_attention", f"multi_head_attention({n_embed}, {n_heads})"
    sizes = (n_embed, n_heads, kdim or n_embed, vdim or n_embed, n_kv_heads, head_dim)
    inits = (weight_init, bias_init)
    heads = make_heads(layer, made, sizes, bias, rotary_base, dropout, train, inits, dtype)

    def apply(params: TensorDict, buffers: TensorDict, inputs: Any) -> tuple[Any, TensorDict]:
        weights, out_proj = heads.read(params)
        query, key, value, mask, key_mask = _inputs(heads, inputs, weights[0])
        q, k, v = heads.project(weights, query, key, value)
        q, k = heads.rotate(q, None), heads.rotate(k, None)
        shape = (*q.shape[:-1], k.shape[-2])
        allowed, bias, some = _masks(layer, mask, key_mask, causal, shape, q)
        out, rows, buffers = heads.attend(buffers, q, k, v, allowed, bias, need_weights)
        if some is not None:
            out = out.masked_fill(~some, 0.0)
            rows = rows if rows is None else rows.masked_fill(~some, 0.0)
        out = heads.merge(out_proj, out)
        return (out, rows) if need_weights else out, buffers

    return Model(heads.init, apply)


def _inputs(heads: Heads, inputs: Any, weight: Tensor) -> tuple[Any, ...]:
    """Query, key, value, mask and key_mask, after a look at the first three."""
    layer, names = heads.layer, ("query", "key", "value", "mask", "key_mask")
    query, key, value, mask, key_mask = _check.inputs(layer, inputs, *names)
    key = query if key is None else key
    value = key if value is None else value
    for name, x, size in zip(names, (query, key, value), heads.dims, strict=False):
        heads.check(x, size, weight, name)
    batch = tuple(query.shape[:-2])
    for name, x, wanted, source in (
        ("key", key, batch, "query"),
        ("value", value, (*batch, key.shape[-2]), "query and key"),
    ):
        if x.shape[: len(wanted)] != wanted or x.dim() != len(batch) + 2:
            raise ValueError(
                f"{layer}: {name} has shape {tuple(x.shape)}, expected it to begin with {wanted} "
                f"(from {source})"
            )
    return query, key, value, mask, key_mask


def _masks(
    layer: str,
    mask: Any,
    key_mask: Any,
    causal: bool,
    shape: tuple[int, ...],
    like: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Which keys a query sees, at least one; what is added to scores; who sees a key in truth."""
    parts, bias = [], None
    if mask is not None:
        mask = _check_mask(layer, "mask", mask, like.dtype, shape)
        if mask.dtype != torch.bool:
            finite = mask != -torch.inf
            bias, mask = mask.masked_fill(~finite, 0.0), finite
        parts.append(mask)
    if key_mask is not None:
        if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
            got = key_mask.dtype if isinstance(key_mask, Tensor) else type(key_mask).__name__
            raise TypeError(f"{layer}: key_mask is {got}, expected a bool tensor or None")
        wanted = (*shape[:-3], shape[-1])
        _check.shape(layer, "key_mask", key_mask, wanted, "[*batch, S] of key")
        parts.append(key_mask.unsqueeze(-2).unsqueeze(-2))
    if causal:
        parts.append(torch.ones(shape[-2:], dtype=torch.bool, device=like.device).tril())
    if not parts:
        return None, None, None
    allowed = parts[0]
    for part in parts[1:]:
        allowed = allowed & part
    if mask is None and key_mask is None:
        return allowed, bias, None  # every query sees the first key
    some = allowed.any(-1, keepdim=True)
    return allowed | ~some, bias, some


def _check_mask(
    layer: str, name: str, mask: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    """A mask that is bool or float and broadcasts to the scores."""
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{layer}: {name} is {got}, expected a bool or a float tensor or None")
    sizes = zip(reversed(mask.shape), reversed(shape), strict=False)
    if mask.dim() > len(shape) or any([a not in (1, b) for a, b in sizes]):
        raise ValueError(
            f"{layer}: {name} has shape {tuple(mask.shape)}, expected one that broadcasts to "
            f"{shape} ([*batch, H, T, S])"
        )
    if mask.dtype != torch.bool:
        _check.same_dtype(layer, name, mask, dtype)
    return mask
