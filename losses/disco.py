"""Losses of DiscoRL, whose meta-network writes targets for predictions without given meaning.

The agent has a policy pi(s), a prediction y(s), and for each action a prediction z(s, a), a guess
at the next state's policy p(s, a), and a categorical action value q(s, a). The meta-network writes
logits of what pi, y and z should be; q learns from returns, p from the next state's policy. Where
an output is one for each action, the action that was taken is meant. All are logits:

    key                              shape           meaning
    -------------------------------  --------------  -----------------------------------------------
    logits                           [*B, T, A]      pi
    prediction                       [*B, T, m]      y
    action_prediction                [*B, T, A, m]   z
    auxiliary_logits                 [*B, T, A, A]   p
    action_value_logits              [*B, T, A, K]   q, over a support of K atoms
    policy_target_logits             [*B, T, A]      what pi should be
    prediction_target_logits         [*B, T, m]      what y should be
    action_prediction_target_logits  [*B, T, m]      what z(s_t, a_t) should be
    value_target                     [*B, T]         a number: what q(s_t, a_t) should mean
    next.logits                      [*B, T, A]      pi(s_{t+1}), which p(s_t, a_t) should be
    target.logits                    [*B, T, A]      pi of the target network

The agent descends ``disco_agent_loss``. The meta-network descends, over its agents,

    disco_meta_loss(validation td) + mean over updates of disco_regularizer_loss(training td)

Nothing here is detached. What the authors hold constant comes in as an entry, and is to be made
outside of the differentiated function, or detached where it is made: ``next.logits``,
``target.logits``, ``value_target`` and the validation's ``advantage``.
"""

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from ._check import check_float
from ._numbers import disorder, divergence, log_softmax, times
from .distributions import (
    DistClass,
    action_log_prob,
    entropy,
    make_distribution,
)
from .scaling import TxPair, check_tx, signed_hyperbolic_pair, two_hot

_LARGEST = 300.0  # of the authors' support, in the squashed space


def disco_agent_loss(
    td: TensorDictBase,
    *,
    policy_coeff: float | Tensor = 1.0,
    prediction_coeff: float | Tensor = 1.0,
    action_prediction_coeff: float | Tensor = 1.0,
    auxiliary_coeff: float | Tensor = 1.0,
    critic_coeff: float | Tensor = 0.2,
    support: Tensor | None = None,
    tx: TxPair = signed_hyperbolic_pair,
    reduction: str = "mean",
) -> TensorDictBase:
    """What an agent descends under DiscoRL.

        loss_policy = policy_coeff KL(pi_hat || pi(s_t))
        loss_prediction = prediction_coeff KL(y_hat || y(s_t))
        loss_action_prediction = action_prediction_coeff KL(z_hat || z(s_t, a_t))
        loss_auxiliary = auxiliary_coeff (1 - terminated_t) KL(pi(s_{t+1}) || p(s_t, a_t))
        loss_critic = -critic_coeff sum_k two_hot(tx(q_hat))_k log q(s_t, a_t)_k

    all between softmaxes. Detaches nothing: the targets are functions of whatever they were made
    of. ``loss_critic`` is the part through which the authors pass no meta-gradient; the other four
    are their ``agent_loss``. The authors mask the auxiliary loss wherever an episode ends; their
    environments have no truncations, and here a truncated step counts, as a next state it has.
    The authors' means over a mask have 1e-8 in the denominator, these do not.

    Args:
        td: ``[*B, T]`` with ``action``, ``("next", "terminated")``, ``("next", "logits")`` and what
            else is in this module's table, but for ``("target", "logits")``; optionally ``mask``
            and ``weight``. What stands under ``("next", "logits")`` at a terminated step is without
            influence.
        policy_coeff: float or tensor, 0-d or ``[*B, T]``. An entry of the td wins.
        prediction_coeff: likewise.
        action_prediction_coeff: likewise.
        auxiliary_coeff: likewise.
        critic_coeff: likewise.
        support: the atoms of q after ``tx``, ``[K]`` float, increasing; K even ones from -300 to
            300 if None.
        tx: what squashes the target of q.
        reduction: "mean", "sum" or "none".

    Returns:
        The five losses, and detached, without their weights, ``policy_kl``, ``prediction_kl``,
        ``action_prediction_kl``, ``auxiliary_kl``, ``value_cross_entropy``, and the entropies
        ``entropy``, ``prediction_entropy``, ``action_prediction_entropy``,
        ``policy_target_entropy``.

    Raises:
        ValueError: a key is missing, or a shape is wrong.
        TypeError: an entry or an argument has the wrong dtype or kind.

    Source: Oh et al. (2025), "Discovering state-of-the-art reinforcement learning algorithms",
    methods; the weights and the support are those of Disco103.
    """
    batch = Batch("disco_agent_loss", td)
    log_pi = log_softmax(batch.vector("logits"))
    log_y = log_softmax(batch.vector("prediction"))
    n, m = log_pi.shape[-1], log_y.shape[-1]
    action = batch.index("action", n, "logits")
    log_z, log_p = (
        log_softmax(_row(batch, batch.array(key, n, size, source="logits"), action, "logits"))
        for key, size in (("action_prediction", m), ("auxiliary_logits", n))
    )
    pi_hat = log_softmax(batch.vector("policy_target_logits", n, "logits"))
    y_hat = log_softmax(batch.vector("prediction_target_logits", m, "prediction"))
    z_hat = log_softmax(batch.vector("action_prediction_target_logits", m, "prediction"))
    follows = ~batch.flag(("next", "terminated"))
    after = batch.vector(("next", "logits"), n, "logits")
    after = log_softmax(torch.where(follows.unsqueeze(-1), after, 0.0))
    metrics = {
        "policy_kl": divergence(pi_hat, log_pi),
        "prediction_kl": divergence(y_hat, log_y),
        "action_prediction_kl": divergence(z_hat, log_z),
        "auxiliary_kl": torch.where(follows, divergence(after, log_p), 0.0),
        "value_cross_entropy": _value_error(batch, action, n, support, tx),
    }
    names = ("policy", "prediction", "action_prediction", "auxiliary", "critic")
    coeffs = (
        policy_coeff,
        prediction_coeff,
        action_prediction_coeff,
        auxiliary_coeff,
        critic_coeff,
    )
    losses = {
        f"loss_{name}": batch.hyper(f"{name}_coeff", coeff) * error
        for name, coeff, error in zip(names, coeffs, metrics.values(), strict=True)
    }
    metrics["entropy"] = disorder(log_pi)
    metrics["prediction_entropy"] = disorder(log_y)
    metrics["action_prediction_entropy"] = disorder(log_z)
    metrics["policy_target_entropy"] = disorder(pi_hat)
    return batch.reduced(reduction, losses, metrics)


def disco_meta_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    policy_entropy_coeff: float | Tensor = 1e-2,
    prediction_entropy_coeff: float | Tensor = 1e-3,
    action_prediction_entropy_coeff: float | Tensor = 1e-3,
    reduction: str = "mean",
) -> TensorDictBase:
    """What the meta-network of DiscoRL descends, of the updated agent's validation trajectory.

        loss_objective = -log pi(a_t|s_t) A_t
        loss_policy_entropy = -policy_entropy_coeff H(pi(.|s_t))
        loss_prediction_entropy = -prediction_entropy_coeff H(y(s_t))
        loss_action_prediction_entropy = -action_prediction_entropy_coeff H(z(s_t, a_t))

    Detaches nothing; the authors' advantage is made by a value function of its own, normalized and
    held constant. To this comes ``disco_regularizer_loss`` of what the meta-network wrote. (The
    authors' mean of H(y) takes in the state after the last step too.)

    Args:
        td: ``[*B, T]`` with the policy's parameters (see ``distribution``), ``action``,
            ``advantage``, ``prediction`` ``[*B, T, m]`` and ``action_prediction`` ``[*B, T, A,
            m]``; optionally ``mask`` and ``weight``.
        dist_class: callable from the policy's parameters to a distribution.
        policy_entropy_coeff: float or tensor, 0-d or ``[*B, T]``. An entry of the td wins.
        prediction_entropy_coeff: likewise.
        action_prediction_entropy_coeff: likewise.
        reduction: "mean", "sum" or "none".

    Returns:
        The four losses, and detached ``entropy``, ``prediction_entropy`` and
        ``action_prediction_entropy``.

    Raises:
        ValueError: a key is missing, or a shape is wrong.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Oh et al. (2025), methods; the weights are those of the authors' meta-training notebook.
    """
    batch = Batch("disco_meta_loss", td)
    dist = make_distribution(batch, dist_class)
    table = batch.array("action_prediction", "A", "m")
    z = batch.of_action(table.mT, "action_prediction")
    y = batch.vector("prediction", table.shape[-1], "action_prediction")
    metrics = {
        "entropy": entropy(batch, dist),
        "prediction_entropy": disorder(log_softmax(y)),
        "action_prediction_entropy": disorder(log_softmax(z)),
    }
    names = ("policy_entropy", "prediction_entropy", "action_prediction_entropy")
    coeffs = (policy_entropy_coeff, prediction_entropy_coeff, action_prediction_entropy_coeff)
    losses = {"loss_objective": -action_log_prob(batch, dist) * batch.step("advantage")}
    for name, coeff, metric in zip(names, coeffs, metrics.values(), strict=True):
        losses[f"loss_{name}"] = -batch.hyper(f"{name}_coeff", coeff) * metric
    return batch.reduced(reduction, losses, metrics)


def disco_regularizer_loss(
    td: TensorDictBase,
    *,
    policy_mean_coeff: float | Tensor = 1e-3,
    prediction_mean_coeff: float | Tensor = 1e-3,
    action_prediction_mean_coeff: float | Tensor = 1e-3,
    target_kl_coeff: float | Tensor = 1e-2,
    reduction: str = "mean",
) -> TensorDictBase:
    """What keeps DiscoRL's targets in bounds, of one training trajectory.

        loss_policy_mean = policy_mean_coeff (mean of all pi_hat's logits)^2
        loss_prediction_mean = prediction_mean_coeff (mean of all y_hat's logits)^2
        loss_action_prediction_mean = action_prediction_mean_coeff (mean of all z_hat's logits)^2
        loss_target_kl = target_kl_coeff KL(pi of the target network || pi_hat)

    The means are over the td's steps and the logits, without weights; with reduction "none" each
    step bears the whole square. Detaches nothing.

    Args:
        td: ``[*B, T]`` with ``policy_target_logits`` ``[*B, T, A]``, ``prediction_target_logits``
            and ``action_prediction_target_logits`` ``[*B, T, m]``, and ``("target", "logits")``
            ``[*B, T, A]``, the policy of the target network; optionally ``mask`` and ``weight``.
        policy_mean_coeff: float or tensor, 0-d or ``[*B, T]``. An entry of the td wins.
        prediction_mean_coeff: likewise.
        action_prediction_mean_coeff: likewise.
        target_kl_coeff: likewise.
        reduction: "mean", "sum" or "none".

    Returns:
        The four losses, and detached ``target_kl``.

    Raises:
        ValueError: a key is missing, or a shape is wrong.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Oh et al. (2025), methods; the weights are those of the authors' meta-training notebook.
    """
    batch = Batch("disco_regularizer_loss", td)
    policy = batch.vector("policy_target_logits")
    targets = {
        "policy": (policy, policy_mean_coeff),
        "prediction": (batch.vector("prediction_target_logits"), prediction_mean_coeff),
        "action_prediction": (
            batch.vector("action_prediction_target_logits"),
            action_prediction_mean_coeff,
        ),
    }
    losses = {
        f"loss_{name}_mean": batch.hyper(f"{name}_mean_coeff", coeff)
        * batch.mean(logits.mean(-1)).square().expand(batch.shape)
        for name, (logits, coeff) in targets.items()
    }
    held = batch.vector(("target", "logits"), policy.shape[-1], "policy_target_logits")
    kl = divergence(log_softmax(held), log_softmax(policy))
    losses["loss_target_kl"] = batch.hyper("target_kl_coeff", target_kl_coeff) * kl
    return batch.reduced(reduction, losses, {"target_kl": kl})


def _value_error(
    batch: Batch, action: Tensor, n: int, support: Tensor | None, tx: TxPair
) -> Tensor:
    """Cross-entropy of q(s_t, a_t) and its target, ``[*B]``."""
    log_q = log_softmax(
        _row(batch, batch.array("action_value_logits", n, "K", source="logits"), action, "logits")
    )
    size = log_q.shape[-1]
    check_tx(batch.function, "tx", tx)
    if support is None:
        support = torch.linspace(-_LARGEST, _LARGEST, size, dtype=log_q.dtype, device=log_q.device)
    elif check_float(batch.function, "support", support).shape != (size,):
        raise ValueError(
            f"{batch.function}: support has shape {tuple(support.shape)}, expected [{size}] "
            "(from action_value_logits)"
        )
    probs = two_hot(tx.apply(batch.step("value_target")), support)
    return times(probs, -log_q).sum(-1)


def _row(batch: Batch, table: Tensor, action: Tensor, source: str) -> Tensor:
    """Of a table ``[*B, A, m]`` the rows of the actions taken, ``[*B, m]``."""
    return batch.of_action(table.mT, source, action)
