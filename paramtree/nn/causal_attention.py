"""Attention to the past of a sequence, whose keys and values are state that goes in and out."""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional

from .. import tree
from ..model import Model
from . import _check
from ._attention import Heads, make_heads
from .initializers import Initializer


def causal_attention(
    n_embed: int,
    n_heads: int,
    capacity: int,
    bias: bool = True,
    *,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
    rotary_base: float | Tensor | None = None,
    dropout: float | Tensor = 0.0,
    train: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Attention of each step to itself and to the steps before it, whose keys and values are kept.

    A step sees the last `capacity` steps, itself included, as far back as the last reset. The cache
    is state that goes in and out, as h and c of `lstm` do: any way to part a sequence gives the
    same, step by step or at once.

    Params: as in `multi_head_attention`.
    Buffers: dropout.key, where there is dropout.

    Args:
        n_embed: E, features of input and output.
        n_heads: H.
        capacity: how many steps a step sees, and the cache holds.
        bias: as in `multi_head_attention`.
        n_kv_heads: likewise.
        head_dim: likewise.
        rotary_base: likewise; positions count from the last reset.
        dropout: likewise.
        train: likewise.
        weight_init: likewise.
        bias_init: likewise.
        dtype: of the params.

    Returns:
        Model whose input is x float [*batch, T, E] and gives out [*batch, T, E]; or a tuple
        (x, reset) or (x, reset, cache), with reset bool [*batch, T] or None, True where a step sees
        nothing of what came before, and the cache that an earlier call gave, or None, and gives
        (out, cache). A cache is a tree of batch size [*batch]: key and value [*batch, G, capacity,
        d], the latest step last, and position int64 [*batch], the number of steps since the last
        reset.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range, or does not divide what it should.

    Source: Vaswani et al. (2017), Attention is all you need, section 3.2; for the cache: Dai et al.
    (2019), Transformer-XL, section 3.2.
    """
    layer, made = "causal_attention", f"causal_attention({n_embed}, {n_heads}, {capacity})"
    _check.sizes(layer, capacity=capacity)
    sizes = (n_embed, n_heads, n_embed, n_embed, n_kv_heads, head_dim)
    inits = (weight_init, bias_init)
    heads = make_heads(layer, made, sizes, bias, rotary_base, dropout, train, inits, dtype)

    def apply(params: TensorDict, buffers: TensorDict, inputs: Any) -> tuple[Any, TensorDict]:
        weights, out_proj = heads.read(params)
        x, reset, cache = _check.inputs(layer, inputs, "x", "reset", "cache")
        heads.check(x, n_embed, weights[0], "x")
        start, past = _past(heads, capacity, x, reset, cache)
        q, k, v = heads.project(weights, x, x, x)
        length, device = x.shape[-2], x.device
        now = torch.arange(length, device=device)
        age = now if start is None else (now - start).unsqueeze(-2)  # [*batch, 1, T]
        q, k = heads.rotate(q, age), heads.rotate(k, age)
        if past is not None:
            k, v = torch.cat((past[0], k), -2), torch.cat((past[1], v), -2)
        then = torch.arange(length - k.shape[-2], length, device=device)  # of keys, [S]
        allowed = then <= now.unsqueeze(-1)
        if k.shape[-2] > capacity:
            allowed = allowed & (then > now.unsqueeze(-1) - capacity)
        if start is not None:
            allowed = (allowed & (then >= start.unsqueeze(-1))).unsqueeze(-3)
        out, _, buffers = heads.attend(buffers, q, k, v, allowed, None, False)
        out = heads.merge(out_proj, out)
        if not isinstance(inputs, tuple):
            return out, buffers
        batch = tuple(x.shape[:-2])
        short = max(capacity - k.shape[-2], 0)
        k, v = (functional.pad(y[..., -capacity:, :], (0, 0, short, 0)) for y in (k, v))
        first = now.new_zeros(batch) if start is None else start[..., -1].expand(batch)
        return (out, tree.new({"key": k, "value": v, "position": length - first}, batch)), buffers

    return Model(heads.init, apply)


def _past(
    heads: Heads, capacity: int, x: Tensor, reset: Any, cache: Any
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """The step at which each one's episode began, below 0 in the cache; its keys and values.

    Steps count from the first of x; [*batch, T] or [*batch, 1], or None where all began at 0.
    """
    layer, batch = heads.layer, tuple(x.shape[:-2])
    start, past = None, None
    if cache is not None:
        if not isinstance(cache, TensorDictBase):
            got = type(cache).__name__
            raise TypeError(f"{layer}: cache is a {got}, expected one that an earlier call gave")
        entries = _check.level(layer, "cache", cache, ("key", "value", "position"))
        wanted = (*batch, heads.n_groups, capacity, heads.size)
        for name in ("key", "value"):
            source = f"*batch of x, and {heads.made}"
            _check.shape(layer, f"cache.{name}", entries[name], wanted, source)
            _check.same_dtype(layer, f"cache.{name}", entries[name], x.dtype)
        position = entries["position"]
        _check.shape(layer, "cache.position", position, batch, "*batch of x")
        if position.dtype != torch.int64:
            raise TypeError(
                f"{layer}: cache.position has dtype {position.dtype}, expected torch.int64"
            )
        start, past = -position.unsqueeze(-1), (entries["key"], entries["value"])
    if reset is not None:
        if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
            got = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
            raise TypeError(f"{layer}: reset is {got}, expected a bool tensor or None")
        _check.shape(layer, "reset", reset, tuple(x.shape[:-1]), "[*batch, T] of x")
        now = torch.arange(x.shape[-2], device=x.device)
        before = now.new_zeros(()) if start is None else start
        start = torch.where(reset, now, before).cummax(-1).values
    return start, past
