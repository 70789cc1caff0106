"""Stacks of recurrent layers, and the plain one; what every recurrent layer does is in
test_recurrent.py."""

import math

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
    moved,
    scalar,
)

CARRIES = {"lstm": 2, "gru": 1, "rnn": 1}
MODULES = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


def resets(*size, seed=0, p=0.3):
    return rng.bernoulli(rng.key(seed), p, size)


def of_module(module, n_layers, bidirectional):
    """Params of ours with the values of a module's."""
    ways = {"forward": "", "backward": "_reverse"} if bidirectional else {"": ""}
    layers = {}
    for i in range(n_layers):
        cells = {
            way: tree.new(
                {
                    name: getattr(module, f"{name}_l{i}{ending}").detach().clone()
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
            )
            for way, ending in ways.items()
        }
        layers[str(i)] = tree.new(cells) if bidirectional else cells[""]
    return tree.new(layers) if n_layers > 1 else layers["0"]


def ours_and_torchs(name, n_layers, bidirectional, **options):
    layer = getattr(nn, name)(3, 4, n_layers, bidirectional=bidirectional, dtype=DOUBLE, **options)
    module = MODULES[name](3, 4, n_layers, bidirectional=bidirectional, dtype=DOUBLE, **options)
    return layer, module, of_module(module, n_layers, bidirectional)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_equals_torch(name, n_layers, bidirectional, batch):
    layer, module, params = ours_and_torchs(name, n_layers, bidirectional)
    assert tree.paths(params) == tree.paths(layer.init(rng.key(0))[0])
    ways, count = 1 + bidirectional, math.prod(batch)
    x = draw(5, *batch, 3).requires_grad_()
    start = [draw(n_layers * ways, count, 4, seed=i) for i in range(CARRIES[name])]

    def beside(part):  # [layers ways, count, H] to [*batch, layers ways H]
        return part.movedim(0, 1).reshape(*batch, -1)

    out, *last = layer.apply(params, EMPTY, (x, None, *[beside(part) for part in start]))[0]
    given = tuple(start) if name == "lstm" else start[0]
    wanted, end = module(x.reshape(5, count, 3), given)
    end = end if name == "lstm" else (end,)
    close(out, wanted.reshape(out.shape))
    close(last, [beside(part) for part in end])
    close(layer(params, EMPTY, x), module(x.reshape(5, count, 3))[0].reshape(out.shape))
    ours = torch.autograd.grad(scalar((out, *last)), x)[0]
    theirs = torch.autograd.grad(
        scalar((wanted.reshape(out.shape), *[beside(part) for part in end])), x
    )[0]
    close(ours, theirs)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_plain_layer_with_a_rectifier_equals_torch(bidirectional):
    layer, module, params = ours_and_torchs("rnn", 2, bidirectional, nonlinearity="relu")
    x = draw(5, 2, 3)
    expected = module(x)[0]
    close(layer(params, EMPTY, x), expected)
    scalar(expected).backward()
    slopes = grad(lambda p: scalar(layer(p, EMPTY, x)))(params)
    of_slopes = tree.map(lambda leaf: leaf, slopes)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        path = ("1", "backward", name) if bidirectional else ("1", name)
        ending = "_l1_reverse" if bidirectional else "_l1"
        close(of_slopes[path], getattr(module, f"{name}{ending}").grad)


RNNS = {
    "tanh": nn.rnn(3, 4, dtype=DOUBLE),
    "reverse": nn.rnn(3, 4, reverse=True, dtype=DOUBLE),
    "relu": nn.rnn(3, 4, nonlinearity="relu", dtype=DOUBLE),
    "both": nn.rnn(3, 2, bidirectional=True, dtype=DOUBLE),
    "stack": nn.rnn(3, 4, 2, dtype=DOUBLE),
    "lstm": nn.lstm(3, 2, 2, dtype=DOUBLE),
}


@pytest.mark.parametrize("name", RNNS)
def test_in_every_way(name):
    layer = RNNS[name]
    params, _ = layer.init(rng.key(0))
    x, reset = draw(4, 2, 3), resets(4, 2)
    carry = layer(params, EMPTY, (x, None))[1:]
    inputs = (x, reset, *[part + 0.3 for part in carry])
    check_derivatives(layer, inputs, fast=True)
    leaves, structure = tree.flatten(inputs)
    many = [torch.stack([leaf, leaf.roll(1, 0), leaf]) for leaf in leaves]
    check_vmapped(layer, inputs, tree.unflatten(tree.with_axis(structure, 3), many))


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_kernel_and_plain_loop_agree(name):
    layer = RNNS[name]
    params, _ = moved(layer, rng.key(0))
    x, reset, h = draw(6, 2, 3), resets(6, 2), draw(2, 4, seed=1)
    state, steps = h, []
    function = getattr(torch, name)
    for t in range(6):
        state = torch.where(reset[t].unsqueeze(-1), 0.0, state)
        affine = x[t] @ params["weight_ih"].mT + params["bias_ih"]
        state = function(affine + state @ params["weight_hh"].mT + params["bias_hh"])
        steps.append(state)
    with torch.no_grad():
        close(layer(params, EMPTY, (x, reset, h))[0], torch.stack(steps))

    def fn(params):
        return scalar(layer(params, EMPTY, (x, reset, h)))

    torch.compiler.reset()
    compiled = torch.compile(grad(fn), fullgraph=True, backend="aot_eager")
    close(tree.leaves(compiled(params)), tree.leaves(grad(fn)(params)))


@pytest.mark.parametrize("name", MODULES)
def test_resets_clear_the_carries_of_all_layers(name):
    layer = getattr(nn, name)(3, 4, 2, dtype=DOUBLE)
    params, _ = moved(layer, rng.key(0))
    x, reset = draw(5, 2, 3).requires_grad_(), torch.zeros(5, 2, dtype=torch.bool)
    reset[3] = True
    out, *last = layer(params, EMPTY, (x, reset))
    close(out[3:], layer(params, EMPTY, x[3:]))
    (slope,) = torch.autograd.grad(out[4].sum() + sum(part.sum() for part in last), x)
    assert not slope[:3].any() and slope[3:].all()


def test_dropout_between_layers():
    layer = nn.lstm(3, 4, 3, dropout=0.5, dtype=DOUBLE)
    still = nn.lstm(3, 4, 3, dropout=0.5, train=False, dtype=DOUBLE)
    params, buffers = layer.init(rng.key(0))
    assert tree.paths(buffers) == [("dropout_0", "key"), ("dropout_1", "key")]
    assert tree.paths(still.init(rng.key(0))[1]) == tree.paths(buffers)
    x = draw(5, 2, 3)
    plain = nn.lstm(3, 4, 3, dtype=DOUBLE)
    close(still(params, buffers, x), plain(params, EMPTY, x))
    out, after = layer.apply(params, buffers, x)
    assert not any(
        torch.equal(a, b) for a, b in zip(tree.leaves(buffers), tree.leaves(after), strict=True)
    )
    drop, one = nn.dropout(0.5), [nn.lstm(n, 4, dtype=DOUBLE) for n in (3, 4, 4)]
    for i in range(3):  # by hand, with the same keys
        x = one[i](params[str(i)], EMPTY, x)
        x = drop.apply(EMPTY, buffers[f"dropout_{i}"], x)[0] if i < 2 else x
    close(out, x)


def test_initial_values_have_torchs_bounds():
    params, _ = nn.rnn(30, 25).init(rng.key(0))
    for leaf in tree.leaves(params):
        assert 0.15 < leaf.abs().max() <= 0.2
    made, _ = nn.rnn(
        3, 4, 2, weight_init=nn.zeros, recurrent_init=nn.orthogonal(), bias_init=nn.constant(2.0)
    ).init(rng.key(0))
    for i in ("0", "1"):
        matrix = made[i, "weight_hh"]
        close(matrix @ matrix.mT, torch.eye(4), rtol=1e-5, atol=1e-5)
        assert not made[i, "weight_ih"].any() and (made[i, "bias_hh"] == 2).all()
    left, right = nn.gru(4, 4, 2).init(rng.key(0))[0].values()
    assert not torch.equal(left["weight_ih"], right["weight_ih"])


def test_kinds_of_numbers_and_devices():
    check_kinds(lambda dtype: nn.rnn(3, 4, 2, dtype=dtype), draw(4, 2, 3))


STACK = nn.gru(3, 4, 2, dtype=DOUBLE)
PARAMS, X = STACK.init(rng.key(0))[0], draw(5, 2, 3)
REFUSED = [
    (lambda: nn.gru(3, 4, 0), ValueError, "gru: n_layers is 0"),
    (
        lambda: nn.lstm(3, 4, dropout=0.5),
        ValueError,
        "dropout is 0.5, expected 0 for one",
    ),
    (lambda: nn.lstm(3, 4, 2, dropout=2), ValueError, "lstm: dropout is 2"),
    (
        lambda: nn.rnn(3, 4, nonlinearity="sin"),
        ValueError,
        "nonlinearity is 'sin', expected",
    ),
    (
        lambda: nn.rnn(3, 4, bidirectional=True, reverse=True),
        ValueError,
        "reverse is given with",
    ),
    (
        lambda: STACK(PARAMS, EMPTY, (X, None, draw(2, 4))),
        ValueError,
        r"gru: h has shape \(2, 4\), expected \(2, 8\) \(from \*batch of x, and gru\(3, 4, 2\)\)",
    ),
    (lambda: STACK(PARAMS, EMPTY, draw(5, 2, 4)), ValueError, r"gru: x has shape .*; in 0"),
    (lambda: STACK(PARAMS, EMPTY, (X, X)), TypeError, "gru: reset is torch.float64, .*; in 0"),
    (lambda: STACK(PARAMS, EMPTY, (X, None, 3)), TypeError, "gru: h is a int, .*; in 0"),
    (lambda: STACK(PARAMS, EMPTY, (X, None, None, None)), ValueError, "the input is a tuple of 4"),
    (
        lambda: STACK(PARAMS["0"], EMPTY, X),
        ValueError,
        "hold an unknown .*; expected 0, 1",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
