"""Policy gradients over all actions of a step at once, from action values; no action is read.

Symbols: pi(a|s_t) is a categorical policy, Q(s_t, a) the value of each action (``action_value``),
A(s_t, a) = Q(s_t, a) - sum_b pi(b|s_t) Q(s_t, b) its advantage, or regret; [x]_+ is max(x, 0). An
action that the policy forbids (a ``masked_categorical``, a logit of -inf) has no part in any sum,
and what stands in its place, NaN included, is without influence.

Two roads, as everywhere. Put into the td beforehand (``add_action_advantage``), what a loss learns
from is not detached. Else the loss makes it from ``action_value``, with a full stop.
"""

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from ._check import missing
from .distributions import DistClass, all_log_probs

_HINT = (
    "Put it there with add_action_advantage, outside of the differentiated function, or give "
    "action_value."
)


def add_action_advantage(td: TensorDictBase, dist_class: DistClass = Categorical) -> TensorDictBase:
    """Adds the advantage of each action, and the action values that it was made of.

        action_value_target = Q(s_t, .)
        action_advantage_a = Q(s_t, a) - sum_b pi(b|s_t) Q(s_t, b)

    Detaches nothing.

    Args:
        td: ``[*B]`` with the policy's parameters (see ``distribution``) and ``action_value``
            ``[*B, A]`` float; optionally ``mask``.
        dist_class: callable from the parameters to a categorical distribution.

    Returns:
        A new td with ``action_value_target`` and ``action_advantage``, ``[*B, A]``, both 0 at
        forbidden actions.

    Raises:
        ValueError: a key is missing, a shape is wrong, or the policy is not categorical.
        TypeError: an entry has the wrong dtype.

    Source: Srinivasan et al. (2018), section 3.1.
    """
    batch = Batch("add_action_advantage", td)
    log_probs = all_log_probs(batch, dist_class)
    value = _allowed(batch, log_probs, "action_value")
    advantage = _advantage(log_probs, value)
    return batch.added(action_value_target=value, action_advantage=advantage)


def qpg_loss(
    td: TensorDictBase, dist_class: DistClass = Categorical, *, reduction: str = "mean"
) -> TensorDictBase:
    """Q-based policy gradient: each action's probability is raised by its advantage.

        loss_objective = -sum_a pi(a|s_t) A(s_t, a)

    Detaches nothing where the td holds ``action_advantage``. Where it does not, it is made here
    from ``action_value`` and the policy, with a **full stop** on both: exact for one inner step,
    but over several the outer gradient lacks the way on which earlier updates moved them. rlax
    stops what it learns from even with its flag off.

    Args:
        td: ``[*B]`` with the policy's parameters (see ``distribution``), and ``action_advantage``
            or ``action_value``, ``[*B, A]`` float; optionally ``mask`` and ``weight``.
        dist_class: callable from the parameters to a categorical distribution.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_objective``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or the policy is not categorical.
        TypeError: an entry has the wrong dtype.

    Source: Srinivasan et al. (2018), "Actor-critic policy optimization in partially observable
    multiagent environments", section 3.2, QPG.
    """
    batch = Batch("qpg_loss", td)
    log_probs, advantage = _opened(batch, dist_class)
    loss = -(log_probs.exp() * advantage).sum(-1)
    return batch.reduced(reduction, {"loss_objective": loss})


def rm_loss(
    td: TensorDictBase, dist_class: DistClass = Categorical, *, reduction: str = "mean"
) -> TensorDictBase:
    """Regret matching policy gradient: probabilities are raised by positive regrets alone.

        loss_objective = -sum_a pi(a|s_t) [A(s_t, a)]_+

    Stops are those of ``qpg_loss``, and rlax's too; the derivative of [x]_+ at 0 is 0.

    Args:
        td: as for ``qpg_loss``.
        dist_class: callable from the parameters to a categorical distribution.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_objective``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or the policy is not categorical.
        TypeError: an entry has the wrong dtype.

    Source: Srinivasan et al. (2018), section 3.2, RMPG.
    """
    batch = Batch("rm_loss", td)
    log_probs, advantage = _opened(batch, dist_class)
    loss = -(log_probs.exp() * advantage.relu()).sum(-1)
    return batch.reduced(reduction, {"loss_objective": loss})


def rpg_loss(
    td: TensorDictBase, dist_class: DistClass = Categorical, *, reduction: str = "mean"
) -> TensorDictBase:
    """Regret policy gradient: the sum of positive regrets is lowered, through their baseline.

        loss_objective = sum_a [Q(s_t, a) - sum_b pi(b|s_t) Q(s_t, b)]_+

    Detaches nothing where the td holds ``action_value_target``, taken for Q. Where it does not, Q
    is ``action_value`` with a **full stop**; the policy is never stopped. The derivative of [x]_+
    at 0 is 0.

    Args:
        td: ``[*B]`` with the policy's parameters (see ``distribution``), and
            ``action_value_target`` or ``action_value``, ``[*B, A]`` float; optionally ``mask`` and
            ``weight``.
        dist_class: callable from the parameters to a categorical distribution.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_objective``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or the policy is not categorical.
        TypeError: an entry has the wrong dtype.

    Source: Srinivasan et al. (2018), section 3.2, RPG.
    """
    batch = Batch("rpg_loss", td)
    log_probs = all_log_probs(batch, dist_class)
    if batch.has("action_value_target"):
        value = _allowed(batch, log_probs, "action_value_target")
    else:
        value = _stopped_value(batch, log_probs, "action_value_target")
    loss = _advantage(log_probs, value).relu().sum(-1)
    return batch.reduced(reduction, {"loss_objective": loss})


# ---- private


def _opened(batch: Batch, dist_class: DistClass) -> tuple[Tensor, Tensor]:
    """Log-probabilities and advantages, ``[*B, A]``: the td's own, or made with a full stop."""
    log_probs = all_log_probs(batch, dist_class)
    if batch.has("action_advantage"):
        return log_probs, _allowed(batch, log_probs, "action_advantage")
    value = _stopped_value(batch, log_probs, "action_advantage")
    return log_probs, _advantage(log_probs.detach(), value)


def _stopped_value(batch: Batch, log_probs: Tensor, finished: str) -> Tensor:
    if not batch.has("action_value"):
        raise missing(batch.function, batch.td, finished, _HINT)
    return _allowed(batch, log_probs, "action_value").detach()


def _allowed(batch: Batch, log_probs: Tensor, key: str) -> Tensor:
    """A number per action, 0 at those that are forbidden, ``[*B, A]``."""
    value = batch.vector(key, log_probs.shape[-1], "the policy")
    return torch.where(log_probs == -torch.inf, 0.0, value)


def _advantage(log_probs: Tensor, value: Tensor) -> Tensor:
    """Of each action, 0 at those that are forbidden."""
    baseline = (log_probs.exp() * value).sum(-1, keepdim=True)
    return torch.where(log_probs == -torch.inf, 0.0, value - baseline)
