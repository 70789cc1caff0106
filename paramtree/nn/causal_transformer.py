"""A recurrent layer made of attention: a stack whose layers keep what they saw in caches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..model import Model
from . import _check
from ._parts import Call, assembled
from .causal_attention import causal_attention
from .initializers import Initializer
from .norm import layer_norm
from .transformer import Activation, make_block


def causal_transformer(
    n_layers: int,
    n_embed: int,
    n_heads: int,
    capacity: int,
    n_hidden: int | None = None,
    *,
    norm_first: bool = True,
    final_norm: bool | None = None,
    activation: Activation = torch.relu,
    dropout: float | Tensor = 0.0,
    n_kv_heads: int | None = None,
    rotary_base: float | Tensor | None = 10_000.0,
    norm: Callable[..., Model] = layer_norm,
    bias: bool = True,
    train: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Stack of layers that look at the past through caches: a recurrent layer made of attention.

    Each layer is that of `transformer_encoder_layer` with `causal_attention` in it. A layer sees
    `capacity` steps, and so the stack up to n_layers (capacity - 1) steps back, but never beyond a
    reset. Parted in any way, step by step or at once, a sequence gives the same.

    Params: as in `transformer_stack`; norm with final_norm.
    Buffers: likewise.

    Args:
        n_layers: how many.
        n_embed: E, features of x.
        n_heads: as in `transformer_encoder_layer`.
        capacity: how many steps a layer sees, and its cache holds.
        n_hidden: as in `transformer_encoder_layer`.
        norm_first: likewise.
        final_norm: whether a norm comes last; default: where they come first.
        activation: as in `transformer_encoder_layer`.
        dropout: likewise.
        n_kv_heads: likewise.
        rotary_base: likewise, or None for none.
        norm: likewise.
        bias: likewise.
        train: likewise.
        weight_init: likewise.
        bias_init: likewise.
        dtype: of the params.

    Returns:
        Model whose input is x float [*batch, T, E] and gives out [*batch, T, E]; or a tuple
        (x, reset) or (x, reset, cache) as in `causal_attention`, and gives (out, cache). The cache
        is a tree of one for each layer, 0, 1, ....

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range, or does not divide what it should.

    Source: Dai et al. (2019), Transformer-XL, section 3.2, with rotary positions and with gradients
    through the cache; for agents: Parisotto et al. (2020), Stabilizing transformers for
    reinforcement learning.
    """
    layer = "causal_transformer"
    _check.sizes(layer, n_layers=n_layers)
    inits = (weight_init, bias_init)
    sizes, kinds = (2, n_embed, n_hidden), (norm_first, activation, norm)
    block = make_block(layer, sizes, kinds, dropout, bias, train, inits, dtype)
    attention = causal_attention(
        n_embed,
        n_heads,
        capacity,
        bias,
        n_kv_heads=n_kv_heads,
        rotary_base=rotary_base,
        dropout=dropout,
        train=train,
        weight_init=weight_init,
        bias_init=bias_init,
        dtype=dtype,
    )
    names = [str(i) for i in range(n_layers)]

    def forward(call: Call, inputs: tuple[Any, ...]) -> Any:
        x, *rest = inputs
        cache = []

        def attend(x: Tensor) -> Tensor:
            out, after = call("self_attn", (x, *rest))
            cache.append(after)
            return out

        x = block.add(call, 1, x, attend)
        return block.add(call, 2, x, lambda x: block.feed(call, x)), cache[0]

    def run(call: Call, inputs: tuple[Any, ...]) -> Any:
        x, reset, cache = inputs
        old = dict.fromkeys(names)
        if cache is not None:
            old = _check.level(layer, "cache", cache, names)
        new = {}
        for name in names:
            x, new[name] = call(name, (x, reset, old[name]))
        return x, new

    def whole(call: Call, inputs: Any) -> Any:
        parts = _check.inputs(layer, inputs, "x", "reset", "cache")
        x, cache = call("layers", parts)
        x = call("norm", x) if "norm" in stack else x
        return (x, tree.new(cache, x.shape[:-2])) if isinstance(inputs, tuple) else x

    one = assembled(layer, {"self_attn": attention, **block.parts}, forward)
    stack = {"layers": assembled(layer, dict.fromkeys(names, one), run)}
    if norm_first if final_norm is None else final_norm:
        stack["norm"] = norm(n_embed, dtype=dtype)
    return assembled(layer, stack, whole)
