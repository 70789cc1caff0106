"""Distributions of returns by their quantiles: learned positions, as in QR-DQN.

A distribution has probabilities tau_1 < ... < tau_N and positions theta_i, learned by a regression
whose minimum are the quantiles. Keys of a td ``[*B]`` or ``[*B, T]``:

    action_value_quantiles      [*B, A, N]  theta of Q(s_t, .); under next by the target network
    next.action_value_selector  [*B, A]     what chooses the next action, in double Q-learning
    next.action_mask            [*B, A]     bool, what it is chosen among
    value_target                [*B, M]     positions to learn from, equally likely, unless with
    value_target_probs          [*B, M]     their probabilities

Where the td holds the target nothing is detached; else a reducer makes it from ``gamma``, with a
full stop on what stands under ``next``. The next action is the one that the selector values most,
or where there is none, the one of the largest mean; the first of equals. A step's ``td_error``, its
priority in a replay buffer, is its loss before weights.
"""

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._check import batch_first, check_float, check_hyper
from ._critics import finished_target, following, greedy, one_step_target, only_source
from .distances import unchecked_huber

_PROBS = "value_target_probs"


def quantile_huber(
    quantiles: Tensor,
    tau: Tensor,
    target: Tensor,
    kappa: float | Tensor = 1.0,
    target_probs: Tensor | None = None,
) -> Tensor:
    """Quantile regression with Huber's error: sum over quantiles, mean over targets.

        u_ij = target_j - theta_i
        sum_i sum_j p_j |tau_i - (1 if u_ij < 0 else 0)| huber(u_ij, kappa),    p_j = 1 / M

    where huber has the factor of 1/2 and is not divided by kappa; with a kappa of 0 it is |u|, pure
    quantile regression.

    Args:
        quantiles: theta, ``[..., N]`` float.
        tau: their probabilities, ``[N]`` or ``[..., N]`` float, in [0, 1].
        target: ``[..., M]`` float. Carries gradient as the quantiles do.
        kappa: where the square ends, at least 0; float, or a tensor that broadcasts to ``[...]``.
        target_probs: p, ``[..., M]`` float, taken as they are; uniform if not given.

    Returns:
        ``[...]``.

    Raises:
        ValueError: the shapes do not match, or kappa is a negative float.
        TypeError: an argument is not floating-point.

    Source: Dabney et al. (2018), "Distributional reinforcement learning with quantile regression",
    equations 9 and 10.
    """
    name = "quantile_huber"
    shape = check_float(name, "quantiles", quantiles).shape
    if not shape or not shape[-1]:
        raise ValueError(
            f"{name}: quantiles has shape {tuple(shape)}, expected [..., N] with N of at least 1"
        )
    if check_float(name, "tau", tau).shape not in (shape, shape[-1:]):
        raise ValueError(
            f"{name}: tau has shape {tuple(tau.shape)}, expected ({shape[-1]},) or {tuple(shape)} "
            "(from quantiles)"
        )
    check_float(name, "target", target)
    if target.dim() != len(shape) or target.shape[:-1] != shape[:-1] or not target.shape[-1]:
        raise ValueError(
            f"{name}: target has shape {tuple(target.shape)}, expected "
            f"{batch_first(shape[:-1], 'M')} (from quantiles)"
        )
    if target_probs is not None:
        if check_float(name, "target_probs", target_probs).shape != target.shape:
            raise ValueError(
                f"{name}: target_probs has shape {tuple(target_probs.shape)}, expected "
                f"{tuple(target.shape)} (from target)"
            )
    check_hyper(name, "kappa", kappa, shape[:-1], "quantiles, without its last axis", 0.0)
    return _quantile_huber(quantiles, tau, target, kappa, target_probs)


def add_quantile_q_target(
    td: TensorDictBase, gamma: float | Tensor | None = None, *, expected: bool = False
) -> TensorDictBase:
    """Adds the positions that the quantiles of the chosen action are to learn from.

        r_t + gamma^n (1 - terminated_t) theta'_j(s_{t+1}, a')

    with the greedy a', of those that ``("next", "action_mask")`` allows; or, with ``expected``, of
    all a' at once, a position's probability that of its action under the policy divided by N
    (expected SARSA). Detaches nothing.

    Args:
        td: ``[*B]`` with ``("next", "action_value_quantiles")`` ``[*B, A, N]``, ``("next",
            "reward")`` and ``("next", "terminated")``; with ``expected`` also ``("next",
            "logits")`` or ``("next", "probs")`` ``[*B, A]``; optionally ``("next",
            "action_value_selector")`` ``[*B, A]`` float, ``("next", "action_mask")`` ``[*B, A]``
            bool, ``mask`` and ``steps_to_next_obs``, integers ``[*B]``.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        expected: whether the target is the mixture over the policy's actions.

    Returns:
        A new td with ``value_target`` ``[*B, N]``; with ``expected`` ``[*B, A N]``, and
        ``value_target_probs`` of that shape.

    Raises:
        ValueError: a key is missing, a shape is wrong, or gamma is given nowhere.
        TypeError: an entry has the wrong dtype.

    Source: Dabney et al. (2018), algorithm 1.
    """
    batch = Batch("add_quantile_q_target", td)
    target, probs = _following(batch, expected)
    entries = {} if probs is None else {_PROBS: probs}
    return batch.added(value_target=one_step_target(batch, target, gamma), **entries)


def quantile_q_loss(
    td: TensorDictBase,
    *,
    gamma: float | Tensor | None = None,
    tau: Tensor | None = None,
    kappa: float | Tensor = 1.0,
    expected: bool = False,
    reduction: str = "mean",
) -> TensorDictBase:
    """Distributional Q-learning by quantile regression (QR-DQN), or expected SARSA so.

        loss_critic = quantile_huber(theta(s_t, a_t), tau, target, kappa)

    with the target from ``value_target``, or made here as by ``add_quantile_q_target``,
    with a **full stop** on ``("next", "action_value_quantiles")`` and on the policy: exact where a
    target network made them, and for one inner step where the learning network did.

    rlax's ``quantile_q_learning`` stops reward and discount too, where it stops; here they get
    their gradients. With ``expected`` a terminated step gives the next policy no gradient; rlax's
    ``quantile_expected_sarsa`` gives its probabilities one there.

    Args:
        td: ``[*B]`` with ``action_value_quantiles`` ``[*B, A, N]``, ``action`` and ``value_target``
            ``[*B, M]``, optionally with their probabilities ``value_target_probs`` ``[*B, M]``, or
            instead of these what ``add_quantile_q_target`` reads; optionally ``mask`` and
            ``weight``.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        tau: probabilities of the quantiles, ``[N]`` or ``[*B, N]`` float; (i - 1/2) / N if not
            given.
        kappa: where the square ends, at least 0; float or tensor, 0-d or ``[*B]``. An entry of the
            td wins.
        expected: as of ``add_quantile_q_target``, only for a td without ``value_target``.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error``, the same per step, ``pred_value`` and
        ``target_value``, the means of the two distributions.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` or ``expected`` stands beside a
            finished target.
        TypeError: an entry or an argument has the wrong dtype.

    Source: Dabney et al. (2018), algorithm 1.
    """
    batch = Batch("quantile_q_loss", td)
    source = "action_value_quantiles"
    every = batch.array(source, "A", "N")
    quantiles = batch.of_action(every.mT, source)
    target, probs = _target(batch, gamma, expected, every.shape[-2])
    kappa = batch.hyper("kappa", kappa, 0.0)
    error = _quantile_huber(quantiles, _tau(batch, tau, quantiles), target, kappa, probs)
    metrics = {
        "td_error": error,
        "pred_value": quantiles.mean(-1),
        "target_value": target.mean(-1) if probs is None else (target * probs).sum(-1),
    }
    return batch.reduced(reduction, {"loss_critic": error}, metrics)


# ---- private


def _target(
    batch: Batch, gamma: float | Tensor | None, expected: bool, actions: int
) -> tuple[Tensor, Tensor | None]:
    """Positions ``[*B, M]`` and probabilities, if not uniform: the td's, or made here."""
    options = {"expected": expected or None}
    if not finished_target(batch, "add_quantile_q_target", options, gamma=gamma):
        after, probs = _following(batch, expected, actions)
        target = one_step_target(batch, after.detach(), gamma)
        return target, None if probs is None else probs.detach()
    target = batch.vector("value_target", "M")
    if not batch.has(_PROBS):
        return target, None
    return target, batch.vector(_PROBS, target.shape[-1], "value_target")


def _following(
    batch: Batch, expected: bool, actions: int | str = "A"
) -> tuple[Tensor, Tensor | None]:
    """Positions theta' ``[*B, M]``, and their probabilities if they are not uniform."""
    source, ahead = "action_value_quantiles", following(batch)
    after = ahead.array(("next", source), actions, "N", source=source)
    size, members = after.shape[-2:]
    if not expected:
        index = greedy(ahead, after.mean(-1), f"next.{source}")
        return ahead.of_action(after.mT, source, index), None
    policy = only_source(batch, "logits", "probs")
    key = ("next", policy)
    probs = ahead.vector(key, size, f"next.{source}", 0.0 if policy == "logits" else 1 / size)
    probs = probs.softmax(-1) if policy == "logits" else probs
    each = (probs / members).unsqueeze(-1).expand_as(after).flatten(-2)  # [*B, A N]
    return after.flatten(-2), each


def _quantile_huber(
    quantiles: Tensor,
    tau: Tensor,
    target: Tensor,
    kappa: Any,
    target_probs: Tensor | None,
) -> Tensor:
    """``quantile_huber`` without its checks."""
    error = target.unsqueeze(-2) - quantiles.unsqueeze(-1)  # [..., N, M]
    if not isinstance(kappa, Tensor):
        size = unchecked_huber(error, kappa) if kappa else error.abs()
    else:
        kappa = kappa[..., None, None] if kappa.dim() else kappa
        size = torch.where(kappa > 0, unchecked_huber(error, kappa), error.abs())
    tau = tau.unsqueeze(-1)
    pairs = torch.where(error < 0, (1 - tau) * size, tau * size)
    mean = pairs.mean(-1) if target_probs is None else (pairs * target_probs.unsqueeze(-2)).sum(-1)
    return mean.sum(-1)


def levels(quantiles: Tensor) -> Tensor:
    """The probabilities (i - 1/2) / N of N quantiles ``[..., N]``, ``[N]``."""
    size = quantiles.shape[-1]
    return (torch.arange(size, dtype=quantiles.dtype, device=quantiles.device) + 0.5) / size


def _tau(batch: Batch, tau: Tensor | None, quantiles: Tensor) -> Tensor:
    """The quantiles' probabilities, ``[N]`` or ``[*B, N]``."""
    size = quantiles.shape[-1]
    if tau is None:
        return levels(quantiles)
    if check_float(batch.function, "tau", tau).shape not in ((size,), quantiles.shape):
        wanted = f"[{size}] or {batch_first(quantiles.shape)}"
        batch.wrong_shape("tau", tau, wanted, " (from action_value_quantiles)")
    tau = tau.to(quantiles.dtype)
    return tau if tau.dim() == 1 else batch.filled(tau, 0.5)
