# pyright: reportArgumentType=false, reportCallIssue=false
import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.func import grad, vmap
from torch.testing import assert_close

from losses import (
    popart_init,
    popart_normalize,
    popart_rescale,
    popart_unnormalize,
    popart_update,
)

D = torch.float64
DRAW = np.random.default_rng(0)
TARGETS = torch.tensor(DRAW.normal(3, 2, (4, 6)))
TASKS = torch.tensor(DRAW.integers(0, 2, (4, 6)))  # of three: the last one has no targets


def in_numpy(state, targets, indices, step, low, high):
    """Shift, scale and second moment as the paper has them."""
    shift, second = state["shift"].numpy().copy(), None
    second = state["variance"].numpy() + shift**2
    new_shift, new_second = shift.copy(), second.copy()
    for target, i in zip(targets.flatten().tolist(), indices.flatten().tolist(), strict=True):
        new_shift[i] += step * (target - shift[i])
        new_second[i] += step * (target**2 - second[i])
    scale = np.sqrt(np.clip(new_second - new_shift**2, low**2, high**2))
    return torch.tensor(new_shift), torch.tensor(scale), torch.tensor(new_second)


def test_updates_are_the_papers():
    state = popart_init(3, D)
    for step, low, high in ((0.02, 1e-4, 1e6), (0.01, 2.0, 1e6), (0.05, 1e-4, 1.5)):
        shift, scale, second = in_numpy(state, TARGETS, TASKS, step, low, high)
        state = popart_update(state, TARGETS, TASKS, step, low, high)
        assert_close(state["shift"], shift)
        assert_close(state["scale"], scale)
        assert_close(state["variance"] + shift.square(), second)
        assert state.is_locked
    assert state["shift"][2] == 0 and state["scale"][2] == 1


def test_outputs_are_preserved_and_targets_normalized():
    state = popart_init(3, D)
    weight, bias = torch.tensor(DRAW.normal(size=(3, 5))), torch.tensor(DRAW.normal(size=3))
    x = torch.tensor(DRAW.normal(size=(7, 5)))
    said = popart_unnormalize(state, x @ weight.T + bias)
    for _ in range(200):
        new = popart_update(state, TARGETS, TASKS, 0.02)
        weight, bias = popart_rescale(weight, bias, state, new)
        state = new
    assert_close(popart_unnormalize(state, x @ weight.T + bias), said)
    normal = popart_normalize(state, TARGETS, TASKS)
    for task in (0, 1):
        chosen = normal[task == TASKS]
        assert chosen.mean().abs() < 0.01 and (chosen.std(correction=0) - 1).abs() < 0.01
    assert_close(popart_unnormalize(state, normal, TASKS), TARGETS)


def test_large_targets_keep_their_deviation_in_float32():
    """nu - mu^2, as rlax has it, is here 1e8 - 1e8, of which float32 keeps no digit."""
    state = popart_init(1)
    targets, zeros = 1e4 + torch.randn(64, generator=torch.manual_seed(0)), torch.zeros(64).long()
    for _ in range(400):
        state = popart_update(state, targets, zeros, 1 / 640)
    assert_close(state["shift"], targets.mean(0, keepdim=True))
    assert_close(state["scale"], targets.std(correction=0)[None], rtol=1e-2, atol=0)


def test_equal_targets_meet_the_lower_bound():
    state, same = popart_init(2, D), torch.full((50,), 7.0, dtype=D)
    zeros = torch.zeros(50).long()
    for low in (1e-4, 0.0):

        def f(targets, step, low=low):
            new = popart_update(state, targets, zeros, step, low)
            for _ in range(30):
                new = popart_update(new, targets, zeros, step, low)
            return new["scale"].sum() + new["shift"].sum()

        assert all(g.isfinite().all() for g in grad(f, (0, 1))(same, torch.tensor(0.02, dtype=D)))
    state = popart_update(state, same, zeros, 0.02)
    for _ in range(60):
        state = popart_update(state, same, zeros, 0.02)
    assert_close(state["scale"][0], torch.tensor(1e-4, dtype=D))


@pytest.mark.parametrize("name", ["step_size", "scale_lb", "scale_ub"])
def test_hyper_parameters_are_data(name, central, variant):
    """rlax's state carries no gradient."""
    hyper = {"step_size": 0.01, "scale_lb": 0.7, "scale_ub": 1.4}
    start = TensorDict(
        {
            "shift": torch.tensor([0.5, 3.0, 1.0], dtype=D),
            "scale": torch.ones(3, dtype=D),
            "variance": torch.tensor([4.0, 1.1, 0.1], dtype=D),
        }
    )

    def f(x):
        state = start
        for _ in range(2):
            state = popart_update(state, TARGETS, TASKS, **{**hyper, name: x})
        return (popart_normalize(state, TARGETS, TASKS).sin()).sum() + state["scale"].prod()

    x = torch.tensor(hyper[name], dtype=D)
    found = variant(grad(f))(x)
    assert found.abs() > 1e-4
    assert_close(found, central(f, x), rtol=1e-6, atol=1e-8)


def test_masked_targets_are_not_there():
    mask = torch.tensor(DRAW.random((4, 6)) < 0.6)
    state = popart_init(3, D)
    spoiled = torch.where(mask, TARGETS, math.nan)
    tasks = torch.where(mask, TASKS, 99)
    expected = popart_update(state, TARGETS[mask], TASKS[mask], 0.01)
    found = popart_update(state, spoiled, tasks, 0.01, mask=mask)
    for key in expected.keys():
        assert_close(found[key], expected[key])
    slope = grad(lambda x: popart_update(state, x, tasks, 0.01, mask=mask)["scale"].sum())
    assert slope(spoiled).isfinite().all()


def test_mapped_over_states():
    many = torch.stack([popart_init(3, D), popart_update(popart_init(3, D), TARGETS, TASKS, 0.1)])
    found = vmap(lambda s: popart_update(s, TARGETS, TASKS, 0.01)["scale"])(many)
    assert_close(found[1], popart_update(many[1], TARGETS, TASKS, 0.01)["scale"])


STATE = popart_init(3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: popart_init(0), ValueError, "popart_init: n is 0, expected at least 1"),
        (lambda: popart_init(2.0), TypeError, "popart_init: n is a float, expected an int"),
        (
            lambda: popart_update(STATE, TARGETS, TASKS + 3),
            ValueError,
            "popart_update: indices holds an index outside of 0 to 2",
        ),
        (
            lambda: popart_update(STATE, TARGETS, TASKS[0]),
            ValueError,
            r"indices has shape \(6,\), expected \[4, 6\] \(from targets\)",
        ),
        (
            lambda: popart_update(STATE, TARGETS, TASKS.double()),
            TypeError,
            "indices has dtype float64, expected integers",
        ),
        (lambda: popart_update(STATE, TARGETS, TASKS, 2.0), ValueError, "step_size is 2.0"),
        (
            lambda: popart_update(STATE, TARGETS, TASKS, torch.ones(2)),
            ValueError,
            r"step_size has shape \(2,\), expected \(\)",
        ),
        (lambda: popart_update({}, TARGETS, TASKS), TypeError, "state is a dict, expected a Tens"),
        (
            lambda: popart_update(STATE.exclude("scale"), TARGETS, TASKS),
            ValueError,
            "popart_update: the td has no 'scale'.*state comes from popart_init",
        ),
        (
            lambda: popart_rescale(torch.ones(2, 4), torch.ones(3), STATE, STATE),
            ValueError,
            r"weight has shape \(2, 4\), expected \[3, m\] \(from old\)",
        ),
        (
            lambda: popart_normalize(STATE, TARGETS),
            ValueError,
            r"x has shape \(4, 6\), expected \[..., 3\] \(from state\), or give indices",
        ),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
