"""What a contest says, and how sure that is: means and interquartile means over levels.

    final      mean reward per step in the last fifth of a life
    lifetime   mean reward per step in all of it
    return     mean return of an episode under the last policy

Intervals are 95% bootstrap intervals over levels. The resamples are the same for all contestants,
so that differences are paired, and each time, so that the numbers come again.

Symbols: n levels, U updates of a life, R resamples.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from tensordict import TensorDictBase
from torch import Tensor

from .. import rng

RESAMPLES = 10_000
Interval = dict[str, float | None]  # mean, low, high

_MEASURES = ("final", "lifetime", "return")
_TITLES = {
    "trained": "trained rule",
    "untrained": "untrained rule",
    "a2c": "tuned A2C",
    "ppo": "PPO",
    "dpo": "DPO",
    "reinforce": "REINFORCE",
    "vtrace": "V-trace",
    "q_lambda": "Q(lambda)",
    "sarsa_lambda": "SARSA(lambda)",
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


def interquartile_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of the middle half, which outliers don't move.

    Args:
        values: ``[n]``.
        weights: ``[*R, n]``, the share of each level; the rows add up to 1.

    Returns:
        ``[*R]``. A level on the edge of the middle half counts by its part in it; without such it
        is the mean that is trimmed by a quarter at both ends.

    Source: Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical
    precipice", section 4.3.
    """
    order = values.argsort()
    after = weights[..., order].cumsum(-1)
    before = after - weights[..., order]
    inside = (after.clamp(0.25, 0.75) - before.clamp(0.25, 0.75)) / 0.5
    return inside @ values[order]


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


def summarized(
    results: Mapping[str, TensorDictBase], reference: str | None = "a2c"
) -> dict[str, dict[str, Any]]:
    """All contestants in all measures, and what each is ahead of one of them.

    Args:
        results: as ``contest`` gives them.
        reference: the one that others are held against; None, or a name that isn't there: nobody.
            Shares of what it earns are told where that is more than nothing.

    Returns:
        For each name ``mean``, ``low`` and ``high`` of the reward per step in the last fifth, and
        the same of the other measures, ``lifetime`` and ``return``; and for each measure under
        ``iqm`` that of the interquartile mean, and under ``ahead`` that of the mean difference to
        the reference. Where it is there, ``paired`` is the trained rule's as a share, of the ratio
        of means over levels, mean(trained - reference) / mean(reference).
    """
    weights = resampling(len(next(iter(results.values()))["final"]))
    whole = torch.full_like(weights[0], 1 / weights.shape[1])
    theirs = results.get(reference) if reference is not None else None
    found: dict[str, dict[str, Any]] = {}
    for name, scores in results.items():
        values = {measure: scores[measure] for measure in _MEASURES}
        means = {m: interval(weights @ x, x.mean()) for m, x in values.items()}
        row: dict[str, Any] = {**means.pop("final"), **means}
        row["iqm"] = {
            m: interval(interquartile_mean(x, weights), interquartile_mean(x, whole))
            for m, x in values.items()
        }
        if theirs is not None and name != reference:
            ahead = {m: x - theirs[m] for m, x in values.items()}
            row["ahead"] = {m: interval(weights @ x, x.mean()) for m, x in ahead.items()}
        found[name] = row
    if theirs is not None and "trained" in results and reference != "trained":
        ours, other = results["trained"]["final"], theirs["final"]
        gain = (weights @ (ours - other)) / _positive(weights @ other)
        found["paired"] = interval(gain, (ours - other).mean() / _positive(other.mean()))
    return found


def table(found: dict[str, dict[str, Any]], title: str, reference: str | None = "a2c") -> Table:
    """The summary as a table.

    Args:
        found: as ``summarized`` gives it.
        title: what it is about.
        reference: as ``summarized`` had it.

    Returns:
        The table, for a rich console.
    """
    beside = reference in found
    theirs, whose = (found[reference]["mean"], titled(reference)) if beside else (None, "")
    out = Table(title=title)
    if "paired" in found:
        gain, form = found["paired"], "+.1%"
        if None in gain.values():
            gain, form = found["trained"]["ahead"]["final"], "+.4f"
        mean, low, high = (_shown(gain[which], form) for which in ("mean", "low", "high"))
        out.caption = escape(f"trained rule against {whose}: {mean} (95% interval {low} to {high})")
    out.add_column("agents of", overflow="fold")
    for name in ("reward per step", "95% interval", "middle half"):
        out.add_column(name, justify="right")
    if beside:
        out.add_column(escape(f"of {whose}'s"), justify="right")
    for name in ("lifetime", "return"):
        out.add_column(name, justify="right")
    for name in sorted((n for n in found if n != "paired"), key=_place):
        row = found[name]
        mean, low, high = (_shown(row[which], ".4f") for which in ("mean", "low", "high"))
        cells = [mean, f"{low} to {high}", _shown(row["iqm"]["final"]["mean"], ".4f")]
        if beside:
            ours, some = row["mean"], theirs is not None and theirs > 0
            share = ours / theirs if some and ours is not None else None
            cells.append(_shown(share, ".0%"))
        cells += [_shown(row["lifetime"]["mean"], ".4f"), _shown(row["return"]["mean"], ".3f")]
        out.add_row(escape(titled(name)), *cells)
    return out


def titled(name: str | None) -> str:
    """A contestant's name as people read it."""
    return _TITLES.get(str(name), str(name))


def _positive(x: Tensor) -> Tensor:
    """A number as it is, or NaN where nothing can be a share of it."""
    return torch.where(x > 0, x, torch.nan)


def _place(name: str) -> int:
    """Learned rules in front, then the others as they are listed above."""
    known = list(_TITLES)
    return known.index(name) + 1 if name in known[1:] else 0


def _shown(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)
