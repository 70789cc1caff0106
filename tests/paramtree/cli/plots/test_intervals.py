"""Means and intervals of curves, against numpy and a printed table."""

import numpy as np
import pytest
import torch

from paramtree.cli import plots

# The 97.5% points of Student's distribution, as tables print them.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042}


@pytest.mark.parametrize("freedom", TABLE)
def test_student_t_is_that_of_the_table(freedom):
    assert plots.student_t(freedom) == pytest.approx(TABLE[freedom], abs=6e-4)


def test_student_t_nears_the_normal_and_refuses_nothing():
    assert plots.student_t(100_000) == pytest.approx(1.95996, abs=1e-4)
    with pytest.raises(ValueError, match="student_t: freedom is 0, expected at least 1"):
        plots.student_t(0)


def test_the_interval_over_seeds_is_numpys():
    x = np.random.default_rng(0).normal(size=(4, 6))
    mean, half = x.mean(0), TABLE[3] * x.std(0, ddof=1) / np.sqrt(4)
    band = plots.over_seeds(torch.tensor(x))
    for got, wanted in zip(band, (mean, mean - half, mean + half), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_the_interval_over_many_levels_is_the_normal_one():
    x = np.random.default_rng(1).exponential(size=(400, 3))
    band = plots.over_levels(torch.tensor(x))
    half = 1.96 * x.std(0) / np.sqrt(400)
    np.testing.assert_allclose(band.mean, x.mean(0))
    np.testing.assert_allclose(band.low, x.mean(0) - half, atol=0.15 * half.max())
    np.testing.assert_allclose(band.high, x.mean(0) + half, atol=0.15 * half.max())


@pytest.mark.parametrize("over", [plots.over_seeds, plots.over_levels])
def test_what_there_is_one_of_has_no_interval(over):
    band = over(torch.tensor([[1.0, 2.0]]))
    assert band.mean.tolist() == [1.0, 2.0] and band.low is None and band.high is None


def test_smoothing_is_a_mean_of_the_last_few():
    x = np.random.default_rng(2).normal(size=9)
    wanted = [x[max(0, i - 3) : i + 1].mean() for i in range(9)]
    np.testing.assert_allclose(plots.smoothed(torch.tensor(x), 4), wanted)
