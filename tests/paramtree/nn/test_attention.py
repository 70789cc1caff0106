import math

import pytest
import torch
from torch.nn import functional

from paramtree import grad, nn, rng, tree
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_compiled,
    check_derivatives,
    check_kinds,
    check_vmapped,
    close,
    draw,
    moved,
    scalar,
)


def of_module(module):
    """Params of a torch.nn.Module, nested by the dots of their names."""

    def level(rows):
        made = {}
        for name, leaf in rows:
            head, _, rest = name.partition(".")
            made.setdefault(head, []).append((rest, leaf))
        return tree.new({k: v[0][1] if not v[0][0] else level(v) for k, v in made.items()})

    return level([(name, leaf.detach().clone()) for name, leaf in module.named_parameters()])


def module_of(n_embed, n_heads, seed=0, **options):
    module = torch.nn.MultiheadAttention(
        n_embed, n_heads, batch_first=True, dtype=DOUBLE, **options
    )
    for i, leaf in enumerate(module.parameters()):
        leaf.data = draw(*leaf.shape, seed=seed + i) / 3
    return module


def bools(*shape, seed=0, p=0.7):
    return rng.bernoulli(rng.key(seed), p, shape)


CASES = {
    "self": ({}, None, None),
    "cross": ({}, 6, 6),
    "other keys": ({"kdim": 3, "vdim": 5}, 3, 5),
    "other values": ({"vdim": 5}, 6, 5),
    "no bias": ({"bias": False}, 6, 6),
    "no bias, other keys": ({"bias": False, "kdim": 3}, 3, 6),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name):
    options, kdim, vdim = CASES[name]
    module = module_of(6, 2, **options)
    layer = nn.multi_head_attention(6, 2, **options, need_weights=True, dtype=DOUBLE)
    lean = nn.multi_head_attention(6, 2, **options, dtype=DOUBLE)  # by way of the fast kernels
    params = of_module(module)
    assert sorted(tree.paths(params)) == sorted(tree.paths(layer.init(rng.key(0))[0]))
    x = draw(3, 4, 6, seed=9)
    inputs = (x,) if kdim is None else (x, draw(3, 5, kdim, seed=10), draw(3, 5, vdim, seed=11))
    for own, theirs in masks(4, 4 if kdim is None else 5):

        def ours(params, inputs, own=own):
            whole = (*inputs, None, None)[:3]
            return layer(params, EMPTY, (*whole, *own))

        leaves = [leaf.clone().requires_grad_() for leaf in inputs]
        whole = leaves * 3 if len(leaves) == 1 else leaves
        expected = module(*whole, average_attn_weights=False, **theirs)
        close(ours(params, inputs), expected)
        close(lean(params, EMPTY, ((*inputs, None, None)[:3]) + own), expected[0])
        module.zero_grad()
        scalar(expected).backward()
        slopes = grad(lambda *given: scalar(ours(*given)), (0, 1))(params, inputs)
        close(list(slopes[1]), [leaf.grad for leaf in leaves])
        wanted = {name: leaf.grad for name, leaf in module.named_parameters()}
        for path, leaf in zip(tree.paths(params), tree.leaves(slopes[0]), strict=True):
            close(leaf, wanted[".".join(path)])


def masks(n_queries, n_keys):
    """(mask, key_mask) of ours, and what torch wants for them."""
    mask, key_mask = bools(n_queries, n_keys), bools(3, n_keys, seed=1)
    mask[:, 0] = key_mask[:, 0] = True  # torch has NaN where a query sees nothing
    each = bools(3, 2, n_queries, n_keys, seed=2)
    each[..., 0] = True
    added = draw(n_queries, n_keys, seed=3)
    cut = added.masked_fill(~mask, -torch.inf)
    padding = torch.zeros(3, n_keys, dtype=DOUBLE).masked_fill(~key_mask, -torch.inf)
    return [
        ((None, None), {}),
        ((mask, None), {"attn_mask": ~mask}),
        ((None, key_mask), {"key_padding_mask": ~key_mask}),
        ((mask, key_mask), {"attn_mask": ~mask, "key_padding_mask": ~key_mask}),
        ((each, None), {"attn_mask": ~each.flatten(0, 1)}),
        ((added, None), {"attn_mask": added}),
        ((cut, key_mask), {"attn_mask": cut, "key_padding_mask": padding}),
    ]


def test_causal_queries_see_no_later_key():
    module, layer = module_of(6, 2), nn.multi_head_attention(6, 2, causal=True, dtype=DOUBLE)
    params, x = of_module(module), draw(3, 5, 6)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    close(layer(params, EMPTY, x), module(x, x, x, attn_mask=later)[0])
    key_mask = bools(3, 5)
    key_mask[:, 0] = True
    expected = module(x, x, x, attn_mask=later, key_padding_mask=~key_mask)[0]
    close(layer(params, EMPTY, (x, None, None, None, key_mask)), expected)
    memory = draw(3, 2, 6, seed=4)  # fewer keys than queries: query t sees the keys 0, ..., t
    early = torch.ones(5, 2, dtype=torch.bool).triu(1)
    close(layer(params, EMPTY, (x, memory)), module(x, memory, memory, attn_mask=early)[0])


@pytest.mark.parametrize(("n_kv_heads", "head_dim"), [(2, None), (1, 3), (4, 5), (2, 3)])
def test_groups_and_sizes_of_heads(n_kv_heads, head_dim):
    layer = nn.multi_head_attention(
        8, 4, kdim=5, n_kv_heads=n_kv_heads, head_dim=head_dim, causal=True, dtype=DOUBLE
    )
    params, _ = moved(layer, rng.key(0))
    d = head_dim or 2
    x, y, z = draw(2, 3, 8), draw(2, 6, 5, seed=1), draw(2, 6, 8, seed=2)
    biases = params["in_proj_bias"].split([4 * d, n_kv_heads * d, n_kv_heads * d])
    q, k, v = (
        functional.linear(part, params[f"{name}_proj_weight"], bias).unflatten(-1, (-1, d)).mT.mT
        for part, name, bias in zip((x, y, z), "qkv", biases, strict=True)
    )
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    out = functional.linear(
        out.transpose(1, 2).flatten(2), *(params["out_proj", name] for name in ("weight", "bias"))
    )
    close(layer(params, EMPTY, (x, y, z)), out)


def test_a_query_that_sees_nothing_gets_zeros_and_finite_derivatives():
    layer = nn.multi_head_attention(4, 2, need_weights=True, dtype=DOUBLE)
    params, _ = moved(layer, rng.key(0))
    x, mask = draw(2, 3, 4), torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[0, :, 1] = False
    key_mask = torch.tensor([[True, True, True], [False, False, False]])
    rows = [
        ((mask, None), [(0, 1)]),
        ((torch.zeros_like(mask, dtype=DOUBLE).masked_fill(~mask, -torch.inf), None), [(0, 1)]),
        ((None, key_mask), [(1, 0), (1, 1), (1, 2)]),
        ((mask, key_mask), [(0, 1), (1, 0), (1, 1), (1, 2)]),
    ]
    for given, blind in rows:

        def fn(x, given=given):
            return layer(params, EMPTY, (x, None, None, *given))

        out, weights = fn(x)
        for i in range(2):
            for t in range(3):
                seen = 0.0 if (i, t) in blind else 1.0
                close(weights[i, :, t].sum(-1), torch.full((2,), seen, dtype=DOUBLE))
                if (i, t) in blind:
                    close(out[i, t], params["out_proj", "bias"])
                    assert not grad(lambda x, i=i, t=t: fn(x)[0][i, t].sum())(x).any()
        lean = nn.multi_head_attention(4, 2, dtype=DOUBLE)  # by way of the fast kernels
        close(lean(params, EMPTY, (x, None, None, *given)), out)
        for one in (lean, layer):

            def slope(x, one=one, given=given):
                return scalar(one(params, EMPTY, (x, None, None, *given)))

            assert torch.autograd.gradcheck(slope, x.clone().requires_grad_())
            assert torch.autograd.gradgradcheck(slope, x.clone().requires_grad_())


def test_a_float_mask_has_a_gradient():
    layer = nn.multi_head_attention(4, 2, dtype=DOUBLE)
    params, _ = moved(layer, rng.key(0))
    x, mask = draw(2, 3, 4), draw(2, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda mask: layer(params, EMPTY, (x, None, None, mask)), mask)
    cut = mask.detach().clone()
    cut[0, 1, 2] = -torch.inf
    slope = grad(lambda m: scalar(layer(params, EMPTY, (x, None, None, m))))(cut)
    assert slope.isfinite().all() and slope[0, 1, 2] == 0


LAYERS = {
    "plain": nn.multi_head_attention(4, 2, dtype=DOUBLE),
    "causal": nn.multi_head_attention(4, 2, causal=True, rotary_base=10.0, dtype=DOUBLE),
    "groups": nn.multi_head_attention(4, 4, n_kv_heads=2, head_dim=2, dtype=DOUBLE),
    "weights": nn.multi_head_attention(4, 2, need_weights=True, dtype=DOUBLE),
}


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name):
    check_derivatives(LAYERS[name], draw(2, 3, 4))


def test_derivatives_of_masked_and_foreign_keys():
    mask, key_mask = bools(3, 5), bools(2, 5, seed=1)
    layer = nn.multi_head_attention(4, 2, kdim=3, vdim=2, dtype=DOUBLE)
    inputs = (draw(2, 3, 4), draw(2, 5, 3, seed=1), draw(2, 5, 2, seed=2), mask, key_mask)
    check_derivatives(layer, inputs, fast=True)


@pytest.mark.parametrize("name", LAYERS)
def test_vmapped_equals_a_loop(name):
    check_vmapped(LAYERS[name], draw(2, 3, 4))


def test_vmapped_masks_equal_a_loop():
    layer, n = LAYERS["plain"], 3
    x, mask, key_mask = draw(n, 2, 3, 4), bools(n, 3, 3), bools(n, 2, 3, seed=1)
    params, _ = moved(layer, rng.key(0))
    for given in ((mask, None), (None, key_mask), (mask, key_mask)):
        kept = [part for part in given if part is not None]

        def fn(x, *parts, given=given):
            rest = iter(parts)
            whole = [None if part is None else next(rest) for part in given]
            return layer(params, EMPTY, (x, None, None, *whole))

        first = grad(lambda x, *parts: scalar(fn(x, *parts)))
        for function in (fn, first):
            out = torch.func.vmap(function)(x, *kept)
            close(out, torch.stack([function(*row) for row in zip(x, *kept, strict=True)]))
            shared = torch.func.vmap(function, (None, *[0] * len(kept)))(x[0], *kept)
            rows = [function(x[0], *row) for row in zip(*kept, strict=True)]
            close(shared, torch.stack(rows))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_forward_mode_equals_reverse():
    layer = LAYERS["causal"]
    params, _ = moved(layer, rng.key(0))
    x, tangent = draw(2, 3, 4), draw(2, 3, 4, seed=1)

    def fn(x):
        return layer(params, EMPTY, x)

    pushed = torch.func.jvp(fn, (x,), (tangent,))[1]
    weights = draw(2, 3, 4, seed=2)
    pulled = grad(lambda x: (fn(x) * weights).sum())(x)
    close((pushed * weights).sum(), (pulled * tangent).sum())


@pytest.mark.parametrize("name", ["plain", "causal"])
def test_compiled_equals_eager(name):
    check_compiled(LAYERS[name], draw(2, 3, 4))


def test_kinds_of_numbers_and_devices():
    def make(dtype):
        return nn.multi_head_attention(4, 2, rotary_base=10.0, causal=True, dtype=dtype)

    check_kinds(make, draw(2, 3, 4))


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_any_batch_axes(lead):
    layer = nn.multi_head_attention(4, 2, dtype=DOUBLE)
    params, _ = moved(layer, rng.key(0))
    x, y, key_mask = draw(*lead, 3, 4), draw(*lead, 5, 4, seed=1), bools(*lead, 5)
    out = layer(params, EMPTY, (x, y, None, None, key_mask))
    assert out.shape == x.shape
    flat = [part.reshape(-1, *part.shape[len(lead) :]) for part in (x, y, key_mask)]
    rows = [layer(params, EMPTY, (a, b, None, None, m)) for a, b, m in zip(*flat, strict=True)]
    close(out, torch.stack(rows).reshape(x.shape))


def test_autocast_gives_what_it_gives_torch():
    layer = nn.multi_head_attention(4, 2)
    params, _ = layer.init(rng.key(0))
    x = draw(2, 3, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(params, EMPTY, x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(params, EMPTY, x), rtol=0.05, atol=0.05)


def test_dropout_of_weights():
    options = {"need_weights": True, "dtype": DOUBLE}
    plain = nn.multi_head_attention(8, 2, **options)
    layer = nn.multi_head_attention(8, 2, dropout=0.25, **options)
    still = nn.multi_head_attention(8, 2, dropout=0.25, train=False, **options)
    params, buffers = layer.init(rng.key(0))
    assert tree.paths(buffers) == [("dropout", "key")]
    assert tree.paths(still.init(rng.key(0))[1]) == tree.paths(buffers)
    x = draw(4, 6, 8)
    made, after = layer.apply(params, buffers, x)
    out, weights = made
    wanted, whole = plain(params, EMPTY, x)
    close(still(params, buffers, x), (wanted, whole))
    assert 0.1 < (weights == 0).double().mean() < 0.4
    close(weights, torch.where(weights == 0, 0.0, whole / 0.75))
    close(layer.apply(params, buffers, x)[0][0], out)
    assert not torch.equal(layer.apply(params, after, x)[0][1], weights)
    lean = nn.multi_head_attention(8, 2, dropout=0.25, dtype=DOUBLE)
    close(lean.apply(params, buffers, x)[0], out)
    check_derivatives(lean, x[:1, :2], fast=True)
    check_vmapped(lean, x[:1, :2])


def test_dropout_of_stacked_buffers_differs_from_row_to_row():
    layer = nn.multi_head_attention(8, 2, dropout=0.5, dtype=DOUBLE)
    params, _ = layer.init(rng.key(0))
    buffers = tree.stack([layer.init(key)[1] for key in rng.split(rng.key(1), 2)])
    x = draw(3, 8)
    out = torch.func.vmap(
        lambda key: layer.apply(params, tree.new({"dropout": tree.new({"key": key})}), x)[0]
    )(buffers["dropout", "key"])
    assert not torch.equal(out[0], out[1])
    close(out, torch.stack([layer.apply(params, buffers[i], x)[0] for i in range(2)]))


def test_rotary_attention_knows_differences_of_positions_alone():
    n = nn.multi_head_attention(8, 2, causal=True, rotary_base=20.0, dtype=DOUBLE)
    plain = nn.multi_head_attention(8, 2, causal=True, dtype=DOUBLE)
    params, _ = n.init(rng.key(0))
    x = draw(6, 8)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(-1)  # itself and the one before
    out = n(params, EMPTY, (x, None, None, mask))
    late = n(params, EMPTY, (x[2:], None, None, mask[2:, 2:]))
    close(out[3:], late[1:])
    assert (out - plain(params, EMPTY, (x, None, None, mask))).abs().max() > 1e-3


def test_initial_values_are_distributed_as_torch_has_them():
    params, _ = nn.multi_head_attention(64, 4).init(rng.key(0))
    module = torch.nn.MultiheadAttention(64, 4)
    bound = math.sqrt(6 / (64 + 192))
    own = params["in_proj_weight"]
    assert 0.99 * bound < own.abs().max() <= bound
    torch.testing.assert_close(own.std(), module.in_proj_weight.std(), rtol=0.05, atol=0)
    assert not params["in_proj_bias"].any() and not params["out_proj", "bias"].any()
    weight = params["out_proj", "weight"]
    assert 0.99 / 8 < weight.abs().max() <= 1 / 8
    torch.testing.assert_close(weight.std(), module.out_proj.weight.std(), rtol=0.05, atol=0)
    made, _ = nn.multi_head_attention(
        8, 2, weight_init=nn.constant(2.0), bias_init=nn.constant(3.0)
    ).init(rng.key(0))
    assert {float(leaf.unique()) for leaf in tree.leaves(made)} == {2.0, 3.0}


def test_parts_draw_from_keys_of_their_own():
    with_bias, without = (nn.multi_head_attention(8, 2, b).init(rng.key(0))[0] for b in (1, 0))
    for path in tree.paths(without):
        assert torch.equal(with_bias[path], without[path])


LAYER = nn.multi_head_attention(4, 2, dtype=DOUBLE)
PARAMS = LAYER.init(rng.key(0))[0]
X = draw(2, 3, 4)


def run(x, *more, layer=LAYER, params=PARAMS, buffers=EMPTY):
    return lambda: layer.apply(params, buffers, (x, *more) if more else x)


REFUSED = [
    (lambda: nn.multi_head_attention(5, 2), ValueError, "n_embed is 5, expected a multiple of n_"),
    (lambda: nn.multi_head_attention(4, 2, n_kv_heads=3), ValueError, "multiple of n_kv_heads, 3"),
    (lambda: nn.multi_head_attention(4, 0), ValueError, "n_heads is 0"),
    (lambda: nn.multi_head_attention(4.0, 2), TypeError, "n_embed is a float"),
    (lambda: nn.multi_head_attention(6, 2, rotary_base=9.0), ValueError, "head_dim is 3, expected"),
    (lambda: nn.multi_head_attention(4, 2, rotary_base=0.0), ValueError, "rotary_base is 0.0"),
    (lambda: nn.multi_head_attention(4, 2, dropout=1.5), ValueError, "dropout is 1.5"),
    (lambda: nn.multi_head_attention(4, 2, weight_init=3), TypeError, "weight_init is a int"),
    (
        run(draw(2, 3, 5)),
        ValueError,
        r"query has shape \(2, 3, 5\), expected \[\*batch, 4\]",
    ),
    (run(draw(4)), ValueError, r"query has shape \(4,\), expected \[\*batch, T, 4\]"),
    (run(X.float()), TypeError, "query has dtype torch.float32, expected torch.float64"),
    (run([X]), TypeError, "query is a list"),
    (run(X, draw(2, 5, 3)), ValueError, r"key has shape \(2, 5, 3\)"),
    (run(X, draw(1, 5, 4)), ValueError, r"key has shape \(1, 5, 4\), expected it to begin with"),
    (run(X, draw(2, 5, 4), X), ValueError, r"value has .* begin with \(2, 5\) \(from query and"),
    (run(X, None, None, bools(2, 2)), ValueError, r"mask has shape \(2, 2\), .*\(2, 2, 3, 3\)"),
    (run(X, None, None, torch.ones(3, 3)), TypeError, "mask has dtype torch.float32"),
    (
        run(X, None, None, torch.ones(3, 3).long()),
        TypeError,
        "mask is torch.int64, expected a",
    ),
    (run(X, None, None, None, bools(3)), ValueError, r"key_mask has shape \(3,\), .*\(2, 3\)"),
    (run(X, None, None, None, X), TypeError, "key_mask is torch.float64, expected a bool"),
    (run(X, X, X, None, None, None), ValueError, "the input is a tuple of 6, expected .query, key"),
    (run(X, params=tree.exclude(PARAMS, "out_proj.**")), ValueError, "params lack out_proj"),
    (
        run(X, params=tree.replace(PARAMS, {"out_proj.bias": X})),
        ValueError,
        r"linear: params.bias has shape \(2, 3, 4\), .*; in out_proj",
    ),
    (
        run(X, params=tree.stack([PARAMS] * 2)),
        ValueError,
        "has shape .*stacked parameters",
    ),
    (run(X, buffers=tree.new({"key": X})), ValueError, "buffers hold an unknown key; expected no"),
    (
        run(X, layer=nn.multi_head_attention(4, 2, dropout=0.5, dtype=DOUBLE)),
        ValueError,
        "dropout: buffers lack key; expected key; in dropout",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
