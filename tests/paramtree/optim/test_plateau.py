import math

import pytest
import torch
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import chain, constant, linear, masked, reduce_on_plateau, scale, sgd

VALUES = [5.0, 4.0, 4.2, 3.9999, 4.1, 3.0, 3.5, 3.5, 3.1, 3.2, 3.3, 2.9, math.inf, 3.0, 3.0, 3.0]
VALUES += [-1.0, -1.00005, -1.0, math.nan, -0.9, -2.0, -1.9, -2.0001, -1.9, -1.8, -1.9, -1.9, -1.9]


def scales(optimizer, params, values):
    state, out = optimizer.init(params), []
    for value in values:
        updates, state = optimizer.update(params, state, params, value=value)
        out.append(float(state["scale"]))
        assert_close(updates["scale"], params["scale"] * out[-1])
    return out


@pytest.mark.parametrize(
    ("ours", "torch_s"),
    [
        ({"patience": 2}, {"patience": 2}),
        ({"patience": 0, "factor": 0.9}, {"patience": 0, "factor": 0.9}),
        ({"patience": 1, "cooldown": 3}, {"patience": 1, "cooldown": 3}),
        (
            {"patience": 1, "min_scale": 0.3, "factor": 0.5},
            {"patience": 1, "min_lr": 0.3, "factor": 0.5},
        ),
        ({"patience": 1, "rtol": 0.1}, {"patience": 1, "threshold": 0.1}),
        (
            {"patience": 1, "rtol": 0.0, "atol": 0.5},
            {"patience": 1, "threshold": 0.5, "threshold_mode": "abs"},
        ),
        ({"patience": 1, "mode": "max"}, {"patience": 1, "mode": "max"}),
        (
            {"patience": 1, "mode": "max", "rtol": 0.0, "atol": 0.2, "cooldown": 1},
            {
                "patience": 1,
                "mode": "max",
                "threshold": 0.2,
                "threshold_mode": "abs",
                "cooldown": 1,
            },
        ),
    ],
    ids=str,
)
def test_torch_s_numbers(ours, torch_s, params):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, eps=0.0, **torch_s)
    wanted = []
    for value in VALUES:
        scheduler.step(value)
        wanted.append(optimizer.param_groups[0]["lr"])
    assert len(set(wanted)) > 2
    assert scales(reduce_on_plateau(**ours), params, VALUES) == pytest.approx(wanted, rel=1e-12)
    tensors = [torch.tensor(value, dtype=torch.float64) for value in VALUES]
    assert scales(reduce_on_plateau(**ours), params, tensors) == pytest.approx(wanted, rel=1e-12)


def test_the_defaults_are_torch_s(params):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    wanted = []
    for _ in range(25):
        scheduler.step(1.0)
        wanted.append(optimizer.param_groups[0]["lr"])
    assert scales(reduce_on_plateau(), params, [1.0] * 25) == pytest.approx(wanted)


def test_the_value_reaches_it_through_wrappers(params):
    optimizer = chain(part=masked(reduce_on_plateau(0.5, 0), "scale"), lr=scale(-1.0))
    state = optimizer.init(params)
    for value in (1.0, 2.0):
        updates, state = optimizer.update(params, state, params, value=value)
    assert_close(updates["scale"], -0.5 * params["scale"])


def test_tasks_reach_plateaus_of_their_own(params):
    optimizer = reduce_on_plateau(0.5, patience=1)
    values = torch.tensor([[3.0, 2.0, 1.0, 0.5], [3.0, 3.0, 3.0, 3.0], [1.0, 2.0, 0.5, 1.0]])

    def run(params, values):
        state = optimizer.init(params)
        for value in values:
            updates, state = optimizer.update(params, state, params, value=value)
        return updates, state["scale"]

    updates, scale = paramtree.vmap(run)(tree.stack([params] * 3), values)
    assert scale.tolist() == [1.0, 0.5, 1.0]
    assert_close(updates["scale"], params["scale"] * scale)


def test_its_gradients(params, central):
    def outer(factor, least):
        optimizer = reduce_on_plateau(factor, patience=0, min_scale=least)
        state = optimizer.init(params)
        total = 0.0
        for _ in range(4):
            updates, state = optimizer.update(params, state, params, value=1.0)
            total = total + updates["scale"]
        return total

    factor, least = (torch.tensor(x, dtype=torch.float64) for x in (0.5, 0.2))
    got = torch.func.grad(outer, (0, 1))(factor, least)
    assert_close(got[0], central(lambda x: outer(x, least), factor))
    assert_close(got[1], central(lambda x: outer(factor, x), least))
    assert got[1] != 0


def test_schedules(params):
    falling = reduce_on_plateau(linear(0.5, 0.25, 1), patience=0, rtol=constant(0.0))
    assert scales(falling, params, [1.0, 1.0, 1.0]) == [1.0, 0.25, 0.0625]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"factor": 1.0}, ValueError, "factor is 1.0"),
        ({"factor": -0.1}, ValueError, "factor is -0.1"),
        ({"patience": -1}, ValueError, "patience is -1, expected at least 0"),
        ({"patience": 1.5}, TypeError, "patience is a float, expected an int"),
        ({"rtol": -1e-4}, ValueError, "rtol is -0.0001"),
        ({"atol": -1.0}, ValueError, "atol is -1.0"),
        ({"cooldown": -1}, ValueError, "cooldown is -1"),
        ({"accumulation_size": 0}, ValueError, "accumulation_size is 0, expected at least 1"),
        ({"min_scale": "no"}, TypeError, "min_scale is a str"),
        ({"mode": "least"}, ValueError, "mode is 'least', expected 'min' or 'max'"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=f"^reduce_on_plateau: {message}"):
        reduce_on_plateau(**options)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({}, ValueError, r"value is missing, expected update\(grads, state, params, value=loss\)"),
        ({"value": torch.ones(2)}, ValueError, r"value has shape \(2,\), expected"),
        ({"value": torch.tensor(1)}, TypeError, "value is torch.int64, expected a float dtype"),
        ({"value": "low"}, TypeError, "value is a str"),
    ],
)
def test_bad_values(extra, error, message, params):
    optimizer = reduce_on_plateau()
    with pytest.raises(error, match=f"^reduce_on_plateau: {message}"):
        optimizer.update(params, optimizer.init(params), params, **extra)


def test_a_state_of_another(params):
    with pytest.raises(ValueError, match="reduce_on_plateau: the state .*another optimizer"):
        reduce_on_plateau().update(params, sgd(0.1).init(params), params, value=1.0)
