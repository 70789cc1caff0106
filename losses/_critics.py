"""What reducers over critics share: how they read ``next``, their targets and their distances."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._check import kind, missing
from .returns import td_targets
from .scaling import TxPair

Distance = Callable[[Tensor, Tensor], Tensor]

NEXT_VALUE = "It comes from running the target critics on td['next'] with the policy's action."
LOG_PROB = "It is the log-probability of the policy's fresh sample."

# ---- what follows


def following(batch: Batch) -> Batch:
    """The batch as it reads ``next``: what stands at a terminated step counts as masked.

    Needed where it would reach a sum or a power. A number per step is filled by ``td_targets``.
    """
    follows = ~batch.flag(("next", "terminated"))
    ahead = object.__new__(Batch)  # copy.copy costs as much as an operation on a small tensor
    vars(ahead).update(vars(batch))
    ahead.mask = follows if batch.mask is None else batch.mask & follows
    return ahead


def next_members(batch: Batch) -> Tensor:
    """The target critics' values of what follows, ``[*B, N]``; 0 where nothing does."""
    return following(batch).members(("next", "state_action_value"), hint=NEXT_VALUE)


def next_log_prob(batch: Batch) -> Tensor:
    """Log-probability ``[*B]`` of the sample in the state that follows; 0 where none does."""
    return following(batch).step(("next", "action_log_prob_actor"), hint=LOG_PROB)


def greedy(batch: Batch, value: Tensor, source: str, selects: bool | None = None) -> Tensor:
    """The action ``[*B]`` of the largest value, the first of equals, of those that are allowed.

    ``value`` ``[*B, A]`` (from ``source``) gives way to the selector if that selects; None: if the
    td has one.
    """
    size, key = value.shape[-1], ("next", "action_value_selector")
    if selects or (selects is None and batch.has(key)):
        value = batch.vector(key, size, source)
    if batch.has(("next", "action_mask")):
        mask = batch.allowed(("next", "action_mask"), size, source)
        value = torch.where(mask, value, -torch.inf)
    return value.argmax(-1)


def only_source(batch: Batch, *names: str) -> str:
    """Which of the entries the td has under next; raises if none or more."""
    found = [name for name in names if batch.has(("next", name))]
    if not found:
        raise missing(batch.function, batch.td, ("next", names[0]), f"Or next.{names[1]}.")
    if len(found) > 1:
        raise ValueError(
            f"{batch.function}: the td holds {' and '.join(repr(f'next.{x}') for x in found)}, "
            f"expected one of them; drop the other, e.g. td.exclude(('next', {found[0]!r}))"
        )
    return found[0]


# ---- targets


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


def one_step_target(
    batch: Batch, value: Tensor, gamma: float | Tensor | None, tx: TxPair | None = None
) -> Tensor:
    """Makes r + gamma^n (1 - terminated) value, of ``value`` ``[*B]`` or ``[*B, M]``."""
    reward, terminated = batch.step(("next", "reward")), batch.flag(("next", "terminated"))
    discount = batch.hyper("gamma", gamma, 0.0, 1.0)
    if batch.has("steps_to_next_obs") and not batch.has("gamma"):  # an entry is gamma^n already
        discount = discount ** batch.count("steps_to_next_obs").to(reward.dtype)
    if value.shape != reward.shape:
        reward, terminated = (x.unsqueeze(-1).expand_as(value) for x in (reward, terminated))
        if isinstance(discount, Tensor) and discount.dim():
            discount = discount.unsqueeze(-1)
    return td_targets(reward, value, terminated, discount, tx)


# ---- distances


def distances(function: str, distance: Distance, value: Tensor, target: Tensor) -> Tensor:
    """The distance of each value to its target, if it gives one number per value."""
    if not callable(distance):
        got = f"distance is {kind(distance)}"
        raise TypeError(f"{function}: {got}, expected a function of a value and its target")
    error = distance(value, target)
    if not isinstance(error, Tensor):
        raise TypeError(f"{function}: distance's result is {kind(error)}, expected a tensor")
    if error.shape != value.shape:
        raise ValueError(
            f"{function}: distance's result has shape {tuple(error.shape)}, expected "
            f"{list(value.shape)}, one number per value"
        )
    return error


def critic_metrics(value: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What every regression of a value reports; ``td_error`` is the priority in replay."""
    return {"td_error": (target - value).abs(), "pred_value": value, "target_value": target}


def ensemble_loss(
    batch: Batch, distance: Distance, value: Tensor, target: Tensor, reduction: str
) -> TensorDictBase:
    """The result of N critics ``[*B, N]`` that share a target ``[*B]``."""
    each = target.unsqueeze(-1).expand_as(value)
    losses = {"loss_critic": distances(batch.function, distance, value, each).sum(-1)}
    metrics = {**critic_metrics(value.mean(-1), target), "td_error": (value - each).abs().amax(-1)}
    return batch.reduced(reduction, losses, metrics)
