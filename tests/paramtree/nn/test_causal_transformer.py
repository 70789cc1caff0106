import pytest
import torch

from paramtree import grad, nn, rng, tree
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_derivatives,
    check_vmapped,
    close,
    draw,
    moved,
    scalar,
)
from tests.paramtree.nn.test_causal_attention import resets, seen


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("capacity", [3, 20])
def test_equals_a_stack_of_encoder_layers_under_a_mask(norm_first, capacity):
    options = {"norm_first": norm_first, "rotary_base": 30.0, "dtype": DOUBLE}
    layer = nn.causal_transformer(2, 8, 2, capacity, 5, **options)
    norm = nn.layer_norm(8, dtype=DOUBLE) if norm_first else None
    stack = nn.transformer_stack(nn.transformer_encoder_layer(8, 2, 5, **options), 2, norm)
    params, _ = moved(layer, rng.key(0))
    assert tree.paths(params) == tree.paths(stack.init(rng.key(0))[0])
    x, reset = draw(3, 9, 8), resets(3)
    mask = torch.stack([seen(row, capacity) for row in reset]).unsqueeze(1)
    close(layer(params, EMPTY, (x, reset))[0], stack(params, EMPTY, (x, mask)))
    close(layer(params, EMPTY, x), stack(params, EMPTY, (x, seen(torch.zeros(9), capacity))))


@pytest.mark.parametrize("capacity", [1, 4, 20])
def test_step_by_step_is_the_whole(capacity):
    layer = nn.causal_transformer(3, 8, 4, capacity, n_kv_heads=2, dtype=DOUBLE)
    params, _ = moved(layer, rng.key(0))
    x, reset = draw(3, 9, 8), resets(3)
    whole, last = layer(params, EMPTY, (x, reset))
    out, cache = [], None
    for t in range(9):
        now = slice(t, t + 1)
        step, cache = layer(params, EMPTY, (x[:, now], reset[:, now], cache))
        out.append(step)
    close(torch.cat(out, 1), whole)
    assert cache.is_locked and cache.batch_size == (3,) and sorted(cache.keys()) == ["0", "1", "2"]
    assert torch.equal(cache["2", "position"], last["2", "position"])


def test_it_sees_further_than_one_layer_but_never_beyond_a_reset():
    layer = nn.causal_transformer(3, 4, 2, 2, norm_first=False, dtype=DOUBLE)
    params, _ = moved(layer, rng.key(0))
    x, reset = draw(6, 4), torch.tensor([0, 0, 0, 1, 0, 0]).bool()

    def slope(reset):
        return grad(lambda x: layer(params, EMPTY, (x, reset))[0][5].square().sum())(x).abs().sum(1)

    assert (slope(torch.zeros_like(reset)) > 0).tolist() == [False, False, True, True, True, True]
    assert (slope(reset) > 0).tolist() == [False, False, False, True, True, True]


def test_a_final_norm_where_norms_come_first():
    for norm_first, final, has in [(1, None, 1), (0, None, 0), (1, False, 0), (0, True, 1)]:
        layer = nn.causal_transformer(1, 4, 2, 3, norm_first=bool(norm_first), final_norm=final)
        assert ("norm" in layer.init(rng.key(0))[0].keys()) == bool(has)


def test_gradients_of_cached_steps_vmapped_and_twice():
    layer = nn.causal_transformer(2, 4, 2, 3, 3, activation=torch.tanh, dropout=0.2, dtype=DOUBLE)
    params, buffers = moved(layer, rng.key(1))
    _, cache = layer.apply(params, buffers, (draw(2, 4, 4), None))[0]
    inputs = (draw(2, 2, 4), resets(2, length=2), cache)
    check_derivatives(layer, inputs, fast=True)
    leaves, structure = tree.flatten(inputs)
    many = [torch.stack([leaf, leaf, leaf]) for leaf in leaves]
    check_vmapped(layer, inputs, tree.unflatten(tree.with_axis(structure, 3), many))


def test_dropout_of_every_layer():
    layer = nn.causal_transformer(2, 8, 2, 9, dropout=0.5, dtype=DOUBLE)
    still = nn.causal_transformer(2, 8, 2, 9, dropout=0.5, train=False, dtype=DOUBLE)
    params, buffers = layer.init(rng.key(0))
    x = draw(2, 3, 8)
    _, after = layer.apply(params, buffers, x)
    keys = zip(tree.leaves(buffers), tree.leaves(after), strict=True)
    assert len(tree.leaves(buffers)) == 8 and not any(torch.equal(a, b) for a, b in keys)
    plain = nn.causal_transformer(2, 8, 2, 9, dtype=DOUBLE)
    close(still(params, buffers, x), plain(params, EMPTY, x))


def test_a_compiled_step_of_decoding():
    layer = nn.causal_transformer(2, 4, 2, 3, dtype=DOUBLE)
    params, buffers = moved(layer, rng.key(0))
    x, reset = draw(2, 3, 4), resets(2, length=3)
    _, cache = layer(params, EMPTY, (x, reset))

    def step(params, x, cache):
        slope = grad(lambda p: scalar(layer(p, buffers, (x, reset, cache))[0]))(params)
        return layer(params, buffers, (x, reset, cache)), slope

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    ours, theirs = (fn(params, x, cache) for fn in (compiled, step))
    close(tree.leaves(ours), tree.leaves(theirs))


LAYER = nn.causal_transformer(2, 4, 2, 3, dtype=DOUBLE)
PARAMS, X = LAYER.init(rng.key(0))[0], draw(2, 3, 4)
CACHE = LAYER(PARAMS, EMPTY, (X, None))[1]
REFUSED = [
    (lambda: nn.causal_transformer(0, 4, 2, 3), ValueError, "causal_transformer: n_layers is 0"),
    (lambda: nn.causal_transformer(1, 4, 2, 0), ValueError, "capacity is 0"),
    (
        lambda: LAYER(PARAMS, EMPTY, (X, None, CACHE["0"])),
        ValueError,
        "causal_transformer: cache lack 0, 1 and hold an unknown key",
    ),
    (
        lambda: LAYER(PARAMS, EMPTY, (X[:1], None, CACHE)),
        ValueError,
        r"cache.key has shape \(2, 2, 3, 2\), .*; in layers.0.self_attn",
    ),
    (
        lambda: LAYER(PARAMS, EMPTY, (X, X)),
        TypeError,
        "reset is torch.float64, .*layers.0.se",
    ),
    (lambda: LAYER(PARAMS, EMPTY, (X,) * 4), ValueError, "the input is a tuple of 4"),
    (
        lambda: LAYER(PARAMS, EMPTY, draw(2, 3, 5)),
        ValueError,
        "layer_norm: x has shape .*layers.0",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
