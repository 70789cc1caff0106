"""Imitation: make likely what the data did, or what a teacher would do.

Symbols: pi(a|s) is the policy that learns, a_t the action of the data (``action``), a_hat_t the
prediction of a deterministic policy (``action_actor``), p(a|s) a teacher, and a_s one of S actions
that stand for a teacher (``action_samples`` with ``policy_weight``). Nothing is detached: data and
teachers are entries of the td, as constant or as differentiable as they were made.
"""

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from ._check import batch_first, check_alike, check_float, check_index, gather, kind
from ._critics import Distance, distances
from ._heads import OF_INDICES, asked
from ._numbers import disorder, times
from .densities import categorical_cross_entropy
from .distances import squared_error
from .distributions import (
    DistClass,
    action_log_prob,
    all_log_probs,
    entropy,
    kl,
    make_distribution,
)

_POLICY = ("logits", "probs", "loc", "actor_output", "params")


def sampled_cross_entropy(log_prob: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of a policy against weighted actions.

        -sum_s w_s log pi(a_s),    where 0 log 0 is 0

    It is +inf where an action has w_s > 0 and pi(a_s) = 0; the gradient leaves such an action out.

    Args:
        log_prob: log-probabilities of S actions, ``[..., S]`` float.
        weight: ``[..., S]`` float, at least 0. Carries gradient as ``log_prob`` does.

    Returns:
        ``[...]``.

    Raises:
        ValueError: the shapes differ, or there is no axis of actions.
        TypeError: an argument is not floating-point.

    Source: Abdolmaleki et al. (2018), "Maximum a posteriori policy optimisation", section 4.2.
    """
    name = "sampled_cross_entropy"
    if not check_alike(name, {"log_prob": log_prob, "weight": weight}):
        raise ValueError(f"{name}: log_prob has shape (), expected [..., S], actions last")
    return times(weight, -log_prob).sum(-1)


def bc_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    entropy_coeff: float | Tensor | None = None,
    distance: Distance = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """Behavior cloning: the log-likelihood of the data's action, or its distance from a prediction.

        loss_bc = -log pi(a_t|s_t)                               of a td with a policy's parameters
        loss_bc = mean over components of distance(a_hat_t, a_t) of a td with ``action_actor``
        loss_entropy = -entropy_coeff H(pi(.|s_t))               where ``entropy_coeff`` is given

    The entropy is ``-action_log_prob_actor`` where the td has that entry (one sample's estimate,
    for policies without an entropy in closed form), else the distribution's own.

    Detaches nothing. Padded steps are left out with ``mask``, the negation of TorchRL's pad mask.
    The decision transformer's loss is the second form; the online one's is the first with an
    ``entropy_coeff`` alpha, beside the temperature's own loss alpha (H - target entropy), which is
    ``lagrange_dual(target, alpha, H)``. The actor's warm-up in CQL is the first form with alpha as
    the coefficient. TorchRL's ``BCLoss`` tells the forms apart by the policy's output keys, here it
    is the td's entries; where TorchRL's reduction "none" keeps components apart, here each step is
    their mean.

    Args:
        td: ``[*B]`` with ``action`` and either a policy's parameters (see ``distribution``) or
            ``action_actor``, ``[*B, D]`` float like the action; optionally
            ``action_log_prob_actor`` ``[*B]``, ``mask`` and ``weight``.
        dist_class: callable from the parameters to a distribution.
        entropy_coeff: weight of the entropy; float or tensor, 0-d or ``[*B]``. An entry of the td
            wins. None for no such term. A deterministic policy has none.
        distance: elementwise function of prediction and action.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_bc``; with an ``entropy_coeff`` also ``loss_entropy`` and detached ``entropy``.

    Raises:
        ValueError: a key is missing, a shape is wrong, the td holds both a policy's parameters and
            ``action_actor``, or an ``entropy_coeff`` stands beside ``action_actor``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Pomerleau (1991); Chen et al. (2021), "Decision transformer", section 3; Zheng et al.
    (2022), "Online decision transformer", equation 5.
    """
    batch = Batch("bc_loss", td)
    bonus = entropy_coeff is not None or batch.has("entropy_coeff")
    if batch.has("action_actor"):
        _only_prediction(batch, bonus)
        error = action_distance(batch, distance)
        return batch.reduced(reduction, {"loss_bc": error})
    dist = make_distribution(batch, dist_class)
    losses = {"loss_bc": -action_log_prob(batch, dist)}
    if not bonus:
        return batch.reduced(reduction, losses)
    if batch.has("action_log_prob_actor"):
        spread = -batch.step("action_log_prob_actor")
    else:
        spread = entropy(batch, dist)
    losses["loss_entropy"] = -batch.hyper("entropy_coeff", entropy_coeff) * spread
    return batch.reduced(reduction, losses, {"entropy": spread})


def distillation_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    reduction: str = "mean",
) -> TensorDictBase:
    """Distillation of a teacher into the policy.

        loss_distillation = -sum_a p(a|s_t) log pi(a|s_t)    of a td with a categorical ``teacher``
        loss_distillation = KL(p(.|s_t) || pi(.|s_t))        of a td with another ``teacher``
        loss_distillation = -1/S sum_s w_s log pi(a_s|s_t)   of a td with ``action_samples``

    where 0 log 0 is 0; the first two differ by the teacher's entropy. Detaches nothing: rlax's
    ``sampled_policy_distillation_loss``, the third form, stops at the targets, which here are
    entries, made outside of the differentiated function. Equal weights w with actions drawn
    uniformly push the policy towards uniform.

    Args:
        td: ``[*B]`` with a policy's parameters (see ``distribution``), and either a nested td
            ``teacher`` with the teacher's, read as the policy's are (an ``action_mask`` is the
            policy's, if the teacher has none); or ``action_samples``, ``[*B, S]`` int, one-hot
            ``[*B, S, A]`` or what ``log_prob`` takes, and ``policy_weight`` ``[*B, S]`` float, w;
            optionally ``mask`` and ``weight``.
        dist_class: callable from the parameters to a distribution, the teacher's too.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_distillation``, and with a teacher detached ``kl``, that of the policy from it.

    Raises:
        ValueError: a key is missing, a shape is wrong, or no divergence of two such distributions
            is known.
        TypeError: an entry has the wrong dtype.

    Source: Hinton et al. (2015), section 2; Rusu et al. (2016), "Policy distillation", equation 3.
    """
    batch = Batch("distillation_loss", td)
    dist = make_distribution(batch, dist_class)
    if not batch.has("teacher"):
        weight = batch.vector("policy_weight")
        log_prob = _sampled_log_prob(batch, dist, weight.shape[-1])
        return batch.reduced(
            reduction,
            {"loss_distillation": sampled_cross_entropy(log_prob, weight / weight.shape[-1])},
        )
    if isinstance(dist, OF_INDICES):
        probs, spread = _teacher(batch, dist_class, dist.logits.shape[-1])
        loss = categorical_cross_entropy(probs, dist.logits)
        return batch.reduced(reduction, {"loss_distillation": loss}, {"kl": loss - spread})
    loss = kl(batch, make_distribution(batch, dist_class, ("teacher",)), dist)
    return batch.reduced(reduction, {"loss_distillation": loss}, {"kl": loss})


def action_distance(batch: Batch, distance: Distance) -> Tensor:
    """Distance of ``action_actor`` from ``action``, the mean over components, ``[*B]``."""
    prediction, action = batch.members("action_actor"), batch.members("action")
    if action.shape != prediction.shape:
        batch.wrong_shape(
            "action", batch.entry("action"), batch_first(prediction.shape), " (from action_actor)"
        )
    return distances(batch.function, distance, prediction, action).mean(-1)


def _only_prediction(batch: Batch, bonus: bool) -> None:
    """Raises if a td with a prediction holds a policy's parameters, or is to have an entropy."""
    both = [key for key in _POLICY if batch.has(key)]
    if both:
        raise ValueError(
            f"{batch.function}: the td holds 'action_actor' and {both[0]!r}, and only one may be "
            f"the policy; drop one of the two, e.g. td.exclude({both[0]!r})"
        )
    if bonus:
        raise ValueError(
            f"{batch.function}: entropy_coeff is given, but a td with 'action_actor' has a "
            "deterministic policy, without entropy; drop one of the two"
        )


def _teacher(batch: Batch, dist_class: DistClass, actions: int) -> tuple[Tensor, Tensor]:
    """The teacher's probabilities ``[*B, A]`` and their entropy ``[*B]``."""
    source = "the policy's number of actions"
    teacher = batch.entry("teacher")
    if isinstance(teacher, TensorDictBase) and "probs" in teacher.keys():
        # taken as they are: a distribution makes a tiny number of a probability of 0
        probs = batch.vector(("teacher", "probs"), actions, source, fill=1.0)
        probs = probs / probs.sum(-1, keepdim=True)
        return probs, disorder(probs.clamp(min=torch.finfo(probs.dtype).tiny).log())
    log_probs = all_log_probs(batch, dist_class, ("teacher",))
    if log_probs.shape[-1] != actions:
        wanted = batch_first(batch.shape, str(actions))
        batch.wrong_shape(("teacher", "logits"), log_probs, wanted, f" (from {source})")
    return log_probs.exp(), disorder(log_probs)


def _sampled_log_prob(batch: Batch, dist: Any, samples: int) -> Tensor:
    """Log-probability of ``action_samples``, ``[*B, S]``."""
    name, dims = "action_samples", len(batch.shape)
    value = batch.entry(name, "Or give a nested td 'teacher' with logits or probs.")
    wanted = (*batch.shape, samples)
    if not isinstance(value, Tensor):
        raise TypeError(f"{batch.function}: {name} is {kind(value)}, expected a tensor")
    if isinstance(dist, OF_INDICES):
        mask = None if batch.mask is None else batch.mask.unsqueeze(-1).expand(wanted)
        size = dist.logits.shape[-1]
        index = check_index(
            batch.function, name, value, torch.Size(wanted), size, "the policy", mask
        )
        logits = dist.logits.unsqueeze(-2).expand(*wanted, size)
        return gather(batch.function, name, logits, index, "the policy")
    if value.shape[: dims + 1] != wanted:
        batch.wrong_shape(name, value, batch_first(wanted, "..."), " (from policy_weight)")
    value = batch.filled(value, 0.5 if value.is_floating_point() else 0)
    log_prob = check_float(
        batch.function, "log_prob", asked(batch, dist, value.movedim(dims, 0), name)
    )
    log_prob = log_prob.flatten(dims + 1).sum(-1) if log_prob.dim() > dims + 1 else log_prob
    if log_prob.shape != (samples, *batch.shape):
        batch.wrong_shape("the distribution's log_prob", log_prob, batch_first((samples, *wanted)))
    return log_prob.movedim(0, -1)
