"""Statistics of the measurements: means with intervals, and how much of a number a probe explains.

A rule is trained from S meta-seeds, and each rule is looked at on the same n levels. Its table is
``[S, n]``; that of a contestant without meta-seeds is ``[n]``, or ``[1, n]``. Meta-seeds and levels
are both samples of what might have been, so a resample draws meta-seeds first and then levels, and
all seeds and contestants meet the same levels, which makes differences paired.

Symbols: R resamples, S meta-seeds, n levels, N states, p features.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from paramtree import rng

RESAMPLES = 10_000
PENALTIES = tuple(10.0**power for power in range(-6, 2))
Statistic = Callable[..., Tensor]
Interval = dict[str, float | None]  # value, low, high

_AT_ONCE = 2**21  # numbers of a table in the resamples that are worked on at once


def bootstrap(statistic: Statistic, *tables: Tensor, resamples: int = RESAMPLES) -> Interval:
    """A statistic of paired tables with its 95% interval.

    Args:
        statistic: gives ``[*R]`` of tables ``[*R, S, n]``; each comes with its own S.
        tables: ``[n]`` or ``[S, n]``; all with the same n, and S is 1 or the same.
        resamples: R; the same ones each time.

    Returns:
        ``{"value", "low", "high"}``, the bounds at 2.5% and 97.5%; None for what isn't finite.
    """
    whole = [table.to(torch.float64).reshape(-1, table.shape[-1]) for table in tables]
    n, seeds = whole[0].shape[1], max(len(table) for table in whole)
    key, found = rng.key(0), []
    step = max(1, _AT_ONCE // (n * seeds))
    for start in range(0, resamples, step):
        count, own = min(step, resamples - start), rng.fold_in(key, start)
        levels = rng.randint(rng.fold_in(own, "levels"), (count, 1, n), 0, n)
        drawn = rng.randint(rng.fold_in(own, "seeds"), (count, seeds, 1), 0, seeds)
        found.append(
            statistic(
                *[table[drawn if len(table) > 1 else drawn[:, :1] * 0, levels] for table in whole]
            )
        )
    bounds = torch.cat(found).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    numbers = {"value": statistic(*whole), "low": bounds[0], "high": bounds[1]}
    return {name: finite(number) for name, number in numbers.items()}


def finite(number: Tensor) -> float | None:
    """A number for JSON, which has no infinity."""
    value = float(number)
    return value if math.isfinite(value) else None


# ----------------------------------------------------------------------------- statistics


def mean(table: Tensor) -> Tensor:
    """Mean over meta-seeds and levels: ``[*R]`` of ``[*R, S, n]``."""
    return table.mean((-1, -2))


def iqm(table: Tensor) -> Tensor:
    """Interquartile mean: of all meta-seeds' levels, the middle half.

    Of N numbers, floor(N / 4) are left out at each end.

    Source: Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical
    precipice", section 4.3.
    """
    ordered = table.flatten(-2).sort(-1).values
    out = ordered.shape[-1] // 4
    return ordered[..., out : ordered.shape[-1] - out].mean(-1)


def difference(ours: Tensor, theirs: Tensor) -> Tensor:
    """Difference of means."""
    return mean(ours) - mean(theirs)


def gain(ours: Tensor, theirs: Tensor) -> Tensor:
    """Difference of means, as a share of theirs."""
    return difference(ours, theirs) / mean(theirs).abs()


def share(ours: Tensor, best: Tensor) -> Tensor:
    """Ratio of means."""
    return mean(ours) / mean(best)


def explained(missed: Tensor, spread: Tensor) -> Tensor:
    """R^2 of sums of squares by level: 1 - missed / spread, both summed over all levels."""
    return 1.0 - mean(missed) / mean(spread)


def explained_gain(ours: Tensor, theirs: Tensor, spread: Tensor, other: Tensor) -> Tensor:
    """Difference of two R^2, of what two probes miss and of what there was to explain for each."""
    return explained(ours, spread) - explained(theirs, other)


# ------------------------------------------------------------------------------- a probe


def centered(values: Tensor, weight: Tensor) -> Tensor:
    """Values ``[n, N, *f]`` less their mean on each level, weighted by ``[n, N]``."""
    share = (weight / weight.sum(1, keepdim=True)).reshape(*weight.shape, *[1] * (values.ndim - 2))
    return values - (share * values).sum(1, keepdim=True)


def ridge(features: Tensor, targets: Tensor, weight: Tensor, penalty: float = 1e-4) -> Tensor:
    """Coefficients of a weighted ridge regression without an intercept.

        min over B of sum_i w_i |y_i - x_i B|^2 / sum_i w_i + penalty sum_j s_j |B_j|^2

    where s_j is the weighted mean of the square of feature j, so that units don't matter.

    Args:
        features: ``[N, p]``.
        targets: ``[N, q]``.
        weight: ``[N]``.
        penalty: its weight.

    Returns:
        ``[p, q]``; 0 for a feature that is always 0.
    """
    scale = (weight @ features.square() / weight.sum()).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    x = features / scale
    gram = x.mT @ (weight.unsqueeze(1) * x) / weight.sum()
    right = x.mT @ (weight.unsqueeze(1) * targets) / weight.sum()
    eye = torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + penalty * eye, right) / scale.unsqueeze(1)


def ridge_over_levels(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 8,
) -> Tensor:
    """Coefficients of the ridge regression whose penalty does best on levels that are left out.

    Level i is in fold i mod folds. For each target the penalty is taken whose squared errors, each
    fold's under the regression of the others, add up to the least.

    Args:
        features: ``[n, N, p]``.
        targets: ``[n, N, q]``.
        weight: ``[n, N]``.
        penalties: to choose from.
        folds: at most n.

    Returns:
        ``[p, q]``, fitted on all levels.
    """
    fold = torch.arange(len(features)) % folds

    def fitted(kept: Tensor, penalty: float) -> Tensor:
        parts = (part[kept].flatten(0, 1) for part in (features, targets, weight))
        return ridge(*parts, penalty)

    def missed(penalty: float) -> Tensor:
        each = [
            squares(targets[out] - features[out] @ fitted(~out, penalty), weight[out]).sum(0)
            for out in (fold == k for k in range(folds))
        ]
        return torch.stack(each).sum(0)

    best = torch.stack([missed(penalty) for penalty in penalties]).argmin(0)  # [q]
    whole = torch.ones_like(fold, dtype=torch.bool)
    columns = [fitted(whole, penalties[k])[:, i] for i, k in enumerate(best.tolist())]
    return torch.stack(columns, 1)


def squares(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of squares on each level: ``[n, q]`` of ``[n, N, q]``, weights ``[n, N]``."""
    return (weight.unsqueeze(-1) * values.square()).sum(1)
