import numpy as np
import pytest
import torch

from paramtree import nn, rng, tree
from tests.paramtree.nn.battery import DOUBLE, EMPTY, close, draw, moved
from tests.paramtree.nn.flax_cases import load

CASES = load("sequence_layers.npz")
WAYS = {
    "haiku_lstm": (nn.lstm, nn.lstm_from_haiku, nn.lstm_to_haiku),
    "flax_lstm": (nn.lstm, nn.lstm_from_flax, nn.lstm_to_flax),
    "flax_gru": (nn.gru, nn.gru_from_flax, nn.gru_to_flax),
}
ROWS = [(name, case) for name in WAYS for case in CASES[name]]
IDS = [f"{name} {i}" for name in WAYS for i in range(len(CASES[name]))]


def nested(flat):
    """{"ii.kernel": ...} as {"ii": {"kernel": ...}}, arrays of numpy."""
    made = {}
    for name, value in flat.items():
        level, _, leaf = name.partition(".")
        if leaf:
            made.setdefault(level, {})[leaf] = value.numpy()
        else:
            made[name] = value.numpy()
    return made


def given(case):
    inputs = {key[3:]: value for key, value in case.items() if key.startswith("in/")}
    carry = [inputs.pop(key) for key in ("h", "c") if key in inputs]
    return inputs.pop("x"), carry, nested(inputs)


@pytest.mark.parametrize(("name", "case"), ROWS, ids=IDS)
def test_our_layer_gives_their_numbers(name, case):
    make, convert, _ = WAYS[name]
    x, carry, theirs = given(case)
    params = convert(theirs)
    layer = make(x.shape[-1], carry[0].shape[-1], dtype=DOUBLE)
    assert sorted(tree.paths(params)) == sorted(tree.paths(layer.init(rng.key(0))[0]))
    assert params.is_locked and all(leaf.is_contiguous() for leaf in tree.leaves(params))
    given_x = x.clone().requires_grad_()
    start = [part.clone().requires_grad_() for part in carry]
    leaves, structure = tree.flatten(params)
    own = [leaf.requires_grad_() for leaf in leaves]
    out, *last = layer(tree.unflatten(structure, own), EMPTY, (given_x, None, *start))
    keys = ["out/out", "out/h", "out/c"][: 1 + len(last)]
    close([out, *last], [case[key] for key in keys])
    weights = [case[f"w/{key[4:]}"] for key in keys]
    grads = torch.autograd.grad([out, *last], [given_x, *start], weights)
    names = ["x", "h", "c"][: len(grads)]
    close(list(grads), [case[f"grad/{key}"] for key in names])


@pytest.mark.parametrize(("name", "case"), ROWS, ids=IDS)
def test_there_and_back_is_where_one_was(name, case):
    make, convert, back = WAYS[name]
    x, carry, theirs = given(case)
    again = back(convert(theirs))
    same = again.to_dict()
    assert_same(same, theirs)
    params, _ = moved(make(3, 4, dtype=DOUBLE), rng.key(0))
    there = back(params)
    assert there.is_locked
    ours = convert(there)
    layer = make(3, 4, dtype=DOUBLE)
    close(layer(ours, EMPTY, draw(5, 2, 3)), layer(params, EMPTY, draw(5, 2, 3)))
    assert_same(back(ours).to_dict(), there.to_dict())


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, dict):
            assert_same(value, right[key])
        else:
            close(torch.as_tensor(value), torch.as_tensor(right[key]))


def test_nothing_that_was_given_is_shared():
    weights = {"w": draw(5, 8), "b": draw(8)}
    before = {key: value.clone() for key, value in weights.items()}
    params = nn.lstm_from_haiku(weights)
    for leaf in tree.leaves(params):
        leaf.add_(1.0)
    assert all(torch.equal(weights[key], before[key]) for key in weights)
    array = np.ones((5, 8), np.float32), np.ones(8, np.float32)
    made = nn.lstm_from_haiku(dict(zip("wb", array, strict=True)))
    assert made["weight_ih"].dtype == torch.float32
    for leaf in tree.leaves(made):
        leaf.add_(1.0)
    assert (array[0] == 1).all() and (array[1] == 1).all()


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_modules_of_torch(name, n_layers, bidirectional):
    modules = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
    module = modules[name](3, 4, n_layers, bidirectional=bidirectional, dtype=DOUBLE)
    layer = getattr(nn, name)(3, 4, n_layers, bidirectional=bidirectional, dtype=DOUBLE)
    x, state = draw(5, 2, 3), module.state_dict()
    params = nn.recurrent_from_torch(state)
    assert params.is_locked
    close(layer(params, EMPTY, x), module(x)[0])
    flat = nn.recurrent_to_torch(params)
    assert sorted(flat.keys()) == sorted(state)
    close([flat[key] for key in state], list(state.values()))
    close(tree.leaves(nn.recurrent_from_torch(flat)), tree.leaves(params))
    for leaf in tree.leaves(params):
        leaf.add_(1.0)
    assert not any(torch.equal(state[key], flat[key] + 1) for key in state)
    other = modules[name](3, 4, n_layers, bidirectional=bidirectional, dtype=DOUBLE)
    other.load_state_dict(flat.to_dict())
    close(other(x)[0], module(x)[0])


def test_conversion_carries_gradient():
    weights = tree.new({"w": draw(5, 8), "b": draw(8)})
    layer, x = nn.lstm(3, 2, dtype=DOUBLE), draw(4, 2, 3)

    def fn(w, b):
        return layer(nn.lstm_from_haiku({"w": w, "b": b}), EMPTY, x)

    assert torch.autograd.gradcheck(fn, [weights[key].requires_grad_() for key in "wb"])


LSTM, GRU = (make(3, 2, dtype=DOUBLE).init(rng.key(0))[0] for make in (nn.lstm, nn.gru))
CELL = nn.gru_to_flax(GRU)
REFUSED = [
    (lambda: nn.lstm_from_haiku({"w": draw(5, 8)}), ValueError, "linear holds w, expected w, b"),
    (lambda: nn.lstm_from_haiku(3), TypeError, "linear is a int, expected names and arrays"),
    (lambda: nn.lstm_from_haiku({"w": draw(5, 8), "b": [0]}), TypeError, "b has dtype torch.int64"),
    (lambda: nn.lstm_from_haiku({"w": "a", "b": [0]}), TypeError, "w is a str, expected an array"),
    (
        lambda: nn.lstm_from_haiku({"w": draw(5, 8), "b": draw(7)}),
        ValueError,
        "w has shape .5, 8.",
    ),
    (
        lambda: nn.lstm_from_haiku({"w": draw(2, 8), "b": draw(8)}),
        ValueError,
        "expected .n_in . H",
    ),
    (lambda: nn.lstm_from_haiku({"w": draw(8), "b": draw(8)}), ValueError, "expected 2 dims"),
    (lambda: nn.lstm_to_haiku(GRU), ValueError, "lstm_to_haiku: params have shapes .6, 3."),
    (lambda: nn.lstm_to_haiku(EMPTY), ValueError, "params holds nothing, expected weight_ih"),
    (lambda: nn.lstm_from_flax(CELL), ValueError, "lstm_from_flax: the params lack ii; they hold"),
    (
        lambda: nn.gru_from_flax(tree.replace(CELL, {"iz.kernel": draw(4, 2)})),
        ValueError,
        r"gru_from_flax: a kernel has shape \(4, 2\), expected \(3, 2\)",
    ),
    (lambda: nn.gru_to_flax(LSTM), ValueError, "gru_to_flax: params have shapes"),
    (
        lambda: nn.recurrent_from_torch({"weight_hr_l0": draw(2, 2)}),
        ValueError,
        "recurrent_from_torch: params hold an unknown weight_hr_l0, expected such as weight_ih_l0",
    ),
    (
        lambda: nn.recurrent_from_torch({"weight_ih_l1": draw(2, 2)}),
        ValueError,
        "recurrent_from_torch: params lack weight_ih_l0, weight_hh_l0",
    ),
    (
        lambda: nn.recurrent_to_torch({"weight_ih": 3}),
        TypeError,
        "_to_torch: params is a dict",
    ),
    (lambda: nn.recurrent_to_torch(CELL), ValueError, "forward holds ir, hr, iz, .* weight_ih"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
