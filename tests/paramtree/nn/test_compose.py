import pytest
import torch
from torch.func import grad, vmap
from torch.testing import assert_close

from paramtree import Model, rng, tree
from paramtree.nn import linear, mlp, orthogonal, sequential, zeros

EMPTY = tree.new({})


def draw(*shape, seed=0):
    return rng.normal(rng.key(seed), shape, dtype=torch.float64)


def counter():
    """Adds a buffer that counts its calls."""

    def init(key):
        return EMPTY, tree.new({"count": torch.zeros((), dtype=torch.float64)})

    def apply(params, buffers, x):
        count = buffers["count"] + 1
        return x + count, tree.new({"count": count})

    return Model(init, apply)


def test_sequential_has_the_names_and_numbers_of_torch():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    layer = sequential(linear(3, 4), torch.tanh, linear(4, 2))
    params, buffers = layer.init(rng.key(0))
    assert {".".join(path) for path in tree.paths(params)} == set(module.state_dict())
    module.load_state_dict(
        {".".join(p): v for p, v in zip(tree.paths(params), tree.leaves(params), strict=True)}
    )
    x = draw(5, 3).float()
    assert_close(layer(params, buffers, x), module(x))
    assert params.is_locked and buffers.is_empty()


def test_each_layer_has_a_key_of_its_own_name():
    params, _ = sequential(linear(3, 4), last=linear(4, 2)).init(rng.key(1))
    for name, layer in (("0", linear(3, 4)), ("last", linear(4, 2))):
        expected, _ = layer.init(rng.fold_in(rng.key(1), name))
        assert torch.equal(params[name]["weight"], expected["weight"])


def test_buffers_nest_and_come_back():
    layer = sequential(counter(), torch.neg, linear(2, 2), again=counter())
    params, buffers = layer.init(rng.key(0))
    assert tree.paths(params) == [("2", "bias"), ("2", "weight")]
    assert tree.paths(buffers) == [("0", "count"), ("again", "count")]
    after = layer.apply(params, buffers, torch.zeros(2))[1]
    assert after.is_locked
    assert after["0", "count"] == 1 and buffers["0", "count"] == 0
    with pytest.raises(ValueError, match="this model updates its buffers"):
        layer(params, buffers, torch.zeros(2))


def test_unchanged_buffers_are_the_same_tensors():
    kept = Model(
        lambda key: (EMPTY, tree.new({"scale": torch.ones(2)})), lambda p, b, x: (x * b["scale"], b)
    )
    layer = sequential(kept, counter())
    params, buffers = layer.init(rng.key(0))
    after = layer.apply(params, buffers, torch.zeros(2))[1]
    assert after["0", "scale"] is buffers["0", "scale"]
    still = sequential(kept, torch.neg)
    params, buffers = still.init(rng.key(0))
    assert still.apply(params, buffers, torch.zeros(2))[1] is buffers


def test_functions_alone_have_neither_params_nor_buffers():
    layer = sequential(torch.neg, torch.exp)
    params, buffers = layer.init(rng.key(0))
    assert params.is_empty() and buffers.is_empty()
    assert_close(layer(params, buffers, torch.ones(2)), torch.ones(2).neg().exp())


@pytest.mark.parametrize("final", [None, torch.sigmoid])
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_is_linear_maps_with_activations(final, bias):
    layer = mlp(
        3, 5, 4, 2, activation=torch.tanh, final_activation=final, bias=bias, dtype=torch.float64
    )
    params, buffers = layer.init(rng.key(2))
    assert list(params.keys()) == ["linear_0", "linear_1", "linear_2"]
    x = expected = draw(6, 3)
    for i in range(3):
        part = params[f"linear_{i}"]
        expected = expected @ part["weight"].mT + (part["bias"] if bias else 0.0)
        expected = torch.tanh(expected) if i < 2 else expected
    expected = expected if final is None else final(expected)
    assert_close(layer(params, buffers, x), expected)


def test_mlp_hands_its_initializers_on():
    params, _ = mlp(4, 3, 2, weight_init=orthogonal(), bias_init=zeros).init(rng.key(0))
    for i in range(2):
        weight = params[f"linear_{i}", "weight"]
        assert_close(weight @ weight.mT, torch.eye(len(weight)))
        assert not params[f"linear_{i}", "bias"].any()


def test_vmapped_and_compiled_gradients_equal_a_loop():
    layer = sequential(mlp(3, 4, 2, activation=torch.tanh, dtype=torch.float64), counter())
    keys, x = rng.split(rng.key(3), 4), draw(4, 5, 3)
    params, buffers = layer.init(keys[0])
    _, structure = tree.flatten(params)

    def gradient(leaves, x):
        def loss(leaves):
            out, after = layer.apply(tree.unflatten(structure, leaves), buffers, x)
            return out.square().sum() * after["1", "count"]

        return grad(loss)(leaves)

    leaves = vmap(lambda key: tuple(tree.leaves(layer.init(key)[0])))(keys)
    rows = [gradient(tuple(leaf[i] for leaf in leaves), x[i]) for i in range(4)]
    loop = [torch.stack(parts) for parts in zip(*rows, strict=True)]
    torch.compiler.reset()
    compiled = torch.compile(vmap(gradient), fullgraph=True, backend="aot_eager")
    assert_close(list(vmap(gradient)(leaves, x)), loop)
    assert_close(list(compiled(leaves, x)), loop)


LAYER = sequential(linear(3, 4), torch.tanh, linear(4, 2))
PARAMS = LAYER.init(rng.key(0))[0]
X = torch.zeros(5, 3)

REFUSED = [
    (lambda: sequential(), ValueError, "sequential: no layers given"),
    (lambda: sequential(3), TypeError, "sequential: layer '0' is a int"),
    (lambda: sequential(last=torch.nn.Linear(2, 2)), TypeError, "'last' is a Linear with param"),
    (lambda: mlp(3), ValueError, r"mlp: sizes are \(3,\)"),
    (lambda: mlp(3, 0), ValueError, r"mlp: sizes\[1\] is 0"),
    (lambda: mlp((3, 4)), ValueError, "mlp: sizes are"),
    (lambda: mlp(3, 4.0), TypeError, r"mlp: sizes\[1\] is a float"),
    (lambda: mlp(3, 4, activation="relu"), TypeError, "mlp: activation is a str"),
    (lambda: LAYER.apply({}, EMPTY, X), TypeError, "sequential: params is a dict"),
    (
        lambda: LAYER.apply(tree.new({"0": PARAMS["0"]}), EMPTY, X),
        ValueError,
        "sequential: params lack 2, or linear: params lack weight, bias",
    ),
    (
        lambda: LAYER.apply(tree.new({**tree.entries(PARAMS), "1": EMPTY}), EMPTY, X),
        ValueError,
        "sequential: params hold an unknown 1; expected 0, 2",
    ),
    (
        lambda: LAYER.apply(PARAMS, tree.new({"mean": X}), X),
        ValueError,
        "sequential: buffers hold an unknown mean",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
