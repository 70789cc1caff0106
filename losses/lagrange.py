"""Constraints by Lagrange's method: a penalty for what is bounded, and a price that adapts.

Of a quantity KL <= epsilon with the multiplier alpha, one set of parameters descends on the penalty
alpha KL, and alpha itself on the dual alpha (epsilon - KL), each with the other held. Nothing is
detached here: who descends on what is said by what is differentiated.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._batch import Batch
from ._check import check_float, check_hyper, kind


class LagrangePenalty(NamedTuple):
    """A bound on a KL: its multiplier, the bound, and whether each component has its own.

    ``alpha`` and ``epsilon`` are floats or tensors that broadcast to the KL, at least 0.
    """

    alpha: float | Tensor
    epsilon: float | Tensor
    per_dimension: bool = False


Constraints = Mapping[str, LagrangePenalty]


def lagrange_penalty(kl: Tensor, alpha: float | Tensor, per_dimension: bool = False) -> Tensor:
    """What a constrained quantity costs the policy: alpha KL, summed over components if any.

    Args:
        kl: ``[...]`` float, or ``[..., D]`` with ``per_dimension``.
        alpha: multiplier, at least 0; float, or a tensor that broadcasts to ``kl``.
        per_dimension: whether the last axis holds components, each with its own bound.

    Returns:
        ``[...]``. Detaches nothing: the policy descends on it with the multiplier held.

    Raises:
        ValueError: a shape does not fit, or alpha is negative.
        TypeError: an argument is not floating-point.

    Source: Abdolmaleki et al. (2018), "Relative entropy regularized policy iteration", section 4.
    """
    _check_dual("lagrange_penalty", kl, per_dimension, alpha=alpha)
    return _summed(alpha * kl, per_dimension)


def lagrange_dual(
    kl: Tensor,
    alpha: float | Tensor,
    epsilon: float | Tensor,
    per_dimension: bool = False,
) -> Tensor:
    """What the multiplier minimizes: alpha (epsilon - KL), summed over components if any.

    It lets alpha grow while the bound is broken and shrink while it's kept.

    Args:
        kl: ``[...]`` float, or ``[..., D]`` with ``per_dimension``.
        alpha: multiplier, at least 0; float, or a tensor that broadcasts to ``kl``.
        epsilon: the bound; likewise, of any sign.
        per_dimension: whether the last axis holds components, each with its own bound.

    Returns:
        ``[...]``. Detaches nothing: the multiplier descends on it with the policy held.

    Raises:
        ValueError: a shape does not fit, or alpha is negative.
        TypeError: an argument is not floating-point.

    Source: Abdolmaleki et al. (2018), "Relative entropy regularized policy iteration", section 4.
    """
    _check_dual("lagrange_dual", kl, per_dimension, alpha=alpha, epsilon=epsilon)
    return _summed(alpha * (epsilon - kl), per_dimension)


# ---- for reducers


def penalties(batch: Batch, constraints: Constraints | None) -> dict[str, Tensor]:
    """``loss_kl``, the penalties of all constraints; nothing, if there is none."""
    parts = [lagrange_penalty(kl, a, each) for kl, a, _, each in _bounded(batch, constraints)]
    return {"loss_kl": sum(parts[1:], start=parts[0])} if parts else {}


def duals(batch: Batch, constraints: Constraints | None) -> dict[str, Tensor]:
    """``loss_alpha``, the duals of all constraints; nothing, if there is none."""
    parts = [lagrange_dual(*constraint) for constraint in _bounded(batch, constraints)]
    return {"loss_alpha": sum(parts[1:], start=parts[0])} if parts else {}


# ---- private


def _bounded(batch: Batch, constraints: Constraints | None) -> list[tuple[Tensor, Any, Any, bool]]:
    """Each constraint's KL, alpha, epsilon, and whether it is per dimension."""
    if constraints is not None and not isinstance(constraints, Mapping):
        raise TypeError(
            f"{batch.function}: constraints is {kind(constraints)}, expected a mapping from "
            "names of entries to LagrangePenalty"
        )
    found = []
    for key, penalty in (constraints or {}).items():
        if not isinstance(penalty, LagrangePenalty):
            raise TypeError(
                f"{batch.function}: constraints[{key!r}] is {kind(penalty)}, expected a "
                "LagrangePenalty"
            )
        kl = batch.vector(key) if penalty.per_dimension else batch.step(key)
        numbers = []
        for name in ("alpha", "epsilon"):
            value, where = getattr(penalty, name), f"constraints[{key!r}].{name}"
            check_hyper(batch.function, where, value, kl.shape, key, 0.0)
            per_step = isinstance(value, Tensor) and value.shape[: len(batch.shape)] == batch.shape
            numbers.append(batch.filled(value, 0.0) if per_step and value.dim() else value)
        found.append((kl, *numbers, penalty.per_dimension))
    return found


def _check_dual(name: str, kl: Tensor, per_dimension: bool, **dual: float | Tensor) -> None:
    shape = check_float(name, "kl", kl).shape
    if per_dimension and not shape:
        raise ValueError(f"{name}: kl has shape (), expected [..., D], components last")
    for key, value in dual.items():
        check_hyper(name, key, value, shape, "kl", 0.0 if key == "alpha" else -torch.inf)


def _summed(x: Tensor, per_dimension: bool) -> Tensor:
    return x.sum(-1) if per_dimension else x
