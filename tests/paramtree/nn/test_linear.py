import itertools
import math

import pytest
import torch
from torch import tensor
from torch.func import grad, vmap
from torch.testing import assert_close

from paramtree import rng, tree
from paramtree.nn import constant, embedding, linear, table, zeros

DOUBLE = torch.float64
EMPTY = tree.new({})


def draw(*shape, seed=0):
    return rng.normal(rng.key(seed), shape, dtype=DOUBLE)


def close(actual, expected):
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def compiled(fn):
    torch.compiler.reset()
    return torch.compile(fn, fullgraph=True, backend="aot_eager")


LAYERS = {
    "linear": (linear(3, 4, dtype=DOUBLE), draw(6, 2, 3)),
    "embedding": (embedding(5, 4, dtype=DOUBLE), rng.randint(rng.key(0), (6, 2), 0, 5)),
    "table": (
        table(5, 4, 0.3, dtype=DOUBLE),
        (rng.randint(rng.key(0), (6, 2), 0, 5), torch.arange(12).view(6, 2)),
    ),
}


def scalar(out):
    return (out.sin() * torch.linspace(0.1, 1.0, out.numel(), dtype=DOUBLE).view(out.shape)).sum()


# ---- all layers


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name):
    layer, x = LAYERS[name]
    params, buffers = layer.init(rng.key(1))
    leaves, structure = tree.flatten(params)
    inputs = [leaf.clone().requires_grad_() for leaf in leaves]
    if name == "linear":
        inputs.append(x.clone().requires_grad_())

    def fn(*values):
        inner = tree.unflatten(structure, values[: len(leaves)])
        return layer.apply(inner, buffers, values[-1] if name == "linear" else x)[0].sin()

    assert torch.autograd.gradcheck(fn, inputs)
    assert torch.autograd.gradgradcheck(fn, inputs)


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_parameters_under_vmap_equal_a_loop(name):
    layer, x = LAYERS[name]
    keys = rng.split(rng.key(2), 6)
    _, structure = tree.flatten(layer.init(keys[0])[0])
    stacked = vmap(lambda key: tuple(tree.leaves(layer.init(key)[0])))(keys)

    def fn(leaves, x):
        return layer.apply(tree.unflatten(structure, leaves), EMPTY, x)[0]

    def hessian_product(leaves, x):
        return grad(lambda p: sum(g.square().sum() for g in first(p, x)))(leaves)

    first = grad(lambda leaves, x: scalar(fn(leaves, x)))
    for function, dims in itertools.product((fn, first, hessian_product), ((0, 0), (0, None))):
        mapped = vmap(function, dims)(stacked, x)
        for i, key in enumerate(keys):
            leaves = tuple(tree.leaves(layer.init(key)[0]))
            assert all(torch.equal(a[i], b) for a, b in zip(stacked, leaves, strict=True))
            row = tuple(part[i] for part in x) if isinstance(x, tuple) else x[i]
            single = function(leaves, row if dims[1] == 0 else x)
            close(torch.utils._pytree.tree_map(lambda out, i=i: out[i], mapped), single)


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_equals_eager(name):
    layer, x = LAYERS[name]

    def fn(key, x):
        params, buffers = layer.init(key)
        leaves, structure = tree.flatten(params)
        gradient = grad(
            lambda values: scalar(layer.apply(tree.unflatten(structure, values), buffers, x)[0])
        )
        return layer.apply(params, buffers, x)[0], gradient(tuple(leaves))

    close(compiled(fn)(rng.key(3), x), fn(rng.key(3), x))


@pytest.mark.parametrize("name", LAYERS)
def test_buffers_come_back_and_nothing_is_changed(name):
    layer, x = LAYERS[name]
    params, buffers = layer.init(rng.key(4))
    assert params.is_locked and buffers.is_empty()
    given = [*tree.leaves(params), *(x if isinstance(x, tuple) else (x,))]
    before = [leaf.clone() for leaf in given]
    assert layer.apply(params, buffers, x)[1] is buffers
    assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))


# ---- linear


def test_linear_equals_torch():
    module = torch.nn.Linear(3, 4).double()
    params = tree.new({name: leaf.detach() for name, leaf in module.named_parameters()})
    for x in (draw(3), draw(5, 3), draw(2, 0, 3)):
        close(linear(3, 4).apply(params, EMPTY, x)[0], module(x))
    alone = tree.new({"weight": params["weight"]})
    close(linear(3, 4, bias=False).apply(alone, EMPTY, draw(3))[0], params["weight"] @ draw(3))


def test_linear_starts_as_torch_does():
    params, _ = linear(100, 300).init(rng.key(0))
    for leaf in (params["weight"], params["bias"]):
        assert leaf.dtype == torch.float32
        assert 0.095 < leaf.abs().max() < 0.1  # 100^-1/2
        assert abs(leaf.mean()) < 5 * 0.1 / math.sqrt(3 * leaf.numel())


def test_a_parameter_depends_on_its_own_name_alone():
    whole, _ = linear(3, 4).init(rng.key(5))
    alone, _ = linear(3, 4, bias=False).init(rng.key(5))
    other, _ = linear(3, 4, bias_init=zeros).init(rng.key(5))
    assert tree.paths(alone) == [("weight",)]
    assert torch.equal(whole["weight"], alone["weight"])
    assert torch.equal(whole["weight"], other["weight"])
    assert not other["bias"].any()


# ---- embedding and table


def test_embedding_equals_torch():
    module = torch.nn.Embedding(7, 3).double()
    weight = module.weight.detach().clone().requires_grad_()
    for index in (tensor(2), tensor([[1, 6, 1], [0, 0, 3]]), torch.zeros(0, dtype=torch.int64)):
        out = embedding(7, 3).apply(tree.new({"weight": weight}), EMPTY, index)[0]
        close(out, module(index))
        ours = torch.autograd.grad(out.square().sum(), weight)[0]
        close(ours, torch.autograd.grad(module(index).square().sum(), module.weight)[0])


def test_embedding_and_table_start_with_their_variance():
    weight = embedding(200, 100).init(rng.key(0))[0]["weight"]
    assert_close(weight.var(), tensor(1.0), rtol=5 * math.sqrt(2 / 20_000), atol=0)
    weight = table(400, 50).init(rng.key(0))[0]["weight"]
    assert weight.shape == (401, 50)
    assert_close(weight.var(), tensor(1 / 400), rtol=5 * math.sqrt(2 / 20_050), atol=0)


@pytest.mark.parametrize("batch", [(), (3,), (2, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, DOUBLE], ids=str)
def test_table_is_a_linear_map_of_one_hot_and_time(batch, dtype):
    layer = table(6, 3, dtype=DOUBLE)
    params, buffers = layer.init(rng.key(6))
    index = rng.randint(rng.key(7), batch, 0, 6)
    time = rng.randint(rng.key(8), batch, 0, 1000)
    hot = torch.nn.functional.one_hot(index, 6).double()
    expected = torch.cat((hot, 1e-3 * time.double().unsqueeze(-1)), -1) @ params["weight"]
    close(layer.apply(params, buffers, (index, time.to(dtype)))[0], expected)
    close(layer.apply(params, buffers, index)[0], hot @ params["weight"][:6])


def test_table_differentiates_its_time_scale():
    index, time, key = tensor([0, 2]), tensor([3.0, 5.0], dtype=DOUBLE), rng.key(9)

    def fn(time_scale, time):
        layer = table(4, 3, time_scale, dtype=DOUBLE)
        params, buffers = layer.init(key)
        return layer.apply(params, buffers, (index, time))[0]

    inputs = (tensor(0.1, dtype=DOUBLE).requires_grad_(), time.requires_grad_())
    assert torch.autograd.gradcheck(fn, inputs)


@pytest.mark.parametrize("layer", [embedding(5, 2), table(5, 2)], ids=["embedding", "table"])
@pytest.mark.parametrize("wrong", [5, -1, 10**12])
def test_an_index_out_of_range_is_refused(layer, wrong):
    keys = rng.split(rng.key(0), 3)
    _, structure = tree.flatten(layer.init(keys[0])[0])
    weights = torch.stack([layer.init(key)[0]["weight"] for key in keys])
    index = tensor([[0, 4], [wrong, 1], [2, 3]])

    def fn(weight, index):
        return layer.apply(tree.unflatten(structure, [weight]), EMPTY, index)[0].sum()

    message = rf"index holds {wrong}, expected it in \[0, 5\)"
    for call in (
        lambda: fn(weights[0], index),
        lambda: vmap(fn)(weights, index),
        lambda: grad(fn)(weights[0], index[1]),
        lambda: vmap(grad(fn))(weights, index),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# ---- refusals


def applied(layer, x, params=None):
    params = layer.init(rng.key(0))[0] if params is None else params
    return lambda: layer.apply(params, EMPTY, x)


I64 = torch.zeros(4, dtype=torch.int64)
MIXED = tree.new({"weight": torch.zeros(4, 3), "bias": torch.zeros(4).double()})
STACK = tree.new({"weight": torch.zeros(6, 4, 3), "bias": torch.zeros(6, 4)}, (6,))

REFUSED = [
    (lambda: linear(0, 3), ValueError, "linear: n_in is 0"),
    (lambda: linear(3, 2.5), TypeError, "linear: n_out is a float"),
    (lambda: linear(3, 2, True, "uniform"), TypeError, "linear: weight_init is a str"),
    (lambda: embedding(-1, 3), ValueError, "embedding: num is -1"),
    (lambda: table(3, True), TypeError, "table: n_out is a bool"),
    (applied(linear(3, 4), torch.zeros(2, 4)), ValueError, r"x has shape \(2, 4\).*linear\(3, 4\)"),
    (applied(linear(3, 4), tensor(1.0)), ValueError, r"linear: x has shape \(\)"),
    (applied(linear(3, 4), [1.0]), TypeError, "linear: x is a list"),
    (applied(linear(3, 4), torch.zeros(3).int()), TypeError, "linear: x has dtype torch.int32"),
    (applied(linear(3, 4), torch.zeros(3), STACK), ValueError, r"\(6, 4, 3\).*with vmap"),
    (
        applied(linear(3, 4), torch.zeros(3), MIXED),
        TypeError,
        "params.bias has dtype torch.float64",
    ),
    (
        applied(embedding(4, 3), I64, tree.new({"weight": torch.zeros(4, 3).long()})),
        TypeError,
        "params.weight has dtype torch.int64",
    ),
    (applied(linear(3, 4), torch.zeros(3), EMPTY), ValueError, "params lack weight, bias"),
    (
        applied(linear(3, 4, bias=False), torch.zeros(3), linear(3, 4).init(rng.key(0))[0]),
        ValueError,
        "linear: params hold an unknown bias; expected weight",
    ),
    (
        applied(linear(3, 4), torch.zeros(3), tree.new({"weight": EMPTY, "bias": EMPTY})),
        TypeError,
        "linear: params.weight is a TensorDict",
    ),
    (applied(embedding(5, 2), torch.zeros(3)), TypeError, "embedding: index is torch.float32"),
    (applied(embedding(5, 2), 3), TypeError, "embedding: index is int"),
    (applied(table(5, 2), (I64,)), ValueError, "table: the input is a tuple of 1"),
    (applied(table(5, 2), (I64, I64[1:])), ValueError, r"time has shape \(3,\), expected \(4,\)"),
    (applied(table(5, 2), (I64, 0.0)), TypeError, "table: time is a float"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_constant_initializer_is_what_it_says():
    params, _ = linear(2, 3, weight_init=constant(0.5), bias_init=constant(tensor(-1.0))).init(
        rng.key(0)
    )
    assert (params["weight"] == 0.5).all() and (params["bias"] == -1).all()
