"""Distributions of returns on fixed atoms: learned probabilities, as in C51.

A distribution has atoms z_1 < ... < z_K (``support``) and probabilities p, given as logits. Its
target, the atoms moved to r + gamma z, is projected back on the support, and learned by
cross-entropy. Keys of a td ``[*B]`` or ``[*B, T]``:

    state_value_logits          [*B, K]     of V(s_t); under next by the target network
    action_value_logits         [*B, A, K]  of Q(s_t, .); likewise
    next.action_value_selector  [*B, A]     what chooses the next action, in double Q-learning
    next.action_mask            [*B, A]     bool, what it is chosen among
    value_target                [*B, K]     probabilities on the support to learn from

Where the td holds the target nothing is detached; else a reducer makes it from ``gamma``, with a
full stop on what stands under ``next``. The next action is the one that the selector values most,
or where there is none, the one of the largest mean; the first of equals. A step's ``td_error``, its
priority in a replay buffer, is its loss before weights.
"""

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._check import check_float, no_data
from ._critics import finished_target, following, greedy, one_step_target, only_source
from ._numbers import log_softmax, times
from .quantile import add_quantile_q_target as add_quantile_q_target
from .quantile import quantile_huber as quantile_huber
from .quantile import quantile_q_loss as quantile_q_loss


def categorical_projection(support_from: Tensor, probs: Tensor, support_to: Tensor) -> Tensor:
    """Moves the mass of atoms to the atoms of another support, keeping the mean inside of it.

    The mass of an atom between two atoms of the new support is shared by the two, in proportion to
    its nearness; mass outside of the new support goes to its nearer end. So the distance of the
    distribution functions in L2 is smallest.

        q_j = sum_i p_i h_j(clip(x_i, z_1, z_M)),

    where h_j is 1 at z_j, 0 at its neighbors and beyond, and linear between.

    Args:
        support_from: atoms x, ``[..., K]`` float, in any order.
        probs: their probabilities p, ``[..., K]`` float.
        support_to: the new atoms z, ``[..., M]`` float, in increasing order.

    Returns:
        Probabilities q ``[..., M]`` of the new atoms, of the same sum, differentiable in all
        arguments. An atom that stands on one of the new support has, as its derivative in its
        position, the one to the right.

    Raises:
        ValueError: the shapes do not match, or ``support_to`` decreases somewhere.
        TypeError: an argument is not floating-point.

    Source: Bellemare, Dabney & Munos (2017), "A distributional perspective on reinforcement
    learning", equation 7.
    """
    name = "categorical_projection"
    for key, x in (("support_from", support_from), ("probs", probs), ("support_to", support_to)):
        if not check_float(name, key, x).dim() or not x.shape[-1]:
            raise ValueError(
                f"{name}: {key} has shape {tuple(x.shape)}, expected [..., K] with K of at least 1"
            )
    if probs.shape[-1] != support_from.shape[-1]:
        raise ValueError(
            f"{name}: probs has shape {tuple(probs.shape)}, expected "
            f"[..., {support_from.shape[-1]}] (from support_from)"
        )
    try:
        torch.broadcast_shapes(support_from.shape, probs.shape, (*support_to.shape[:-1], 1))
    except RuntimeError:
        raise ValueError(
            f"{name}: support_from, probs and support_to have shapes {tuple(support_from.shape)}, "
            f"{tuple(probs.shape)} and {tuple(support_to.shape)}, expected some that broadcast up "
            "to the last axis"
        ) from None
    _check_increasing(name, "support_to", support_to)
    return _project(support_from, probs, support_to)


# ---- estimators


def add_categorical_target(
    td: TensorDictBase, support: Tensor, gamma: float | Tensor | None = None
) -> TensorDictBase:
    """Adds the distribution that a categorical value is to learn.

        m = projection of (r_t + gamma^n (1 - terminated_t) z, p'(s_{t+1})) on z

    with p' of the state's value, or of the chosen action's; of the actions, those that ``("next",
    "action_mask")`` allows are chosen among. Detaches nothing. Its gradient is finite, also where
    an atom gets no mass, where rlax's is NaN.

    Args:
        td: ``[*B]`` with ``("next", "state_value_logits")`` ``[*B, K]`` or ``("next",
            "action_value_logits")`` ``[*B, A, K]``, ``("next", "reward")`` and ``("next",
            "terminated")``; optionally, all ``[*B, A]``, ``("next", "action_value_selector")``
            float and ``("next", "action_mask")`` bool; ``mask`` and ``steps_to_next_obs``, integers
            ``[*B]``, over how many steps the reward was summed.
        support: z, ``[K]`` float, in increasing order.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B]``. An entry of the td wins.

    Returns:
        A new td with ``value_target``, ``[*B, K]``.

    Raises:
        ValueError: a key is missing or one too many, a shape is wrong, or gamma is given nowhere.
        TypeError: an entry has the wrong dtype.

    Source: Bellemare, Dabney & Munos (2017), algorithm 1.
    """
    batch = Batch("add_categorical_target", td)
    source = only_source(batch, "state_value_logits", "action_value_logits")
    probs = _following(batch, source, _size(batch, support), support)
    return batch.added(value_target=_projected(batch, probs, support, gamma))


# ---- reducers


def categorical_td_loss(
    td: TensorDictBase,
    *,
    support: Tensor,
    gamma: float | Tensor | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """Learns the distribution of a state's value on a fixed support.

        loss_critic = -sum_k m_k log p_k(s_t)

    with m from ``value_target``, or made here as by ``add_categorical_target``, with a **full
    stop** on ``("next", "state_value_logits")``: exact where a target network made them, and for
    one inner step where the learning network did.

    rlax's ``categorical_td_learning`` stops reward, discount and support too, where it stops; here
    they get their gradients.

    Args:
        td: ``[*B]`` with ``state_value_logits`` and ``value_target``, both ``[*B, K]``, or instead
            of the last what ``add_categorical_target`` reads for a state's value; optionally
            ``mask`` and ``weight``.
        support: z, ``[K]`` float, in increasing order.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error``, the same per step, ``pred_value`` sum_k p_k z_k
        and ``target_value`` sum_k m_k z_k.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` stands beside a finished
            target.
        TypeError: an entry or an argument has the wrong dtype.

    Source: Bellemare, Dabney & Munos (2017), section 4.
    """
    batch = Batch("categorical_td_loss", td)
    source = "state_value_logits"
    logits = batch.vector(source, _size(batch, support), "support")
    return _regression(batch, logits, source, support, gamma, reduction)


def categorical_q_loss(
    td: TensorDictBase,
    *,
    support: Tensor,
    gamma: float | Tensor | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """Distributional Q-learning on a fixed support (C51), double where a selector is there.

        loss_critic = -sum_k m_k log p_k(s_t, a_t)

    with m from ``value_target``, or made here as by ``add_categorical_target``, with a **full
    stop** on ``("next", "action_value_logits")``: exact where a target network made them, and for
    one inner step where the learning network did.

    rlax's ``categorical_q_learning`` stops reward, discount and support too, where it stops; here
    they get their gradients. TorchRL's DistributionalDQNLoss has log-probabilities
    ``[*B, K, A]``, and always the learning network's choice: for that put its means into ``("next",
    "action_value_selector")``.

    Args:
        td: ``[*B]`` with ``action_value_logits`` ``[*B, A, K]``, ``action`` and ``value_target``
            ``[*B, K]``, or instead of the last what ``add_categorical_target`` reads for an
            action's value; optionally ``mask`` and ``weight``.
        support: z, ``[K]`` float, in increasing order.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error``, the same per step, ``pred_value`` sum_k p_k z_k
        and ``target_value`` sum_k m_k z_k.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` stands beside a finished
            target.
        TypeError: an entry or an argument has the wrong dtype.

    Source: Bellemare, Dabney & Munos (2017), algorithm 1; Hessel et al. (2018), "Rainbow".
    """
    batch = Batch("categorical_q_loss", td)
    source = "action_value_logits"
    every = batch.array(source, "A", _size(batch, support), source="support")
    logits = batch.of_action(every.mT, source)
    return _regression(batch, logits, source, support, gamma, reduction, every.shape[-2])


# ---- private


def _regression(
    batch: Batch,
    logits: Tensor,
    source: str,
    support: Tensor,
    gamma: float | Tensor | None,
    reduction: str,
    actions: int | str = "A",
) -> TensorDictBase:
    """The result of a reducer for the distribution ``logits`` ``[*B, K]``."""
    support = support.to(logits.dtype)
    if finished_target(batch, "add_categorical_target", gamma=gamma):
        target = batch.vector("value_target", support.shape[0], "support")
    else:
        after = _following(batch, source, support.shape[0], support, actions)
        target = _projected(batch, after.detach(), support, gamma)
    log_probs = log_softmax(logits)
    error = times(target, -log_probs).sum(-1)
    metrics = {
        "td_error": error,
        "pred_value": (log_probs.exp() * support).sum(-1),
        "target_value": (target * support).sum(-1),
    }
    return batch.reduced(reduction, {"loss_critic": error}, metrics)


def _following(
    batch: Batch, source: str, size: int, support: Tensor, actions: int | str = "A"
) -> Tensor:
    """The distribution ``[*B, K]`` that ``source`` has under next, of the greedy action if any."""
    ahead, key = following(batch), ("next", source)
    if source == "state_value_logits":
        return ahead.vector(key, size, "support").softmax(-1)
    probs = ahead.array(key, actions, size, source=f"{source} and support").softmax(-1)
    index = greedy(ahead, (probs * support).sum(-1), f"next.{source}")
    return ahead.of_action(probs.mT, source, index)


def _projected(
    batch: Batch, probs: Tensor, support: Tensor, gamma: float | Tensor | None
) -> Tensor:
    """The target distribution ``[*B, K]`` on the support."""
    support = support.to(probs.dtype)
    return _project(one_step_target(batch, support.expand_as(probs), gamma), probs, support)


def _project(support_from: Tensor, probs: Tensor, support_to: Tensor) -> Tensor:
    """``categorical_projection`` without its checks."""
    size = support_to.shape[-1]
    if size == 1:
        return probs.sum(-1, keepdim=True) + torch.zeros_like(support_to)
    lowest, highest = support_to[..., :1], support_to[..., -1:]
    x = torch.where(support_from < lowest, lowest, support_from)
    x = torch.where(x >= highest, highest, x)
    x, probs = torch.broadcast_tensors(x, probs)
    below = _at_most(x.detach(), support_to.detach()) - 1
    below = below.clamp(0, size - 2)  # the last atom at or below x, but not the very last
    every = support_to.expand(*x.shape[:-1], size)
    low, high = every.gather(-1, below), every.gather(-1, below + 1)
    width = high - low
    apart = width > 0
    share = torch.where(apart, (x - low) / torch.where(apart, width, 1.0), 0.0)
    mass = torch.zeros_like(every, dtype=torch.promote_types(share.dtype, probs.dtype))
    return mass.scatter_add(-1, below, probs * (1 - share)).scatter_add(
        -1, below + 1, probs * share
    )


def _at_most(x: Tensor, support: Tensor) -> Tensor:
    """How many atoms are at most x; by bisection where that is one call, as it is much faster."""
    if support.dim() == 1 and not no_data(support):
        return torch.bucketize(x.contiguous(), support.contiguous(), right=True)
    return (x.unsqueeze(-1) >= support.unsqueeze(-2)).sum(-1)


def _size(batch: Batch, support: Tensor) -> int:
    """K, after checks of the support."""
    if check_float(batch.function, "support", support).dim() != 1 or not support.shape[0]:
        batch.wrong_shape("support", support, "[K]", " with K of at least 1")
    _check_increasing(batch.function, "support", support)
    return support.shape[0]


def _check_increasing(function: str, name: str, support: Tensor) -> None:
    if not no_data(support) and bool((support.diff() < 0).any()):
        raise ValueError(f"{function}: {name} decreases somewhere, expected increasing atoms")
