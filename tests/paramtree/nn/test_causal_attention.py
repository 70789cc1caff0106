import pytest
import torch

from paramtree import grad, nn, rng, tree
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_derivatives,
    check_kinds,
    check_vmapped,
    close,
    draw,
    floats,
    moved,
    scalar,
)

LENGTH = 9


def resets(*batch, length=LENGTH, seed=0, p=0.25):
    return rng.bernoulli(rng.key(seed), p, (*batch, length))


def seen(reset, capacity):
    """Which steps a step sees, one pair after another."""
    length = len(reset)
    made = torch.zeros(length, length, dtype=torch.bool)
    for t in range(length):
        for s in range(t, -1, -1):
            made[t, s] = t - s < capacity
            if reset[s]:
                break
    return made


@pytest.mark.parametrize("capacity", [1, 3, 8, 20])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_equals_attention_under_a_mask(capacity, n_kv_heads):
    layer = nn.causal_attention(8, 4, capacity, n_kv_heads=n_kv_heads, dtype=DOUBLE)
    whole = nn.multi_head_attention(8, 4, n_kv_heads=n_kv_heads, dtype=DOUBLE)
    params, _ = moved(layer, rng.key(0))
    x, reset = draw(3, LENGTH, 8), resets(3)
    mask = torch.stack([seen(row, capacity) for row in reset]).unsqueeze(1)
    out, _ = layer(params, EMPTY, (x, reset))
    close(out, whole(params, EMPTY, (x, None, None, mask)))
    never = seen(torch.zeros(LENGTH), capacity)
    close(layer(params, EMPTY, x), whole(params, EMPTY, (x, None, None, never)))


OPTIONS = {
    "plain": {},
    "rotary": {"rotary_base": 30.0},
    "groups": {"n_kv_heads": 1, "head_dim": 6, "rotary_base": 30.0, "bias": False},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("capacity", [1, 4, 20])
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
def test_a_sequence_in_parts_is_the_whole(name, capacity, lead):
    layer = nn.causal_attention(8, 4, capacity, **OPTIONS[name], dtype=DOUBLE)
    params, _ = moved(layer, rng.key(0))
    x = draw(*lead, LENGTH, 8)
    for reset in (resets(*lead), torch.zeros_like(resets(*lead)), None):
        whole, last = layer(params, EMPTY, (x, reset))
        if reset is None:
            close(layer(params, EMPTY, x), whole)
        for cuts in ([*range(1, LENGTH)], [4], [1, 7], [5, 6]):
            out, cache = [], None
            for a, b in zip([0, *cuts], [*cuts, LENGTH], strict=True):
                now = None if reset is None else reset[..., a:b]
                part, cache = layer(params, EMPTY, (x[..., a:b, :], now, cache))
                out.append(part)
            close(torch.cat(out, -2), whole)
            assert cache.is_locked and cache.batch_size == lead
            assert torch.equal(cache["position"], last["position"])
            held = last["position"].clamp(max=capacity)[..., None] + torch.arange(-capacity, 0) >= 0
            for key in ("key", "value"):  # beyond that there is what nobody looks at
                close(*[part[key].movedim(-3, -2)[held] for part in (cache, last)])


def test_position_counts_from_the_last_reset():
    layer = nn.causal_attention(4, 2, 3, dtype=DOUBLE)
    params, _ = layer.init(rng.key(0))
    reset = torch.zeros(3, 5, dtype=torch.bool)
    reset[0, 1] = reset[0, 3] = reset[1, 0] = True
    _, cache = layer(params, EMPTY, (draw(3, 5, 4), reset))
    assert cache["position"].tolist() == [2, 5, 5]
    _, cache = layer(params, EMPTY, (draw(3, 2, 4), reset[:, :2], cache))
    assert cache["position"].tolist() == [1, 2, 7]


def test_gradients_go_through_the_cache_and_stop_at_a_reset():
    layer = nn.causal_attention(4, 2, 20, rotary_base=30.0, dtype=DOUBLE)
    params, _ = moved(layer, rng.key(0))
    x, reset = draw(2, 6, 4), torch.zeros(2, 6, dtype=torch.bool)
    reset[1, 4] = True

    def parted(params, x):
        first, cache = layer(params, EMPTY, (x[:, :3], reset[:, :3]))
        second, cache = layer(params, EMPTY, (x[:, 3:], reset[:, 3:], cache))
        return torch.cat((first, second), 1), cache

    def whole(params, x):
        return layer(params, EMPTY, (x, reset))

    slopes = [
        grad(lambda *given, fn=fn: scalar(fn(*given)[0]), (0, 1))(params, x)
        for fn in (parted, whole)
    ]
    close(floats(slopes[0]), floats(slopes[1]))
    last = grad(lambda x: parted(params, x)[0][:, 5].sum())(x)
    assert last[0].all() and not last[1, :4].any() and last[1, 4:].all()
    _, cache = layer(params, EMPTY, (x[:, :3], reset[:, :3]))
    keys = grad(
        lambda key: (
            layer(params, EMPTY, (x[:, 3:], None, tree.replace(cache, {"key": key})))[0]
            .square()
            .sum()
        )
    )(cache["key"])
    assert keys[:, :, -3:].any() and not keys[:, :, :-3].any()


def cached(layer, batch=2):
    """A cache of a layer that has seen some steps."""
    params, _ = moved(layer, rng.key(5))
    return layer.apply(params, layer.init(rng.key(5))[1], (draw(batch, 4, 4), None))[0][1]


LAYERS = {
    "plain": nn.causal_attention(4, 2, 3, dtype=DOUBLE),
    "rotary": nn.causal_attention(4, 2, 7, rotary_base=30.0, n_kv_heads=1, dtype=DOUBLE),
    "dropout": nn.causal_attention(4, 2, 7, dropout=0.3, dtype=DOUBLE),
}


@pytest.mark.parametrize("name", LAYERS)
def test_in_every_way(name):
    layer = LAYERS[name]
    inputs = (draw(2, 3, 4), resets(2, length=3, seed=3), cached(layer))
    check_derivatives(layer, inputs, fast=True)
    check_vmapped(layer, draw(2, 3, 4))
    many = [(inputs[0] * (1 + i), inputs[1].roll(i, 1), cached(layer)) for i in range(3)]
    leaves, structure = tree.flatten(inputs)
    columns = zip(*[tree.leaves(row) for row in many], strict=True)
    stacked = tree.unflatten(tree.with_axis(structure, 3), [torch.stack(c) for c in columns])
    check_vmapped(layer, inputs, stacked)


@pytest.mark.parametrize("name", ["rotary", "dropout"])
def test_compiled_equals_eager(name):
    layer = LAYERS[name]
    params, buffers = layer.init(rng.key(0))
    inputs = (draw(2, 3, 4), resets(2, length=3, seed=3), cached(layer))
    torch.compiler.reset()
    compiled = torch.compile(layer.apply, fullgraph=True, backend="aot_eager")
    ours, theirs = (fn(params, buffers, inputs) for fn in (compiled, layer.apply))
    close(tree.leaves(ours), tree.leaves(theirs))


def test_kinds_of_numbers_and_devices():
    check_kinds(
        lambda dtype: nn.causal_attention(4, 2, 2, rotary_base=9.0, dtype=dtype), draw(3, 4)
    )
    layer = LAYERS["rotary"]
    params, _ = layer.init(rng.key(0))
    inputs = (draw(2, 3, 4), resets(2, length=3), cached(layer))
    away = tree.unflatten(
        tree.flatten((params, inputs))[1],
        [leaf.to("meta") for leaf in tree.leaves((params, inputs))],
    )
    out, cache = layer(away[0], EMPTY, away[1])
    assert out.shape == (2, 3, 4) and cache["key"].device.type == "meta"


def test_dropout_draws_anew_at_each_call():
    layer, still = (
        nn.causal_attention(8, 2, 9, dropout=0.5, train=train, dtype=DOUBLE) for train in (1, 0)
    )
    params, buffers = layer.init(rng.key(0))
    x = draw(2, 6, 8)
    out, after = layer.apply(params, buffers, x)
    assert tree.paths(after) == [("dropout", "key")]
    assert not torch.equal(layer.apply(params, after, x)[0], out)
    close(layer.apply(params, buffers, x)[0], out)
    plain = nn.causal_attention(8, 2, 9, dtype=DOUBLE)
    close(still(params, buffers, x), plain(params, EMPTY, x))


LAYER = nn.causal_attention(4, 2, 3, dtype=DOUBLE)
PARAMS = LAYER.init(rng.key(0))[0]
X, CACHE = draw(2, 5, 4), cached(LAYER)


def run(x, *more):
    return lambda: LAYER(PARAMS, EMPTY, (x, *more) if more else x)


REFUSED = [
    (lambda: nn.causal_attention(4, 2, 0), ValueError, "causal_attention: capacity is 0"),
    (lambda: nn.causal_attention(5, 2, 3), ValueError, "causal_attention: n_embed is 5"),
    (run(draw(2, 5, 3)), ValueError, r"causal_attention: x has shape \(2, 5, 3\)"),
    (run(draw(4)), ValueError, r"x has shape \(4,\), expected \[\*batch, T, 4\]"),
    (run(X, X), TypeError, "reset is torch.float64, expected a bool tensor or None"),
    (run(X, resets(2, length=4)), ValueError, r"reset has shape \(2, 4\), expected \(2, 5\)"),
    (run(X, None, {"key": X}), TypeError, "cache is a dict, expected one that an"),
    (run(X, None, tree.new({"key": X})), ValueError, "cache lack value, position; expected key, v"),
    (
        run(X, None, cached(LAYER, 3)),
        ValueError,
        r"cache.key has shape \(3, 2, 3, 2\), expected .2",
    ),
    (
        run(X, None, cached(nn.causal_attention(4, 2, 4, dtype=DOUBLE))),
        ValueError,
        r"cache.key has shape \(2, 2, 4, 2\), .*from \*batch of x, and causal_attention\(4, 2, 3\)",
    ),
    (
        run(X, None, tree.replace(CACHE, {"key": CACHE["key"].float()})),
        TypeError,
        "cache.key has dtype torch.float32",
    ),
    (
        run(X, None, tree.replace(CACHE, {"position": CACHE["position"].double()})),
        TypeError,
        "cache.position has dtype torch.float64",
    ),
    (run(X, None, None, None), ValueError, "the input is a tuple of 4, expected .x, reset, cache"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
