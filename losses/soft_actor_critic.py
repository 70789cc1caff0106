"""Soft actor-critic, REDQ and CrossQ: values with a bonus for the policy's entropy.

Symbols: pi is the policy, a' and a~ are fresh samples of it, alpha the temperature, Q_i critic i of
N, Q'_i a target critic. Nothing is sampled here: samples, their log-probabilities and their values
are entries of the td, ``[*B]`` or ``[*B, T]``:

    state_action_value          [*B] or [*B, N]  Q_i(s_t, a_t) of the action that was taken
    next.state_action_value     [*B] or [*B, N]  Q'_i(s_{t+1}, a')
    next.action_log_prob_actor  [*B]             log pi(a'|s_{t+1})
    state_action_value_actor    [*B] or [*B, N]  Q_i(s_t, a~), a~ reparametrized
    action_log_prob_actor       [*B]             log pi(a~|s_t)

Two roads to what a critic is to say. Put into the td beforehand as ``value_target``
(``add_soft_target``, outside of the differentiated function), nothing is detached. Else the reducer
makes it from ``gamma`` and ``alpha``, with a full stop on what it reads of ``next``: exact for one
inner step. What stands in ``next`` of a terminated step is without influence and without gradient,
NaN included.

Each loss is for the parameters of one part: the policy's, the critics', or (``temperature``) log
alpha. Nothing is detached between them: make the entries of the other parts with their parameters
held, or differentiate for the part's own. The temperature has no default, and carries its gradient.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._check import dtype, is_integer, kind, no_data
from ._critics import (
    LOG_PROB,
    Distance,
    critic_metrics,
    distances,
    ensemble_loss,
    finished_target,
    next_log_prob,
    next_members,
    one_step_target,
)
from .distances import half_squared_error, squared_error

# ---- policy


def sac_actor_loss(
    td: TensorDictBase,
    *,
    alpha: float | Tensor | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """SAC's policy: raise the least critic's value of its sample, and its entropy.

        loss_actor = alpha log pi(a~|s_t) - min_i Q_i(s_t, a~)

    Detaches nothing; TorchRL's cuts alpha. Where critics tie, the gradient of the minimum is shared
    equally among them (TorchRL's goes to one).

    Args:
        td: ``[*B]`` with ``state_action_value_actor`` ``[*B, N]`` or ``[*B]`` and
            ``action_log_prob_actor`` ``[*B]`` float, of a reparametrized sample, the critics'
            parameters held; optionally ``mask`` and ``weight``.
        alpha: temperature, at least 0; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_actor``, and detached ``entropy``, -log pi(a~|s_t).

    Raises:
        ValueError: a key is missing, a shape is wrong, or alpha is given nowhere or out of its
            range.
        TypeError: an entry or alpha has the wrong dtype.

    Source: Haarnoja et al. (2018), "Soft actor-critic algorithms and applications", equation 9;
    the minimum of section 6.
    """
    batch = Batch("sac_actor_loss", td)
    value = batch.members("state_action_value_actor").amin(-1)
    return batch.reduced(reduction, *soft_policy_terms(batch, value, alpha))


def redq_actor_loss(
    td: TensorDictBase,
    *,
    alpha: float | Tensor | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """REDQ's policy: as SAC's, with the mean of the critics.

        loss_actor = alpha log pi(a~|s_t) - 1/N sum_i Q_i(s_t, a~)

    Detaches nothing; TorchRL's cuts alpha.

    Args:
        td: as of ``sac_actor_loss``.
        alpha: temperature, at least 0; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_actor``, and detached ``entropy``, -log pi(a~|s_t).

    Raises:
        ValueError: a key is missing, a shape is wrong, or alpha is given nowhere or out of its
            range.
        TypeError: an entry or alpha has the wrong dtype.

    Source: Chen et al. (2021), "Randomized ensembled double Q-learning", algorithm 1.
    """
    batch = Batch("redq_actor_loss", td)
    value = batch.members("state_action_value_actor").mean(-1)
    return batch.reduced(reduction, *soft_policy_terms(batch, value, alpha))


# ---- critics


def sac_critic_loss(
    td: TensorDictBase,
    *,
    gamma: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    distance: Distance = half_squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """SAC's critics: each learns from the least of the target critics, and the entropy.

        loss_critic = sum_i distance(Q_i(s_t, a_t), y_t), by default 1/2 (Q_i - y_t)^2
        y_t = r_t + gamma^n (1 - terminated_t) (min_i Q'_i(s_{t+1}, a') - alpha log pi(a'|s_{t+1}))

    In SAC's first version y_t bootstraps on a separate V'(s_{t+1}): the ``value_target`` is then
    r_t + gamma (1 - terminated_t) V'(s_{t+1}), and V learns by ``sac_value_loss``. TorchRL's
    default distance is smooth L1, and its first version shows each critic a part of the batch.

    Detaches nothing where the td holds ``value_target``. Where it does not, y_t is made from
    ``gamma`` and ``alpha`` with a **full stop** on what is read of ``next``, values and
    log-probabilities; gamma and alpha get their gradients. That is exact for one inner step; for
    several put the targets there with ``add_soft_target``.

    Args:
        td: ``[*B]`` with ``state_action_value`` ``[*B, N]`` float (``[*B]`` is one critic) and
            ``value_target`` ``[*B]``, or instead of the latter what ``add_soft_target`` reads;
            optionally ``mask`` and ``weight``.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        alpha: temperature, at least 0; likewise.
        distance: elementwise function of the values ``[*B, N]`` and their targets.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error`` max_i |Q_i - y|, ``pred_value`` (mean over the
        critics) and ``target_value``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` or ``alpha`` stands beside a
            ``value_target``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Haarnoja et al. (2018), equations 5 and 6; the minimum of section 6.
    """
    return _critic_loss(Batch("sac_critic_loss", td), gamma, alpha, distance, reduction)


def crossq_critic_loss(
    td: TensorDictBase,
    *,
    gamma: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    distance: Distance = half_squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """CrossQ's critics: SAC's equations without target networks.

        loss_critic = sum_i distance(Q_i(s_t, a_t), y_t), by default 1/2 (Q_i - y_t)^2
        y_t = r_t + gamma^n (1 - terminated_t) (min_i Q_i(s_{t+1}, a') - alpha log pi(a'|s_{t+1}))

    What differs from ``sac_critic_loss`` is how its entries are made: the learning critics
    themselves say what follows, ``state_action_value`` and its ``next`` come from *one* joint pass
    over the pairs (s_t, a_t) and (s_{t+1}, a'), so that their batch normalization sees both, and
    there is no target network to move. So the stop is all that keeps the critics from lowering
    their own target. TorchRL's default distance is smooth L1.

    Detaches nothing where the td holds ``value_target``. Where it does not, y_t is made from
    ``gamma`` and ``alpha`` with a **full stop** on what is read of ``next``, values and
    log-probabilities; gamma and alpha get their gradients. That is exact for one inner step; for
    several put the targets there with ``add_soft_target``.

    Args:
        td: as of ``sac_critic_loss``.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        alpha: temperature, at least 0; likewise.
        distance: elementwise function of the values ``[*B, N]`` and their targets.
        reduction: "mean", "sum" or "none".

    Returns:
        As ``sac_critic_loss``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` or ``alpha`` stands beside a
            ``value_target``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Bhatt et al. (2024), "CrossQ: batch normalization in deep reinforcement learning for
    greater sample efficiency and simplicity", section 3.
    """
    return _critic_loss(Batch("crossq_critic_loss", td), gamma, alpha, distance, reduction)


def redq_critic_loss(
    td: TensorDictBase,
    *,
    gamma: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    subset: Tensor | Sequence[int] | None = None,
    distance: Distance = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """REDQ's critics: each learns from the least of a few target critics, drawn at random.

        loss_critic = sum_i distance(Q_i(s_t, a_t), y_t), by default (Q_i - y_t)^2, without 1/2
        y_t = r_t + gamma^n (1 - terminated_t) (min_{i in subset} Q'_i(s_{t+1}, a') - alpha log pi')

    The subset, two of ten in the paper, is drawn by the caller, anew for each update. The sum over
    the critics is the paper's, which updates each by its own loss; TorchRL's takes their mean, and
    smooth L1 for the distance, and does without ``steps_to_next_obs``.

    Detaches nothing where the td holds ``value_target``. Where it does not, y_t is made from
    ``gamma``, ``alpha`` and ``subset`` with the full stop of ``sac_critic_loss``; for several inner
    steps put the targets there with ``add_soft_target``.

    Args:
        td: as of ``sac_critic_loss``.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        alpha: temperature, at least 0; likewise.
        subset: which of the target critics count, indices ``[M]`` of integers, likewise only for a
            td without ``value_target``.
        distance: elementwise function of the values ``[*B, N]`` and their targets.
        reduction: "mean", "sum" or "none".

    Returns:
        As ``sac_critic_loss``.

    Raises:
        ValueError: a key is missing, a shape is wrong, an index is out of range, or ``gamma``,
            ``alpha`` or ``subset`` stands beside a ``value_target``.
        TypeError: an entry or an argument has the wrong dtype.

    Source: Chen et al. (2021), algorithm 1.
    """
    batch = Batch("redq_critic_loss", td)
    return _critic_loss(batch, gamma, alpha, distance, reduction, subset=subset)


def add_soft_target(
    td: TensorDictBase,
    gamma: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    *,
    subset: Tensor | Sequence[int] | None = None,
) -> TensorDictBase:
    """Adds what the critics of SAC, REDQ and CrossQ are to say.

        value_target_t = r_t + gamma^n (1 - terminated_t)
                         (min_i Q'_i(s_{t+1}, a') - alpha log pi(a'|s_{t+1}))

    Detaches nothing. Where critics tie, the gradient of the minimum is shared equally among them.

    Args:
        td: ``[*B]`` with ``("next", "state_action_value")`` ``[*B, N]`` or ``[*B]``, ``("next",
            "action_log_prob_actor")``, ``("next", "reward")`` float and ``("next", "terminated")``
            bool; optionally ``steps_to_next_obs`` and ``mask``.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        alpha: temperature, at least 0; likewise.
        subset: which of the critics the minimum is taken over, indices ``[M]`` of integers; all, if
            it is None.

    Returns:
        A new td with ``value_target``, ``[*B]``.

    Raises:
        ValueError: a key is missing, a shape is wrong, an index is out of range, or gamma or alpha
            is given nowhere or out of its range.
        TypeError: an entry or an argument has the wrong dtype.

    Source: Haarnoja et al. (2018), equation 6; Chen et al. (2021), algorithm 1.
    """
    batch = Batch("add_soft_target", td)
    options = {} if subset is None else {"subset": subset}
    target = _soft_target(batch, *_following(batch, options), gamma, alpha)
    return batch.added(value_target=target)


def sac_value_loss(
    td: TensorDictBase,
    *,
    alpha: float | Tensor | None = None,
    distance: Distance = half_squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """The state's value in SAC's first version: the least critic's, with the entropy.

        loss_value = distance(V(s_t), min_i Q_i(s_t, a~) - alpha log pi(a~|s_t)),
        by default 1/2 (V - ...)^2

    Detaches nothing: V's parameters do not enter what it is compared to. TorchRL's default distance
    is smooth L1.

    Args:
        td: ``[*B]`` with ``state_value`` ``[*B]`` float, and ``state_action_value_actor`` and
            ``action_log_prob_actor`` as of ``sac_actor_loss``; optionally ``mask`` and ``weight``.
        alpha: temperature, at least 0; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        distance: elementwise function of the value and what it should be.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_value``, and detached ``td_error``, ``pred_value`` V(s_t) and ``target_value``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or alpha is given nowhere or out of its
            range.
        TypeError: an entry or alpha has the wrong dtype.

    Source: Haarnoja et al. (2018), "Soft actor-critic: off-policy maximum entropy deep
    reinforcement learning with a stochastic actor", equation 5.
    """
    batch = Batch("sac_value_loss", td)
    value = batch.step("state_value")
    best = batch.members("state_action_value_actor").amin(-1)
    log_prob = batch.step("action_log_prob_actor", hint=LOG_PROB)
    target = best - batch.hyper("alpha", alpha, 0.0) * log_prob
    error = distances(batch.function, distance, value, target)
    return batch.reduced(reduction, {"loss_value": error}, critic_metrics(value, target))


# ---- shared with the other versions


def soft_policy_terms(
    batch: Batch, value: Tensor, alpha: float | Tensor | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Loss and metric of a policy whose sample has the value ``[*B]``."""
    log_prob = batch.step("action_log_prob_actor", hint=LOG_PROB)
    loss = batch.hyper("alpha", alpha, 0.0) * log_prob - value
    return {"loss_actor": loss}, {"entropy": -log_prob}


# ---- private


def _critic_loss(
    batch: Batch,
    gamma: float | Tensor | None,
    alpha: float | Tensor | None,
    distance: Distance,
    reduction: str,
    **options: Any,
) -> TensorDictBase:
    """The result of a reducer for critics; of the options, ``subset`` is which of them count."""
    value = batch.members("state_action_value")
    if finished_target(batch, "add_soft_target", options, gamma=gamma, alpha=alpha):
        target = batch.step("value_target")
    else:
        after, log_prob = (x.detach() for x in _following(batch, options))
        target = _soft_target(batch, after, log_prob, gamma, alpha)
    return ensemble_loss(batch, distance, value, target, reduction)


def _following(batch: Batch, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Values ``[*B, N]`` and log-probability ``[*B]`` of the sample that follows."""
    value = next_members(batch)
    return _chosen(batch, value, **options) if options else value, next_log_prob(batch)


def _soft_target(
    batch: Batch,
    value: Tensor,
    log_prob: Tensor,
    gamma: float | Tensor | None,
    alpha: float | Tensor | None,
) -> Tensor:
    soft = value.amin(-1) - batch.hyper("alpha", alpha, 0.0) * log_prob
    return one_step_target(batch, soft, gamma)


def _chosen(batch: Batch, value: Tensor, subset: Any) -> Tensor:
    """Of the members ``[*B, N]`` those of the subset, ``[*B, M]``."""
    name, size = batch.function, value.shape[-1]
    if subset is None:
        raise ValueError(
            f"{name}: subset is None, expected the indices of the target critics that the minimum "
            "is taken over, e.g. subset=torch.randperm(10)[:2]"
        )
    if isinstance(subset, Sequence) and not isinstance(subset, str):
        try:
            subset = torch.tensor([*subset], device=value.device)
        except (ValueError, TypeError, RuntimeError):
            raise TypeError(f"{name}: subset is {subset!r}, expected indices") from None
    if not isinstance(subset, Tensor):
        raise TypeError(f"{name}: subset is {kind(subset)}, expected a tensor of indices")
    if subset.dim() != 1 or not subset.numel():
        raise ValueError(f"{name}: subset has shape {tuple(subset.shape)}, expected [M], M >= 1")
    if not is_integer(subset):
        raise TypeError(f"{name}: subset has dtype {dtype(subset)}, expected integers")
    if not no_data(subset) and bool(((subset < 0) | (subset >= size)).any()):
        raise ValueError(
            f"{name}: subset holds an index outside of 0 to {size - 1} "
            f"(next.state_action_value has {size} members)"
        )
    return value[..., subset]
