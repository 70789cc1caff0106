"""What the losses of ``ppo.py`` share: the ratio of two policies, and the terms beside it.

Symbols as there: l is the log-ratio log pi - log mu, r = exp(l), A the advantage.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._critics import Distance
from ._numbers import bounded, normalized
from .distributions import (
    DistClass,
    action_log_prob,
    behavior_log_prob,
    entropy_bonus,
    kl,
    make_distribution,
)
from .estimators import stopped_advantage
from .value import critic_error, explained_variance

_DEVIATION_EPS = 1e-8
_VALUE_HINT = "With critic_coeff=None there is no critic's loss, and no value is read."


@dataclass(frozen=True)
class Proximal:
    """A td opened for a policy update: the policy, its log-ratio and the advantage, ``[*B]``."""

    batch: Batch
    dist: Any
    log_ratio: Tensor
    advantage: Tensor
    value_target: Tensor | None  # None: the td holds it

    def reduced(
        self,
        reduction: str,
        losses: dict[str, Tensor],
        metrics: dict[str, Tensor],
        entropy_coeff: float | Tensor,
        *critic: Any,
    ) -> TensorDictBase:
        """The reducer's result: its own losses and metrics, and those that all have in common."""
        batch, log_ratio = self.batch, self.log_ratio.detach()
        summary = {} if reduction == "none" else ratio_summary(log_ratio, batch.mask)
        self._add_critic(losses, metrics, summary, *critic)
        bonus, entropy = entropy_bonus(batch, self.dist, entropy_coeff, log_ratio)
        metrics = {**metrics, **entropy, "kl_approx": -log_ratio}
        return batch.reduced(reduction, {**losses, **bonus}, metrics, summary)

    def _add_critic(
        self,
        losses: dict[str, Tensor],
        metrics: dict[str, Tensor],
        summary: dict[str, Tensor],
        critic_coeff: float | Tensor | None,
        value_clip: float | Tensor | None,
        distance: Distance,
    ) -> None:
        batch, target = self.batch, self.value_target
        if critic_coeff is None and not batch.has("critic_coeff"):
            return
        value = batch.step("state_value", hint=_VALUE_HINT)
        if target is None:
            target = batch.step("value_target", hint=_VALUE_HINT)
        error, fraction = critic_error(batch, value, target, value_clip, distance)
        metrics.update(fraction)
        losses["loss_critic"] = batch.hyper("critic_coeff", critic_coeff) * error
        if summary:  # empty without a reduction
            pair = value.detach(), target.detach()
            summary["explained_variance"] = explained_variance(*pair, batch.mask)


def opened(
    function: str,
    td: TensorDictBase,
    dist_class: DistClass,
    gamma: float | Tensor | None,
    lmbda: float | Tensor | None,
    normalize_advantage: bool,
) -> Proximal:
    """Reads what a loss with a ratio needs; advantages that the td lacks are made, with a stop."""
    batch, target = Batch(function, td), None
    if batch.finished(("advantage", "value_target"), gamma=gamma, lmbda=lmbda):
        advantage = batch.step("advantage")
    else:
        advantage, target = stopped_advantage(batch, gamma, lmbda)
    if normalize_advantage:
        advantage = normalized(advantage, batch.mask, _DEVIATION_EPS)
    dist = make_distribution(batch, dist_class)
    log_ratio = action_log_prob(batch, dist) - behavior_log_prob(batch, dist)
    return Proximal(batch, dist, log_ratio, advantage, target)


def clip_range(
    batch: Batch,
    eps: float | Tensor,
    eps_low: float | Tensor | None,
    eps_high: float | Tensor | None,
) -> tuple[float | Tensor, float | Tensor]:
    """How far below and above 1 the ratio counts."""
    sides = {"eps_low": eps_low, "eps_high": eps_high}
    own = [name for name, value in sides.items() if value is not None or batch.has(name)]
    if len(own) == 2 and (isinstance(eps, Tensor) or eps != 0.2):
        raise ValueError(
            f"{batch.function}: eps is given beside eps_low and eps_high, and would be without "
            "effect; drop it, or one of them"
        )
    low, high = (
        batch.hyper(name, value, 0.0) if name in own else batch.hyper("eps", eps, 0.0)
        for name, value in sides.items()
    )
    return low, high


def clipped(
    log_ratio: Tensor, advantage: Tensor, low: float | Tensor, high: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The log-ratio that counts, l' with r' A = min(r A, clip(r, 1 - low, 1 + high) A).

    And whether the ratio lies beyond the bounds. Where the clip cuts off, nothing is left of the
    ratio, so that one beyond the range of floats is without harm, in a gradient too.
    """
    now = log_ratio.detach()
    held = bounded(now, _log_one_plus(low, -1), _log_one_plus(high, 1))
    outside = held != now
    cut = outside & ((now > 0) == (advantage >= 0))
    return torch.where(cut, held, log_ratio), outside


def _log_one_plus(x: float | Tensor, sign: int) -> float | Tensor:
    """log(1 + sign x), -inf where that is of no positive number, with a gradient of 0 there."""
    if not isinstance(x, Tensor):
        return math.log1p(sign * x) if sign * x > -1 else -math.inf
    if sign > 0:
        return x.log1p()
    inside = x < 1
    return torch.where(inside, (-torch.where(inside, x, 0.0)).log1p(), -math.inf)


def discovered_gain(
    log_ratio: Tensor, advantage: Tensor, alpha: float | Tensor, beta: float | Tensor
) -> Tensor:
    """The gain r A - drift of discovered policy optimization, in a form without large terms.

    x - alpha tanh(x / alpha) has the sign of x. So for A >= 0 with x = (r - 1) A the gain is
    A + alpha tanh(x / alpha) where x is positive, and A + x elsewhere.
    """
    positive = advantage >= 0
    # tanh is 1 long before a ratio of this size, at any advantage that matters
    limit = 0.5 * math.log(torch.finfo(log_ratio.dtype).max)
    up = torch.where(positive, log_ratio, 0.0).clamp(max=limit)
    x = up.expm1() * advantage
    gained = advantage + torch.where(x > 0, alpha * (x / alpha).tanh(), x)
    down = torch.where(positive, 0.0, log_ratio)
    y = down * advantage
    lost = down.exp() * advantage - (y - beta * (y / beta).tanh()).relu()
    return torch.where(positive, gained, lost)


def kl_from_behavior(step: Proximal, dist_class: DistClass) -> Tensor:
    """KL(mu || pi) per step, with mu's parameters from the nested td ``behavior``: ``[*B]``."""
    return kl(step.batch, make_distribution(step.batch, dist_class, ("behavior",)), step.dist)


# ---- diagnostics, of tensors without a graph


def ratio_summary(log_ratio: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Mean and largest ratio, and the effective sample size over the number of steps."""
    if mask is not None:
        log_ratio = torch.where(mask, log_ratio, -math.inf)
    count = log_ratio.numel() if mask is None else mask.sum()
    top = log_ratio.amax()
    share = (log_ratio - top).exp()  # at most 1: no power of it overflows
    mean, largest = share.sum() / count, top.exp()
    ess = mean * mean / (share.square().sum() / count)
    return {"mean_ratio": largest * mean, "max_ratio": largest, "ESS": ess}
