"""Soft actor-critic over a finite set of actions: expectations take the place of samples.

Symbols: p_a = pi(a|s) is the policy, H its entropy, alpha the temperature, Q_i(s, a) critic i of N.
The reducers read a td ``[*B]`` or ``[*B, T]`` that holds the policy's parameters (``logits``, see
``distribution``) and

    action_value       [*B, A] or [*B, N, A]  Q_i(s_t, .)
    next.action_value  [*B, A] or [*B, N, A]  Q'_i(s_{t+1}, .) of the target critics
    next.logits        [*B, A]                the policy in the state that follows, or another of
                                              its parametrizations

Two roads to what a critic is to say, as in ``soft_actor_critic``: ``value_target`` from
``add_expected_soft_target``, and then nothing is detached; or made here, with a full stop on what
is read of ``next``. What stands in ``next`` of a terminated step is without influence and without
gradient, NaN included. The value of an action of probability 0 is without influence on an
expectation, whatever it is.
"""

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from ._critics import (
    NEXT_VALUE,
    Distance,
    ensemble_loss,
    finished_target,
    following,
    one_step_target,
)
from ._numbers import disorder
from .distributions import (
    DistClass,
    all_log_probs,
)
from .soft_actor_critic import half_squared_error
from .temperature import temperature_terms

_SHARE = 0.98  # of the greatest entropy, log A


def discrete_sac_actor_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    alpha: float | Tensor | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """Discrete SAC's policy: raise the least critic's expected value, and the entropy.

        loss_actor = sum_a p_a (alpha log p_a - min_i Q_i(s_t, a))

    Detaches nothing; TorchRL's cuts alpha. Make ``action_value`` with the critics' parameters held,
    or differentiate for the policy's alone. Where critics tie, the gradient of the minimum is
    shared equally among them.

    Args:
        td: ``[*B]`` with the policy's parameters and ``action_value`` ``[*B, N, A]`` or ``[*B, A]``
            float; optionally ``mask`` and ``weight``.
        dist_class: callable from the parameters to a categorical distribution.
        alpha: temperature, at least 0; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_actor``, and detached ``entropy``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or alpha is given nowhere or out of its
            range.
        TypeError: an entry or alpha has the wrong dtype.

    Source: Christodoulou (2019), "Soft actor-critic for discrete action settings", equation 12.
    """
    batch = Batch("discrete_sac_actor_loss", td)
    log_probs = all_log_probs(batch, dist_class)
    size = log_probs.shape[-1]
    value = batch.members("action_value", size, source="the policy's actions").amin(-2)
    loss = -_soft_value(log_probs, value, batch.hyper("alpha", alpha, 0.0))
    return batch.reduced(reduction, {"loss_actor": loss}, {"entropy": disorder(log_probs)})


def discrete_sac_critic_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    gamma: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    distance: Distance = half_squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """Discrete SAC's critics: each learns from the least of the target critics, in expectation.

        loss_critic = sum_i distance(Q_i(s_t, a_t), y_t), by default 1/2 (Q_i - y_t)^2
        y_t = r_t + gamma^n (1 - terminated_t) sum_a p'_a (min_i Q'_i(s_{t+1}, a) - alpha log p'_a)

    with p' = pi(.|s_{t+1}). TorchRL's default distance is smooth L1, and it takes log p' for log
    1e-8 where p' is 0; times p' that is the same.

    Detaches nothing where the td holds ``value_target``. Where it does not, y_t is made from
    ``gamma`` and ``alpha`` with a **full stop** on ``("next", "action_value")`` and the policy
    there; gamma and alpha get their gradients. That is exact for one inner step; for several put
    the targets there with ``add_expected_soft_target``.

    Args:
        td: ``[*B]`` with ``action_value`` ``[*B, N, A]`` or ``[*B, A]`` float, ``action`` (index or
            one-hot) and ``value_target`` ``[*B]``, or instead of the latter what
            ``add_expected_soft_target`` reads; optionally ``mask`` and ``weight``.
        dist_class: callable from the parameters to a categorical distribution, for
            ``pi(.|s_{t+1})``.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        alpha: temperature, at least 0; likewise.
        distance: elementwise function of the values ``[*B, N]`` and their targets.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error`` max_i |Q_i - y|, ``pred_value`` (mean over the
        critics) and ``target_value``.

    Raises:
        ValueError: a key is missing, a shape is wrong, ``gamma`` or ``alpha`` stands beside a
            ``value_target``, or the policy is not categorical.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Christodoulou (2019), equation 10.
    """
    batch = Batch("discrete_sac_critic_loss", td)
    value = batch.of_action(batch.members("action_value", "A"), "action_value")
    if finished_target(batch, "add_expected_soft_target", gamma=gamma, alpha=alpha):
        target = batch.step("value_target")
    else:
        log_probs, after = (x.detach() for x in _following(batch, dist_class))
        target = _expected_target(batch, log_probs, after, gamma, alpha)
    return ensemble_loss(batch, distance, value, target, reduction)


def add_expected_soft_target(
    td: TensorDictBase,
    gamma: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    dist_class: DistClass = Categorical,
) -> TensorDictBase:
    """Adds what the critics of discrete SAC are to say.

        value_target_t = r_t + gamma^n (1 - terminated_t)
                         sum_a p'_a (min_i Q'_i(s_{t+1}, a) - alpha log p'_a),
        p' = pi(.|s_{t+1})

    Detaches nothing. Where critics tie, the gradient of the minimum is shared equally among them.

    Args:
        td: ``[*B]`` with, all under ``next``, ``action_value`` ``[*B, N, A]`` or ``[*B, A]``, the
            policy's parameters (``logits``, see ``distribution``), ``reward`` float and
            ``terminated`` bool; optionally ``steps_to_next_obs`` and ``mask``.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        alpha: temperature, at least 0; likewise.
        dist_class: callable from the parameters to a categorical distribution.

    Returns:
        A new td with ``value_target``, ``[*B]``.

    Raises:
        ValueError: a key is missing, a shape is wrong, gamma or alpha is given nowhere or out of
            its range, or the policy is not categorical.
        TypeError: an entry has the wrong dtype.

    Source: Christodoulou (2019), equation 10.
    """
    batch = Batch("add_expected_soft_target", td)
    target = _expected_target(batch, *_following(batch, dist_class), gamma, alpha)
    return batch.added(value_target=target)


def discrete_sac_temperature_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    log_alpha: float | Tensor | None = None,
    target_entropy: float | Tensor | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """Discrete SAC's temperature: it rises while the policy's entropy is below the one wanted.

        loss_alpha = log_alpha (H(pi(.|s_t)) - target_entropy)

    Detaches nothing: differentiate for log_alpha alone, or make the policy's parameters' entry with
    the policy's own held. With alpha in place of its logarithm this is the paper's.

    Args:
        td: ``[*B]`` with the policy's parameters; optionally ``mask`` and ``weight``.
        dist_class: callable from the parameters to a categorical distribution.
        log_alpha: logarithm of the temperature; float or tensor, 0-d or ``[*B]``. An entry of the
            td wins.
        target_entropy: the entropy that is wanted; likewise. 0.98 log A if it is given nowhere.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_alpha``, and detached ``entropy``.

    Raises:
        ValueError: a key is missing, a shape is wrong, log_alpha is given nowhere, or the policy is
            not categorical.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Christodoulou (2019), equation 11.
    """
    batch = Batch("discrete_sac_temperature_loss", td)
    log_probs = all_log_probs(batch, dist_class)
    if target_entropy is None and not batch.has("target_entropy"):
        target_entropy = _SHARE * math.log(log_probs.shape[-1])
    wanted = batch.hyper("target_entropy", target_entropy)
    terms = temperature_terms(batch, -disorder(log_probs), log_alpha, wanted)
    return batch.reduced(reduction, *terms)


# ---- private


def _following(batch: Batch, dist_class: DistClass) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[*B, A]`` and values ``[*B, N, A]`` of the actions that follow."""
    ahead = following(batch)
    log_probs = all_log_probs(ahead, dist_class, ("next",))
    key, size = ("next", "action_value"), log_probs.shape[-1]
    return log_probs, ahead.members(key, size, source="the policy's actions", hint=NEXT_VALUE)


def _soft_value(log_probs: Tensor, value: Tensor, alpha: float | Tensor) -> Tensor:
    """Gives sum_a p_a (value_a - alpha log p_a), ``[*B]``; where p_a is 0, 0."""
    probs = log_probs.exp()
    expected = (probs * torch.where(probs > 0, value, 0.0)).sum(-1)
    return expected + alpha * disorder(log_probs)


def _expected_target(
    batch: Batch,
    log_probs: Tensor,
    value: Tensor,
    gamma: float | Tensor | None,
    alpha: float | Tensor | None,
) -> Tensor:
    soft = _soft_value(log_probs, value.amin(-2), batch.hyper("alpha", alpha, 0.0))
    return one_step_target(batch, soft, gamma)
