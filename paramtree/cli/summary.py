"""What a contest says: the mean reward per step in the last fifth of a life, and how sure that is.

Intervals are 95% bootstrap intervals over levels. The resamples are the same for all contestants,
so that differences are paired, and each time, so that the numbers come again.

Symbols: n levels, U updates of a life, R resamples.
"""

import math

import torch
from rich.table import Table
from torch import Tensor

from .. import rng

RESAMPLES = 10_000
Interval = dict[str, float | None]  # mean, low, high

_TITLES = {
    "trained": "trained rule",
    "untrained": "untrained rule",
    "a2c": "tuned A2C",
    "random": "random policy",
    "optimal_rate": "best possible",
}


def last_fifth(curve: Tensor) -> Tensor:
    """Mean over the last fifth of a life.

    Args:
        curve: ``[n, U]``, or ``[n]``, which comes back as it is.

    Returns:
        ``[n]``.
    """
    return curve if curve.ndim == 1 else curve[:, -max(1, curve.shape[1] // 5) :].mean(1)


def resampling(n: int) -> Tensor:
    """Weights of bootstrap resamples of n levels, the same ones each time.

    Args:
        n: how many levels.

    Returns:
        float64 ``[R, n]``, each row the share of each level in a resample.
    """
    drawn = rng.randint(rng.key(0), (RESAMPLES, n), 0, n)
    ones = torch.ones_like(drawn, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add(1, drawn, ones) / n


def interval(resampled: Tensor, mean: Tensor) -> Interval:
    """A statistic with its 95% interval.

    Args:
        resampled: its value on each resample, ``[R]``.
        mean: its value, 0-d.

    Returns:
        ``{"mean", "low", "high"}``; None for a number that isn't finite, a ratio to nothing.
    """
    bounds = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype))
    numbers = {"mean": float(mean), "low": float(bounds[0]), "high": float(bounds[1])}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def summarized(results: dict[str, Tensor]) -> dict[str, Interval]:
    """Reward per step of each contestant in the last fifth of a life, and the rule against A2C.

    Args:
        results: as ``contest`` gives them.

    Returns:
        For each name ``{"mean", "low", "high"}``; under ``paired`` the same of the ratio of means
        over levels, mean(trained - a2c) / mean(a2c).
    """
    rewards = {name: last_fifth(curve) for name, curve in results.items()}
    weights = resampling(len(next(iter(rewards.values()))))
    found = {name: interval(weights @ reward, reward.mean()) for name, reward in rewards.items()}
    ours, theirs = rewards["trained"], rewards["a2c"]
    gain = (weights @ (ours - theirs)) / (weights @ theirs)
    return {**found, "paired": interval(gain, (ours - theirs).mean() / theirs.mean())}


def table(found: dict[str, Interval], title: str) -> Table:
    """The summary as a table.

    Args:
        found: as ``summarized`` gives it.
        title: what it is about.

    Returns:
        The table, for a rich console.
    """
    gain = [_shown(found["paired"][which], "+.1%") for which in ("mean", "low", "high")]
    against = f"trained rule against A2C: {gain[0]} (95% interval {gain[1]} to {gain[2]})"
    out = Table(title=title, caption=against)
    out.add_column("agents of")
    for name in ("reward per step", "95% interval", "of A2C's"):
        out.add_column(name, justify="right")
    theirs = found["a2c"]["mean"]
    for name, row in _TITLES.items():
        if name in found:
            mean, low, high = (
                _shown(found[name][which], ".4f") for which in ("mean", "low", "high")
            )
            ours = found[name]["mean"]
            share = ours / theirs if ours is not None and theirs else None
            out.add_row(row, mean, f"{low} to {high}", _shown(share, ".0%"))
    return out


def _shown(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)
