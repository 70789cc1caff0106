"""Learned hyper-parameters where the right ones are known; in full: benchmarks/mgrl_known.py."""

import math

import pytest
import torch

from paramtree import rng, tree
from tests.benchmarks.mgrl_known import (
    changed_mind,
    horizon_training,
    learned_horizon,
    learned_trace,
)


def show(share):
    pass


def by_hand(horizon, gamma, rate, steps):
    """Discounts over the steps: values, slopes and eta as plain numbers."""
    eta, value, path = math.log(gamma / (1 - gamma)), 0.0, []
    for _ in range(steps):
        gamma, slope = 1 / (1 + math.exp(-eta)), 0.0
        path.append(gamma)
        for _ in range(5):
            slope += 0.1 * (value + (gamma - 1) * slope)
            value += 0.1 * (1 + (gamma - 1) * value)
        eta -= rate * (value - horizon) / horizon**2 * slope * gamma * (1 - gamma)
    return path


@pytest.mark.parametrize("method", ["truncated", "forward"])
def test_a_discount_goes_to_that_of_the_horizon(method):
    training, path, steps = horizon_training(5, 0.0, 1, 0.8, method), [], 160
    state = training.init(rng.key(0))
    state = tree.replace(state, {("eta", "gamma"): torch.tensor(0.5).logit()})
    for _ in range(steps if method == "truncated" else 10):
        state, metrics = training.step(state)
        path.append(float(metrics["gamma"]))
    assert path == pytest.approx(by_hand(5, 0.5, 0.8, len(path)), rel=1e-4)
    assert method == "forward" or abs(math.log((1 - path[-1]) * 5)) < 0.01


def test_a_larger_discount_changes_what_is_chosen():
    found = changed_mind(2.0, 1, 2, 90, show)
    assert max(found["large_before"]) < 0.2 and max(found["start"]) < found["threshold"] == 0.5
    assert min(found["gamma"]) > 0.5 and min(found["large_after"]) > 0.9


def test_a_trace_goes_to_the_best_of_a_grid():
    found = learned_trace(64, 12, 30, 14, 2, 0.4, show, starts=(0.9,))
    assert 0.3 < found["best"] < 0.95  # inside, so that both sides are worse
    assert found["learned"] == pytest.approx([found["best"]], abs=found["step_of_grid"])


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [5, 20])
@pytest.mark.parametrize(("deviation", "seeds"), [(0.0, 1), (1.0, 5)])
def test_every_start_ends_at_the_horizon_s_discount(horizon, deviation, seeds):
    found = learned_horizon(horizon, deviation, seeds, 1200, show)
    assert len(found["log_distance"]) == 2 * seeds and max(found["log_distance"]) <= 0.05
