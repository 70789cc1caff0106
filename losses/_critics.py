"""What reducers over critics share: how they read ``next``, their targets and their distances."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ._batch import Batch
from ._check import Key, batch_first, check_float, dtype, is_integer, kind, missing, path
from .returns import td_targets

Distance = Callable[[Tensor, Tensor], Tensor]

NEXT_VALUE = "It comes from running the target critics on td['next'] with the policy's action."


def finished_target(
    batch: Batch,
    estimator: str,
    options: Mapping[str, Any] | None = None,
    **needed: float | Tensor | None,
) -> bool:
    """Whether the td brings ``value_target``.

    Raises if it does and something is given that would make it; and if it does not, and what is
    needed to make it is not given.
    """
    if batch.finished(("value_target",), **{**needed, **(options or {})}):
        return True
    if any(value is None and not batch.has(name) for name, value in needed.items()):
        raise missing(
            batch.function,
            batch.td,
            "value_target",
            f"Put it there with {estimator}, outside of the differentiated function, or give "
            f"{' and '.join(needed)}.",
        )
    return False


def following(batch: Batch) -> Batch:
    """The batch as it reads ``next``: what stands at a terminated step counts as masked."""
    follows = ~batch.flag(("next", "terminated"))
    ahead = copy.copy(batch)
    ahead.mask = follows if batch.mask is None else batch.mask & follows
    return ahead


def next_members(batch: Batch) -> Tensor:
    """The target critics' values of what follows, ``[*B, N]``; 0 where nothing does."""
    return following(batch).members(("next", "state_action_value"), hint=NEXT_VALUE)


def member_vectors(
    batch: Batch, key: Key, size: int | None = None, source: str = "", hint: str = ""
) -> Tensor:
    """Floats per step and critic, ``[*B, N, m]``; ``[*B, m]`` is one critic."""
    name, shape = path(key), batch.shape
    value = check_float(batch.function, name, batch.entry(key, hint))
    if value.dim() == len(shape) + 1:
        value = value.unsqueeze(-2)
    fits = value.dim() == len(shape) + 2 and value.shape[: len(shape)] == shape
    if not fits or 0 in value.shape or (size is not None and value.shape[-1] != size):
        m = "m" if size is None else str(size)
        wanted = f"{batch_first(shape, m)} or {batch_first(shape, 'N', m)}"
        batch.wrong_shape(key, value, wanted, f" (from {source})" if source else "")
    return batch.filled(value, 0.0)


def one_step_target(batch: Batch, value: Tensor, gamma: float | Tensor | None) -> Tensor:
    """Makes r + gamma^n (1 - terminated) value, of ``value`` ``[*B]`` or ``[*B, M]``."""
    reward, terminated = batch.step(("next", "reward")), batch.flag(("next", "terminated"))
    discount = batch.hyper("gamma", gamma, 0.0, 1.0)
    if batch.has("steps_to_next_obs"):
        discount = discount ** _count(batch, "steps_to_next_obs").to(reward.dtype)
    if value.shape != reward.shape:
        reward, terminated = (x.unsqueeze(-1).expand_as(value) for x in (reward, terminated))
        if isinstance(discount, Tensor) and discount.dim():
            discount = discount.unsqueeze(-1)
    return td_targets(reward, value, terminated, discount)


def distances(batch: Batch, distance: Distance, value: Tensor, target: Tensor) -> Tensor:
    """The distance of each value to its target."""
    error = distance(value, target)
    if error.shape != value.shape:
        batch.wrong_shape("distance's result", error, f"{list(value.shape)}, one number per value")
    return error


def ensemble_terms(
    batch: Batch, distance: Distance, value: Tensor, target: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Loss and metrics of N critics ``[*B, N]`` that share a target ``[*B]``."""
    each = target.unsqueeze(-1).expand_as(value)
    losses = {"loss_critic": distances(batch, distance, value, each).sum(-1)}
    metrics = {
        "td_error": (value - each).abs().amax(-1),
        "pred_value": value.mean(-1),
        "target_value": target,
    }
    return losses, metrics


def bounded(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """``x`` held to [low, high], differentiable in all three; at a bound x gets the gradient."""
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        return x.clamp(low, high)
    return x.clamp(*(_like(x, bound) for bound in (low, high)))


def check_order(function: str, low: float | Tensor, high: float | Tensor) -> None:
    """Raises if both bounds are floats and in the wrong order."""
    if not isinstance(low, Tensor) and not isinstance(high, Tensor) and low > high:
        raise ValueError(f"{function}: low is {low:g} and high {high:g}, expected low <= high")


# ---- private


def _count(batch: Batch, key: str) -> Tensor:
    """Integers per step, ``[*B]``; 1 at the steps that the mask leaves out."""
    value = batch.entry(key)
    if not isinstance(value, Tensor):
        raise TypeError(f"{batch.function}: {key} is {kind(value)}, expected a tensor of integers")
    if not is_integer(value):
        raise TypeError(f"{batch.function}: {key} has dtype {dtype(value)}, expected integers")
    return batch.filled(batch.per_step(key, value), 1)


def _like(x: Tensor, bound: float | Tensor) -> Tensor:
    if not isinstance(bound, Tensor):
        return torch.full((), bound, dtype=x.dtype, device=x.device)
    return bound.to(dtype=x.dtype, device=None if bound.dim() else x.device)
