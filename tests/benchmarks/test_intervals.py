"""The statistics against closed forms, and against the same written another way."""

import math
from typing import Any

import intervals
import numpy as np
import pytest
import torch

from paramtree import rng

D = torch.float64


def normal(name, *shape):
    return rng.normal(rng.fold_in(rng.key(5), name), shape, dtype=D)


def numbers(found: Any) -> Any:
    """Value and bounds of an interval."""
    return found["value"], found["low"], found["high"]


def test_the_interquartile_mean_is_that_of_the_middle_half():
    assert intervals.iqm(torch.tensor([[100.0, 2.0, -50.0, 1.0]])) == 1.5
    assert intervals.iqm(torch.arange(11.0).reshape(1, 11)) == 5.0  # two left out at each end
    lopsided = torch.arange(12.0).square().reshape(3, 4)
    assert intervals.iqm(lopsided) == pytest.approx(np.mean([9, 16, 25, 36, 49, 64]))
    many = normal("many", 5, 3, 8)
    for table, found in zip(many, intervals.iqm(many), strict=True):
        assert found == pytest.approx(np.mean(np.sort(table.numpy().ravel())[6:18]))


def test_the_interval_of_a_mean_over_levels_is_the_normal_one():
    """Standard error s / sqrt(n) with the deviation that divides by n."""
    table = normal("levels", 400)
    found = intervals.bootstrap(intervals.mean, table)
    error = table.std(correction=0).item() / 20
    assert found["value"] == pytest.approx(table.mean().item())
    assert found["low"] == pytest.approx(table.mean().item() - 1.96 * error, abs=0.06 * error)
    assert found["high"] == pytest.approx(table.mean().item() + 1.96 * error, abs=0.06 * error)


def test_meta_seeds_are_resampled_before_levels():
    """The variance of the mean of a crossed table a_s + b_l is var(a) / S + var(b) / n."""
    a, b = 2.0 * normal("a", 40, 1), normal("b", 1, 60)
    _, low, high = numbers(intervals.bootstrap(intervals.mean, a + b))
    variance = a.var(correction=0) / 40 + b.var(correction=0) / 60
    width = 2 * 1.96 * math.sqrt(variance.item())
    assert high - low == pytest.approx(width, rel=0.03)


def test_differences_are_paired_by_level():
    """What all have in common on a level leaves the difference alone."""
    common = 100.0 * normal("common", 1, 50)
    ours, theirs = common + 0.1 * normal("ours", 3, 50) + 1.0, common
    value, low, high = numbers(intervals.bootstrap(intervals.difference, ours, theirs))
    assert 0.9 < low < value < high < 1.1
    same = intervals.bootstrap(intervals.difference, common[0], common)
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_two_meta_seeds_are_drawn_together_with_chance_a_half():
    """Seeds that differ by 2, levels alike: the mean is -1, 0 or 1 with chances 1/4, 1/2, 1/4."""
    seen = []

    def statistic(table):
        seen.append(intervals.mean(table))
        return seen[-1]

    table = torch.tensor([[-1.0], [1.0]], dtype=D).expand(2, 5)
    found = intervals.bootstrap(statistic, table)
    drawn = torch.cat(seen[:-1])
    shares = [(drawn == value).double().mean().item() for value in (-1, 0, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert (found["low"], found["high"]) == (-1, 1)


def test_ratios_of_means():
    ours, theirs = torch.tensor([[3.0, 1.0], [5.0, 3.0]]), torch.tensor([2.0, -6.0])
    assert intervals.gain(ours, theirs[None]) == 2.5  # (3 + 2) / 2
    assert intervals.share(ours, torch.tensor([[2.0, 4.0]])) == 1.0
    nothing = intervals.bootstrap(intervals.gain, ours, 0.0 * theirs)
    assert nothing == {"value": None, "low": None, "high": None}


def test_the_same_numbers_come_again():
    table = normal("again", 3, 20)
    found = intervals.bootstrap(intervals.iqm, table, resamples=500)
    assert intervals.bootstrap(intervals.iqm, table, resamples=500) == found


def test_values_are_centered_by_weight():
    values, weight = normal("values", 3, 7, 2), rng.uniform(rng.key(1), (3, 7), dtype=D)
    out = intervals.centered(values, weight)
    assert torch.allclose((weight.unsqueeze(-1) * out).sum(1), torch.zeros(3, 2, dtype=D))
    assert torch.allclose(out - values, (out - values)[:, :1].expand(-1, 7, -1))


def test_ridge_solves_the_problem_in_its_docstring():
    x, y = normal("x", 30, 4) * torch.tensor([1.0, 1e-3, 50.0, 0.0]), normal("y", 30, 2)
    weight = rng.uniform(rng.key(2), (30,), dtype=D)
    penalty = 0.3
    found = intervals.ridge(x, y, weight, penalty).requires_grad_()
    share = weight / weight.sum()
    missed = (share.unsqueeze(1) * (y - x @ found).square()).sum()
    scale = (share.unsqueeze(1) * x.square()).sum(0)
    goal = missed + penalty * (scale.unsqueeze(1) * found.square()).sum()
    (slope,) = torch.autograd.grad(goal, found)
    assert slope.abs().max() < 1e-12 * x.abs().max()
    assert (found[3] == 0).all()
    plain = intervals.ridge(x[:, :3], y, weight, 0.0)  # least squares, as numpy has it
    root = weight.sqrt().unsqueeze(1)
    wanted = np.linalg.lstsq((root * x[:, :3]).numpy(), (root * y).numpy(), rcond=None)[0]
    assert np.allclose(plain.numpy(), wanted)


def test_the_penalty_is_chosen_on_levels_left_out():
    """Against leave-one-level-out in numpy; signal takes a small penalty, noise a large one."""
    n, count, p = 6, 5, 4
    x = normal("features", n, count, p)
    noise = normal("noise by level", n, count, 1)
    signal = x @ normal("true", p, 1) + 0.01 * noise
    y, weight = torch.cat([signal, noise], -1), rng.uniform(rng.key(3), (n, count), dtype=D)
    penalties = (1e-6, 1e-2, 10.0)

    def solved(levels, penalty, column):
        rows, w = x[levels].reshape(-1, p).numpy(), weight[levels].reshape(-1).numpy()
        w = w / w.sum()
        scale = np.diag(w @ rows**2)
        gram = rows.T @ (w[:, None] * rows) + penalty * scale
        return np.linalg.solve(gram, rows.T @ (w * y[levels][..., column].reshape(-1).numpy()))

    chosen = []
    for column in range(2):
        missed = []
        for penalty in penalties:
            left = 0.0
            for level in range(n):
                found = solved([i for i in range(n) if i != level], penalty, column)
                error = y[level, :, column].numpy() - x[level].numpy() @ found
                left += weight[level].numpy() @ error**2
            missed.append(left)
        chosen.append(penalties[int(np.argmin(missed))])
    assert chosen == [1e-6, 10.0]
    found = intervals.ridge_over_levels(x, y, weight, penalties, folds=n)
    wanted = np.stack([solved(list(range(n)), chosen[i], i) for i in range(2)], 1)
    assert np.allclose(found.numpy(), wanted)


def test_explained_is_the_coefficient_of_determination():
    """Least squares with centered targets: R^2 is the squared correlation."""
    x, noise = normal("x", 1, 500, 1), normal("noise", 1, 500, 1)
    weight = torch.ones(1, 500, dtype=D)
    x, y = (intervals.centered(v, weight) for v in (x, 0.7 * x + noise))
    out = x @ intervals.ridge(x[0], y[0], weight[0], 0.0)
    missed, spread = intervals.squares(y - out, weight), intervals.squares(y, weight)
    correlation = np.corrcoef(x[0, :, 0].numpy(), y[0, :, 0].numpy())[0, 1]
    assert intervals.explained(missed.mT, spread.mT) == pytest.approx(correlation**2)
    better = intervals.explained_gain(0.0 * missed.mT, missed.mT, spread.mT, spread.mT)
    assert better == pytest.approx(1 - correlation**2)
