from functools import partial

import pytest
import torch
from torch.nn import functional

from paramtree import Model, grad, nn, rng, tree
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_derivatives,
    check_kinds,
    check_vmapped,
    close,
    draw,
    moved,
    scalar,
)
from tests.paramtree.nn.test_attention import bools, of_module

SIZES = (6, 2, 5)  # features, heads, hidden


def stirred(module):
    for i, leaf in enumerate(module.parameters()):
        leaf.data = leaf.data + draw(*leaf.shape, seed=i) / 3
    return module


def same(layer, module, inputs, theirs):
    """Names, output and gradients are those of a module."""
    params = of_module(module)
    assert sorted(tree.paths(params)) == sorted(tree.paths(layer.init(rng.key(0))[0]))
    expected = module(*theirs[0], **theirs[1])
    close(layer(params, EMPTY, inputs), expected)
    module.zero_grad()
    scalar(expected).backward()
    slopes = grad(lambda params: scalar(layer(params, EMPTY, inputs)))(params)
    wanted = {name: leaf.grad for name, leaf in module.named_parameters()}
    for path, leaf in zip(tree.paths(slopes), tree.leaves(slopes), strict=True):
        close(leaf, wanted[".".join(path)])


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_encoder_layer_equals_torch(norm_first, activation, bias):
    layer = nn.transformer_encoder_layer(
        *SIZES,
        norm_first=norm_first,
        activation=getattr(functional, activation),
        norm=partial(nn.layer_norm, bias=bias),
        bias=bias,
        dtype=DOUBLE,
    )
    module = stirred(
        torch.nn.TransformerEncoderLayer(
            *SIZES,
            dropout=0.0,
            activation=activation,
            batch_first=True,
            norm_first=norm_first,
            bias=bias,
            dtype=DOUBLE,
        )
    )
    x, mask, key_mask = draw(3, 4, 6), bools(4, 4), bools(3, 4, seed=1)
    mask[:, 0] = key_mask[:, 0] = True
    same(layer, module, x, ((x,), {}))
    both = {"src_mask": ~mask, "src_key_padding_mask": ~key_mask}
    same(layer, module, (x, mask, key_mask), ((x,), both))


def test_causal_encoder_layer_equals_torch():
    layer = nn.transformer_encoder_layer(*SIZES, causal=True, dtype=DOUBLE)
    module = torch.nn.TransformerEncoderLayer(*SIZES, 0.0, batch_first=True, norm_first=True)
    later = torch.ones(4, 4, dtype=torch.bool).triu(1)
    x = draw(3, 4, 6)
    same(layer, stirred(module.double()), x, ((x,), {"src_mask": later}))


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoder_layer_equals_torch(norm_first):
    options = {"norm_first": norm_first, "dtype": DOUBLE}
    layer = nn.transformer_decoder_layer(*SIZES, **options)
    module = stirred(torch.nn.TransformerDecoderLayer(*SIZES, 0.0, batch_first=True, **options))
    x, memory = draw(3, 4, 6), draw(3, 5, 6, seed=1)
    same(layer, module, (x, memory), ((x, memory), {}))
    masks = bools(4, 4), bools(3, 4, seed=1), bools(4, 5, seed=2), bools(3, 5, seed=3)
    for mask in masks:
        mask[..., 0] = True
    names = ("tgt_mask", "tgt_key_padding_mask", "memory_mask", "memory_key_padding_mask")
    theirs = {name: ~mask for name, mask in zip(names, masks, strict=True)}
    same(layer, module, (x, memory, *masks), ((x, memory), theirs))
    causal = nn.transformer_decoder_layer(*SIZES, causal=True, **options)
    later = torch.ones(4, 4, dtype=torch.bool).triu(1)
    same(causal, module, (x, memory), ((x, memory), {"tgt_mask": later}))


@pytest.mark.parametrize("norm", [True, False])
def test_stacks_equal_torch(norm):
    x, memory, key_mask = draw(3, 4, 6), draw(3, 5, 6, seed=1), bools(3, 4)
    key_mask[:, 0] = True
    last = nn.layer_norm(6, dtype=DOUBLE) if norm else None
    theirs = torch.nn.LayerNorm(6, dtype=DOUBLE) if norm else None
    layer = nn.transformer_stack(nn.transformer_encoder_layer(*SIZES, dtype=DOUBLE), 3, last)
    one = torch.nn.TransformerEncoderLayer(
        *SIZES, 0.0, batch_first=True, norm_first=True, dtype=DOUBLE
    )
    module = torch.nn.TransformerEncoder(one, 3, theirs, enable_nested_tensor=False)
    same(layer, stirred(module), x, ((x,), {}))
    same(layer, module, (x, None, key_mask), ((x,), {"src_key_padding_mask": ~key_mask}))
    layer = nn.transformer_stack(nn.transformer_decoder_layer(*SIZES, dtype=DOUBLE), 2, last)
    one = torch.nn.TransformerDecoderLayer(
        *SIZES, 0.0, batch_first=True, norm_first=True, dtype=DOUBLE
    )
    module = stirred(torch.nn.TransformerDecoder(one, 2, theirs))
    same(layer, module, (x, memory), ((x, memory), {}))


def test_layers_of_a_stack_begin_differently():
    params, _ = nn.transformer_stack(nn.transformer_encoder_layer(*SIZES), 2).init(rng.key(0))
    left, right = (params["layers", str(i), "linear1", "weight"] for i in range(2))
    assert not torch.equal(left, right)
    made, _ = nn.transformer_encoder_layer(
        6, 2, weight_init=nn.constant(2.0), bias_init=nn.constant(3.0)
    ).init(rng.key(0))
    assert made["linear1", "weight"].shape == (24, 6)  # 4 times as many features
    rest = tree.exclude(made, "norm*.**")
    assert {float(leaf.unique()) for leaf in tree.leaves(rest)} == {2.0, 3.0}


def test_root_mean_square_norms_and_groups_of_heads():
    layer = nn.transformer_encoder_layer(
        8,
        4,
        norm=nn.rms_norm,
        n_kv_heads=2,
        rotary_base=50.0,
        causal=True,
        bias=False,
        dtype=DOUBLE,
    )
    params, _ = moved(layer, rng.key(0))
    attention = nn.multi_head_attention(
        8, 4, False, n_kv_heads=2, rotary_base=50.0, causal=True, dtype=DOUBLE
    )
    x = draw(2, 3, 8)
    first = functional.rms_norm(x, (8,), params["norm1", "weight"])
    middle = x + attention(params["self_attn"], EMPTY, first)
    second = functional.rms_norm(middle, (8,), params["norm2", "weight"])
    hidden = torch.relu(second @ params["linear1", "weight"].mT)
    close(layer(params, EMPTY, x), middle + hidden @ params["linear2", "weight"].mT)


LAYERS = {
    "encoder": nn.transformer_encoder_layer(4, 2, 3, activation=torch.tanh, dtype=DOUBLE),
    "post": nn.transformer_encoder_layer(
        4, 2, 3, norm_first=False, activation=torch.tanh, dropout=0.3, dtype=DOUBLE
    ),
    "stack": nn.transformer_stack(
        nn.transformer_encoder_layer(4, 2, 3, activation=torch.tanh, causal=True, dtype=DOUBLE),
        2,
        nn.layer_norm(4, dtype=DOUBLE),
    ),
    "decoder": nn.transformer_decoder_layer(4, 2, 3, activation=torch.tanh, dtype=DOUBLE),
    "causal": nn.causal_transformer(2, 4, 2, 2, 3, activation=torch.tanh, dtype=DOUBLE),
}


def inputs_of(name):
    x = draw(1, 3, 4)
    return (x, draw(1, 2, 4, seed=1)) if name == "decoder" else x


@pytest.mark.parametrize("name", LAYERS)
def test_in_every_way(name):
    x = inputs_of(name)
    check_derivatives(LAYERS[name], x, fast=True)
    check_vmapped(LAYERS[name], x)


@pytest.mark.parametrize("name", ["post", "decoder"])
def test_compiled_equals_eager(name):
    layer, x = LAYERS[name], inputs_of(name)
    params, buffers = moved(layer, rng.key(0))

    def fn(params, x):
        slope = grad(lambda p: scalar(layer.apply(p, buffers, x)[0]))(params)
        return layer.apply(params, buffers, x), slope

    torch.compiler.reset()
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    close(tree.leaves(compiled(params, x)), tree.leaves(fn(params, x)))


@pytest.mark.parametrize("make", [nn.transformer_encoder_layer, partial(nn.causal_transformer, 2)])
def test_kinds_of_numbers_and_devices(make):
    more = (5,) if isinstance(make, partial) else ()
    check_kinds(lambda dtype: make(4, 2, *more, dtype=dtype), draw(2, 3, 4))


def test_dropout_is_where_torch_has_it():
    options = {"activation": torch.tanh, "dtype": DOUBLE}
    layer, still, plain = (
        nn.transformer_encoder_layer(8, 2, 6, **options, **more)
        for more in ({"dropout": 0.5}, {"dropout": 0.5, "train": False}, {})
    )
    params, buffers = layer.init(rng.key(0))
    names = [("dropout", "key"), ("dropout1", "key"), ("dropout2", "key")]
    assert tree.paths(buffers) == [*names, ("self_attn", "dropout", "key")]
    assert tree.paths(still.init(rng.key(0))[1]) == tree.paths(buffers)
    x = draw(2, 3, 8)
    close(still(params, buffers, x), plain(params, EMPTY, x))
    out, after = layer.apply(params, buffers, x)
    for old, new in zip(tree.leaves(buffers), tree.leaves(after), strict=True):
        assert not torch.equal(old, new)
    # by hand, with the same keys
    drop, attention = nn.dropout(0.5), nn.multi_head_attention(8, 2, dropout=0.5, dtype=DOUBLE)
    norm, affine = nn.layer_norm(8, dtype=DOUBLE), functional.linear

    def dropped(name, x):
        return drop.apply(EMPTY, buffers[name], x)[0]

    first = norm(params["norm1"], EMPTY, x)
    heads = attention.apply(params["self_attn"], buffers["self_attn"], first)[0]
    x = x + dropped("dropout1", heads)
    hidden = affine(norm(params["norm2"], EMPTY, x), *weights(params, "linear1")).tanh()
    last = affine(dropped("dropout", hidden), *weights(params, "linear2"))
    close(out, x + dropped("dropout2", last))


def weights(params, name):
    return params[name, "weight"], params[name, "bias"]


def test_a_rate_of_dropout_is_a_hyper_parameter():
    x, rate = draw(2, 3, 4), torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)

    def fn(rate):
        layer = nn.transformer_encoder_layer(4, 2, dropout=rate, dtype=DOUBLE)
        return layer.apply(*layer.init(rng.key(0)), x)[0]

    assert torch.autograd.gradcheck(fn, rate)


def once(calls):
    """A layer that writes down what it's given."""

    def apply(params, buffers, inputs):
        calls.append(inputs)
        return inputs[0] + 1, buffers

    return Model(lambda key: (EMPTY, EMPTY), apply)


def test_a_stack_hands_on_what_comes_beside_x():
    calls = []
    layer = nn.transformer_stack(once(calls), 3)
    assert layer(EMPTY, EMPTY, (0, "memory", None)) == 3
    assert calls == [(0, "memory", None), (1, "memory", None), (2, "memory", None)]


ENCODER, DECODER = LAYERS["encoder"], LAYERS["decoder"]
PARAMS, X = ENCODER.init(rng.key(0))[0], draw(2, 3, 4)
STACK = nn.transformer_stack(ENCODER, 2)
REFUSED = [
    (lambda: nn.transformer_encoder_layer(5, 2), ValueError, "n_embed is 5, expected a multiple"),
    (lambda: nn.transformer_encoder_layer(4, 2, 0), ValueError, "_layer: n_hidden is 0"),
    (lambda: nn.transformer_encoder_layer(4, 2, activation="relu"), TypeError, "activation is a s"),
    (lambda: nn.transformer_decoder_layer(4, 2, dropout=-1.0), ValueError, "dropout is -1.0"),
    (lambda: nn.transformer_stack(ENCODER, 0), ValueError, "transformer_stack: n_layers is 0"),
    (lambda: nn.transformer_stack(torch.relu, 2), TypeError, "transformer_stack: layer is a"),
    (lambda: nn.transformer_stack(ENCODER, 2, torch.relu), TypeError, "_stack: norm is a"),
    (
        lambda: STACK(STACK.init(rng.key(0))[0], EMPTY, draw(2, 3, 5)),
        ValueError,
        r"layer_norm: x has shape \(2, 3, 5\), .*; in layers.0.norm1",
    ),
    (
        lambda: STACK(STACK.init(rng.key(0))[0], EMPTY, (X, bools(2, 2))),
        ValueError,
        r"mask has shape \(2, 2\), .*; in layers.0.self_attn",
    ),
    (
        lambda: ENCODER(tree.exclude(PARAMS, "linear1.**"), EMPTY, X),
        ValueError,
        "linear: params lack weight, bias; .*; in linear1",
    ),
    (
        lambda: ENCODER(tree.merge(PARAMS, tree.new({"norm3": PARAMS["norm1"]})), EMPTY, X),
        ValueError,
        "transformer_encoder_layer: params hold an unknown norm3; expected self_attn, linear1",
    ),
    (
        lambda: ENCODER(PARAMS, EMPTY, (X,) * 4),
        ValueError,
        "the input is a tuple of 4, expected .x",
    ),
    (
        lambda: DECODER(DECODER.init(rng.key(0))[0], EMPTY, X),
        ValueError,
        "transformer_decoder_layer: the input has no memory, expected .x, memory, mask",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
