"""Transformer layers with the names of torch's, and stacks of them.

Time is the last dim but one, and masks are True where attention is allowed, as in `attention.py`.

A low-rank adaptation of the weights (Hu et al., 2021) needs no layer of its own. What is trained is
one tree, what is frozen another, and one line adds the two:

>>> import torch
>>> from paramtree import grad, nn, rng, tree
>>> model = nn.transformer_stack(nn.transformer_encoder_layer(8, n_heads=2), n_layers=2)
>>> frozen, buffers = model.init(rng.key(0))
>>> chosen = tree.select(frozen, "layers.*.self_attn.in_proj_weight")
>>> def low_rank(path, weight):
...     a = rng.normal(rng.fold_in(rng.key(1), ".".join(path)), (2, weight.shape[1]))
...     return tree.new({"a": a, "b": torch.zeros(weight.shape[0], 2)})
>>> lora = {path: low_rank(path, frozen[path]) for path in tree.paths(chosen)}
>>> def adapted(lora):
...     return tree.replace(frozen, {p: frozen[p] + ab["b"] @ ab["a"] for p, ab in lora.items()})
>>> x = rng.normal(rng.key(2), (5, 3, 8))
>>> torch.equal(model(adapted(lora), buffers, x), model(frozen, buffers, x))
True
>>> slope = grad(lambda lora: model(adapted(lora), buffers, x).square().sum())(lora)
>>> [tuple(leaf.shape) for leaf in tree.leaves(slope)]
[(2, 8), (24, 2), (2, 8), (24, 2)]

"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model import Model, require_model
from . import _check
from ._parts import Call, assembled
from .attention import multi_head_attention
from .initializers import Initializer
from .linear import linear
from .noise import dropout as dropout_layer
from .norm import layer_norm

Activation = Callable[[Tensor], Tensor]


def transformer_encoder_layer(
    n_embed: int,
    n_heads: int,
    n_hidden: int | None = None,
    *,
    norm_first: bool = True,
    activation: Activation = torch.relu,
    dropout: float | Tensor = 0.0,
    causal: bool = False,
    n_kv_heads: int | None = None,
    rotary_base: float | Tensor | None = None,
    norm: Callable[..., Model] = layer_norm,
    bias: bool = True,
    train: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Attention of a sequence to itself, then two affine maps, each added to what it was given.

        x = x + attention(norm1(x)),  x = x + linear2(activation(linear1(norm2(x))))

    or, with norm_first=False, x = norm1(x + attention(x)), and likewise after it.

    Params: self_attn as in `multi_head_attention`; linear1, linear2; norm1, norm2.
    Buffers, where there is dropout: keys of self_attn, dropout (after the activation), dropout1 and
    dropout2 (before what is computed is added).

    Args:
        n_embed: E, features of x.
        n_heads: heads of attention.
        n_hidden: features between linear1 and linear2; default: 4 E. (Torch's is 2048.)
        norm_first: where the norms are. (Torch's default is False.)
        activation: between the maps.
        dropout: its rate. (Torch's default is 0.1.)
        causal: whether step t sees the steps 0, ..., t alone.
        n_kv_heads: as in `multi_head_attention`.
        rotary_base: likewise.
        norm: called as `norm(n_embed, dtype=dtype)`: layer_norm, rms_norm, or a partial of one.
        bias: whether attention and maps have biases.
        train: whether there is dropout.
        weight_init: initializer of the weights of attention and maps; default: theirs.
        bias_init: of the biases.
        dtype: of the params.

    Returns:
        Model from x float [*batch, T, E], or a tuple (x, mask, key_mask) or less, with masks as in
        `multi_head_attention`, to [*batch, T, E].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range, or does not divide what it should.

    Source: Vaswani et al. (2017), Attention is all you need, section 3.1; for norm_first: Xiong et
    al. (2020), On layer normalization in the transformer architecture, section 3.
    """
    layer, names = "transformer_encoder_layer", ("x", "mask", "key_mask")
    inits = (weight_init, bias_init)
    sizes, kinds = (2, n_embed, n_hidden), (norm_first, activation, norm)
    block = make_block(layer, sizes, kinds, dropout, bias, train, inits, dtype)
    attention = multi_head_attention(
        n_embed,
        n_heads,
        bias,
        n_kv_heads=n_kv_heads,
        causal=causal,
        rotary_base=rotary_base,
        dropout=dropout,
        train=train,
        weight_init=weight_init,
        bias_init=bias_init,
        dtype=dtype,
    )

    def forward(call: Call, inputs: Any) -> Tensor:
        x, *masks = _check.inputs(layer, inputs, *names)
        x = block.add(call, 1, x, lambda x: call("self_attn", (x, None, None, *masks)))
        return block.add(call, 2, x, lambda x: block.feed(call, x))

    return assembled(layer, {"self_attn": attention, **block.parts}, forward)


def transformer_decoder_layer(
    n_embed: int,
    n_heads: int,
    n_hidden: int | None = None,
    *,
    norm_first: bool = True,
    activation: Activation = torch.relu,
    dropout: float | Tensor = 0.0,
    causal: bool = False,
    n_kv_heads: int | None = None,
    rotary_base: float | Tensor | None = None,
    norm: Callable[..., Model] = layer_norm,
    bias: bool = True,
    train: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Attention of a sequence to itself, then to a memory, then two affine maps, each added.

        x = x + attention(norm1(x)),  x = x + attention(norm2(x), memory)
        x = x + linear2(activation(linear1(norm3(x))))

    or, with norm_first=False, x = norm1(x + attention(x)), and likewise after it.

    Params: self_attn and multihead_attn as in `multi_head_attention`; linear1, linear2; norm1,
    norm2, norm3.
    Buffers, where there is dropout: keys of self_attn, multihead_attn, dropout (after the
    activation), dropout1, dropout2 and dropout3 (before what is computed is added).

    Args:
        n_embed: E, features of x and of the memory.
        n_heads: as in `transformer_encoder_layer`.
        n_hidden: likewise.
        norm_first: likewise.
        activation: likewise.
        dropout: likewise.
        causal: whether step t sees the steps 0, ..., t alone, of x itself.
        n_kv_heads: as in `transformer_encoder_layer`.
        rotary_base: likewise, for the attention of x to itself.
        norm: as in `transformer_encoder_layer`.
        bias: likewise.
        train: likewise.
        weight_init: likewise.
        bias_init: likewise.
        dtype: of the params.

    Returns:
        Model from a tuple (x, memory, mask, key_mask, memory_mask, memory_key_mask), or less, with
        x float [*batch, T, E], memory [*batch, S, E] and two masks for each attention as in
        `multi_head_attention`, to [*batch, T, E].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range, or does not divide what it should; or, when applied,
            there is no memory.

    Source: Vaswani et al. (2017), Attention is all you need, section 3.1.
    """
    layer = "transformer_decoder_layer"
    names = ("x", "memory", "mask", "key_mask", "memory_mask", "memory_key_mask")
    inits = (weight_init, bias_init)
    sizes, kinds = (3, n_embed, n_hidden), (norm_first, activation, norm)
    block = make_block(layer, sizes, kinds, dropout, bias, train, inits, dtype)
    shared: dict[str, Any] = {"n_kv_heads": n_kv_heads, "dropout": dropout, "train": train}
    shared |= {"weight_init": weight_init, "bias_init": bias_init, "dtype": dtype}
    attentions = {
        "self_attn": multi_head_attention(
            n_embed, n_heads, bias, causal=causal, rotary_base=rotary_base, **shared
        ),
        "multihead_attn": multi_head_attention(n_embed, n_heads, bias, **shared),
    }

    def forward(call: Call, inputs: Any) -> Tensor:
        x, memory, *masks = _check.inputs(layer, inputs, *names)
        if memory is None:
            raise ValueError(f"{layer}: the input has no memory, expected ({', '.join(names)})")
        own, others = (None, None, *masks[:2]), (memory, None, *masks[2:])
        x = block.add(call, 1, x, lambda x: call("self_attn", (x, *own)))
        x = block.add(call, 2, x, lambda x: call("multihead_attn", (x, *others)))
        return block.add(call, 3, x, lambda x: block.feed(call, x))

    return assembled(layer, {**attentions, **block.parts}, forward)


def transformer_stack(layer: Model, n_layers: int, norm: Model | None = None) -> Model:
    """Layers of one kind, each on the output of the one before, named as in TransformerEncoder.

    Params: a tree layers of trees 0, 1, ..., each the layer's; and norm.
    Buffers: likewise.

    Args:
        layer: such as `transformer_encoder_layer`, `transformer_decoder_layer`, or another model
            from (x, *rest) to x.
        n_layers: how many.
        norm: after the last of them, such as `layer_norm` where layers have their norms first;
            default: none.

    Returns:
        Model from x or (x, *rest) to x; every layer gets the rest, memory and masks, as it is.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: there are no layers.
    """
    _check.sizes("transformer_stack", n_layers=n_layers)
    require_model("transformer_stack", "layer", layer)
    names = [str(i) for i in range(n_layers)]

    def run(call: Call, inputs: Any) -> Any:
        for name in names:
            out = call(name, inputs)
            inputs = (out, *inputs[1:]) if isinstance(inputs, tuple) else out
        return inputs[0] if isinstance(inputs, tuple) else inputs

    layers = assembled("transformer_stack", dict.fromkeys(names, layer), run)
    if norm is None:
        return assembled("transformer_stack", {"layers": layers}, _run_layers)
    require_model("transformer_stack", "norm", norm)
    parts = {"layers": layers, "norm": norm}
    return assembled("transformer_stack", parts, lambda c, x: c("norm", _run_layers(c, x)))


def _run_layers(call: Call, inputs: Any) -> Any:
    return call("layers", inputs)


class Block(NamedTuple):
    """What is around the attention of a layer."""

    parts: Mapping[str, Model]
    norm_first: bool
    activation: Activation

    def add(self, call: Call, i: int, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Adds fn of x to x, with the i-th norm and dropout."""
        made = fn(call(f"norm{i}", x) if self.norm_first else x)
        x = x + self._dropped(call, f"dropout{i}", made)
        return x if self.norm_first else call(f"norm{i}", x)

    def feed(self, call: Call, x: Tensor) -> Tensor:
        """The two affine maps."""
        hidden = self.activation(call("linear1", x))
        return call("linear2", self._dropped(call, "dropout", hidden))

    def _dropped(self, call: Call, name: str, x: Tensor) -> Tensor:
        return call(name, x) if name in self.parts else x


def make_block(
    layer: str,
    sizes: tuple[int, int, int | None],
    kinds: tuple[bool, Activation, Callable[..., Model]],
    dropout: float | Tensor,
    bias: bool,
    train: bool,
    inits: tuple[Initializer | None, Initializer | None],
    dtype: torch.dtype,
) -> Block:
    """A block of n norms, from the arguments of a layer."""
    (n, n_embed, n_hidden), (norm_first, activation, norm) = sizes, kinds
    n_hidden = 4 * n_embed if n_hidden is None else n_hidden
    _check.sizes(layer, n_embed=n_embed, n_hidden=n_hidden)
    _check.functions(layer, activation=activation, norm=norm)
    _check.real(layer, "dropout", dropout, 0.0, 1.0)
    parts = {
        "linear1": linear(n_embed, n_hidden, bias, *inits, dtype=dtype),
        "linear2": linear(n_hidden, n_embed, bias, *inits, dtype=dtype),
        **{f"norm{i}": norm(n_embed, dtype=dtype) for i in range(1, n + 1)},
    }
    if isinstance(dropout, Tensor) or dropout != 0:
        names = ("dropout", *[f"dropout{i}" for i in range(1, n + 1)])
        parts |= {name: dropout_layer(dropout, train=train) for name in names}
    return Block(parts, norm_first, activation)
