"""Losses of algorithms that learn to learn.

Learned Policy Gradient, in the paper's sign. The agent has a policy pi and a *prediction* y, a
categorical vector of m entries; the meta-network writes their targets: ``pi_hat``, how much more
likely the action taken should become, and ``y_hat``, what y should be. The agent descends
``lpg_agent_loss``. The meta-network descends a policy gradient *after* K such updates, and
regularizers of what it wrote *during* them:

    policy_gradient_loss(validation td) + mean over K of lpg_regularizer_loss(training td)

``lpg_meta_loss`` is that sum over one td, for when both are the same. ``lpg_value_loss`` may be
added: it asks of predictions that they tell of returns. Nothing here is detached; that pi(a_t|s_t)
and y enter the meta-network cut off is the rule's affair.

Meta-gradients of hyper-parameters: an agent learns with a discount that is itself learned, and
``mgrl_outer_loss`` judges the updated agent on its next trajectory, under a discount that is not.
"""

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from ._critics import Distance, distances
from ._numbers import disorder, divergence, log, log_softmax, times
from .disco import disco_agent_loss as disco_agent_loss
from .disco import disco_meta_loss as disco_meta_loss
from .disco import disco_regularizer_loss as disco_regularizer_loss
from .distances import squared_error
from .distributions import (
    DistClass,
    action_log_prob,
    entropy,
    make_distribution,
)
from .estimators import stopped_advantage


def lpg_agent_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    prediction_coeff: float | Tensor = 0.5,
    eps: float | Tensor = 1e-8,
    reduction: str = "mean",
) -> TensorDictBase:
    """What an agent descends under Learned Policy Gradient.

        loss_objective = -log(pi(a_t|s_t) + eps) pi_hat_t
        loss_prediction = prediction_coeff sum_k y_k [log(y_k + eps) - log(y_hat_k + eps)]

    with y = softmax(prediction). An entry of y that is 0 has no part in the sum, whatever y_hat is
    there.

    Detaches nothing. The sign is the paper's: a positive ``pi_hat`` makes the action more likely;
    GROOVE's pi_hat is minus this one.

    Args:
        td: ``[*B, T]`` with the policy's parameters (see ``distribution``), ``action``, ``pi_hat``
            ``[*B, T]``, ``prediction`` ``[*B, T, m]`` (the logits of y) and ``y_hat`` ``[*B, T,
            m]`` (probabilities); optionally ``mask`` and ``weight``.
        dist_class: callable from the parameters to a distribution.
        prediction_coeff: weight of the divergence; float or tensor, 0-d or ``[*B, T]``. An entry of
            the td wins.
        eps: floor under the logarithms, at least 0: 1e-8 in GROOVE, 0 in the paper; likewise. In
            float16 1e-8 is 0.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_objective``, ``loss_prediction``, and detached ``prediction_kl``, the divergence
        without its weight.

    Raises:
        ValueError: a key is missing, or a shape is wrong.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Oh et al. (2020), "Discovering reinforcement learning algorithms", section 4; eps:
    Jackson et al. (2023), "Discovering general reinforcement learning algorithms with adversarial
    environment design".
    """
    batch = Batch("lpg_agent_loss", td)
    eps = batch.hyper("eps", eps, 0.0)
    log_prob = action_log_prob(batch, make_distribution(batch, dist_class))
    if not _is_zero(eps):
        prob = log_prob.exp() + eps
        some = prob > 0  # else eps is a tensor that is 0, or is rounded to it
        log_prob = torch.where(some, torch.where(some, prob, 1.0).log(), log_prob)
    prediction = batch.vector("prediction")
    y_hat = batch.vector("y_hat", prediction.shape[-1], "prediction", fill=1.0)
    kl = _divergence(prediction, y_hat, eps)
    losses = {
        "loss_objective": -log_prob * batch.step("pi_hat"),
        "loss_prediction": batch.hyper("prediction_coeff", prediction_coeff) * kl,
    }
    return batch.reduced(reduction, losses, {"prediction_kl": kl})


def lpg_regularizer_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    policy_entropy_coeff: float | Tensor = 0.05,
    prediction_entropy_coeff: float | Tensor = 0.001,
    pi_hat_coeff: float | Tensor = 0.005,
    y_hat_coeff: float | Tensor = 0.001,
    reduction: str = "mean",
) -> TensorDictBase:
    """What keeps a learned rule in bounds: disorder in what the agents become, small targets.

        loss_policy_entropy = -policy_entropy_coeff H(pi(.|s_t))
        loss_prediction_entropy = -prediction_entropy_coeff H(y_t),    y = softmax(prediction)
        loss_pi_hat = pi_hat_coeff pi_hat_t^2
        loss_y_hat = y_hat_coeff sum_k y_hat_{t,k}^2

    Defaults are GROOVE's; the paper's are 0.01, 0.001, 0.001, 0.001. Detaches nothing.

    Args:
        td: ``[*B, T]``, a training trajectory, as ``lpg_agent_loss`` reads it.
        dist_class: callable from the policy's parameters to a distribution.
        policy_entropy_coeff: beta_0; float or tensor, 0-d or ``[*B, T]``. An entry of the td wins.
        prediction_entropy_coeff: beta_1; likewise.
        pi_hat_coeff: beta_2; likewise.
        y_hat_coeff: beta_3; likewise.
        reduction: "mean", "sum" or "none".

    Returns:
        The four losses, and detached ``entropy``, ``prediction_entropy``, ``pi_hat_square``,
        ``y_hat_square``.

    Raises:
        ValueError: a key is missing, or a shape is wrong.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Oh et al. (2020), section 4; Jackson et al. (2023) for the defaults.
    """
    batch = Batch("lpg_regularizer_loss", td)
    coeffs = (policy_entropy_coeff, prediction_entropy_coeff, pi_hat_coeff, y_hat_coeff)
    policy_entropy = entropy(batch, make_distribution(batch, dist_class))
    return batch.reduced(reduction, *_regularizers(batch, policy_entropy, coeffs))


def lpg_meta_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    policy_entropy_coeff: float | Tensor = 0.05,
    prediction_entropy_coeff: float | Tensor = 0.001,
    pi_hat_coeff: float | Tensor = 0.005,
    y_hat_coeff: float | Tensor = 0.001,
    reduction: str = "mean",
) -> TensorDictBase:
    """What the meta-network of Learned Policy Gradient descends, over one td.

        loss_objective = -log pi(a_t|s_t) A_t

    and the four losses of ``lpg_regularizer_loss``. Where the policy gradient is taken on another
    trajectory than the regularizers, as in meta-training, add ``policy_gradient_loss`` of the one
    to ``lpg_regularizer_loss`` of the others: over one and the same td the sum is this. Defaults
    are GROOVE's; the paper's are 0.01, 0.001, 0.001, 0.001. Detaches nothing; the advantage is used
    as it is given.

    Args:
        td: ``[*B, T]`` with the policy's parameters (see ``distribution``), ``action``,
            ``advantage``, ``pi_hat`` ``[*B, T]``, ``prediction`` ``[*B, T, m]`` (the logits of y)
            and ``y_hat`` ``[*B, T, m]`` (probabilities); optionally ``mask`` and ``weight``.
        dist_class: callable from the policy's parameters to a distribution.
        policy_entropy_coeff: beta_0; float or tensor, 0-d or ``[*B, T]``. An entry of the td wins.
        prediction_entropy_coeff: beta_1; likewise.
        pi_hat_coeff: beta_2; likewise.
        y_hat_coeff: beta_3; likewise.
        reduction: "mean", "sum" or "none".

    Returns:
        The five losses, and detached ``entropy``, ``prediction_entropy``, ``pi_hat_square``,
        ``y_hat_square``.

    Raises:
        ValueError: a key is missing, or a shape is wrong.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Oh et al. (2020), section 4; Jackson et al. (2023) for the defaults.
    """
    batch = Batch("lpg_meta_loss", td)
    coeffs = (policy_entropy_coeff, prediction_entropy_coeff, pi_hat_coeff, y_hat_coeff)
    dist = make_distribution(batch, dist_class)
    losses, metrics = _regularizers(batch, entropy(batch, dist), coeffs)
    objective = -action_log_prob(batch, dist) * batch.step("advantage")
    return batch.reduced(reduction, {"loss_objective": objective, **losses}, metrics)


def lpg_value_loss(
    td: TensorDictBase,
    *,
    value_coeff: float | Tensor = 0.05,
    eps: float | Tensor = 1e-8,
    reduction: str = "mean",
) -> TensorDictBase:
    """How far predictions are from telling returns, which teaches a learned rule to predict them.

        loss_value = value_coeff (z_t - x_t)^2 / (mean x^2 + mean z^2 + eps)

        x = e(y) - mean e(y),    z = G - mean G

    with e(y) the meta-network's embedding of y and G the returns. Its mean is value_coeff (1 - c),
    where c = 2 mean(x z) / (mean x^2 + mean z^2) is a coefficient of concordance: 1 where e(y) is
    the return but for an offset, 0 where it tells nothing. So the embedding comes in units of
    reward, and weighs as much as rewards do among the meta-network's inputs; a correlation could be
    perfect and too small to be heard. A trajectory without reward has a loss of no more than any
    other. The gradient goes through e and through y to the updates that made y, and so to the
    meta-network that wrote ``y_hat``. Nothing says *how* y is to encode a return. Detaches nothing.

    Args:
        td: ``[*B, T]`` with ``prediction_embedding`` and ``value_target``, one float per step each;
            optionally ``mask``, whose steps alone have a part in the means, and ``weight``.
        value_coeff: float or tensor, 0-d or ``[*B, T]``. An entry of the td wins.
        eps: added to the variances, at least 0; likewise.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_value``, and detached ``value_explained``, the square of their correlation; without
        it where the reduction is "none".

    Raises:
        ValueError: a key is missing, or a shape is wrong.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: ours; that predictions come to stand for returns is what Oh et al. (2020) found, section
    5.3, after many more lives. Lin (1989), "A concordance correlation coefficient to evaluate
    reproducibility", whose coefficient counts an offset too.
    """
    batch = Batch("lpg_value_loss", td)
    eps = batch.hyper("eps", eps, 0.0)
    x, z = (_centred(batch, batch.step(key)) for key in ("prediction_embedding", "value_target"))
    xx, xz, zz = (batch.mean(product) for product in (x * x, x * z, z * z))
    error = (z - x).square() / (xx + zz + eps)
    explained = xz.square() / ((xx + eps) * (zz + eps))
    losses = {"loss_value": batch.hyper("value_coeff", value_coeff) * error}
    return batch.reduced(reduction, losses, summary={"value_explained": explained.mean()})


def mgrl_outer_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    reference_gamma: float | Tensor | None = None,
    reference_lmbda: float | Tensor | None = None,
    critic_coeff: float | Tensor = 0.0,
    entropy_coeff: float | Tensor = 0.0,
    distance: Distance = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """What meta-gradient reinforcement learning descends: actor-critic at reference discounts.

        loss_objective = -log pi'(a_t|s_t) A_t
        loss_critic = critic_coeff distance(V'(s_t), G_t), by default (V'(s_t) - G_t)^2, without 1/2
        loss_entropy = -entropy_coeff H(pi'(.|s_t))

    with the policy pi' and the value V' after the update that is judged, and A_t and G_t made at
    the *reference* discounts, with a **full stop** on ``state_value`` and ``("next",
    "state_value")`` as far as they enter: the gradient is the paper's, (G_t - V') d log pi' + ...,
    and reaches the learned discounts through the updated parameters alone. It is right for a loss
    that, as this one, is differentiated once from outside of all updates. The td's entries
    ``gamma`` and ``lmbda``, those that the agent learns with, are not read.

    Where the td holds ``advantage`` or ``value_target``, these are taken, and nothing is detached:
    make them with ``add_advantage`` at the reference discounts.

    Args:
        td: validation trajectory ``[*B, T]``, time last or named "time", with the policy's
            parameters (see ``distribution``), ``action``, ``state_value``, and either ``advantage``
            and ``value_target`` or what ``add_advantage`` reads; optionally ``mask`` and
            ``weight``.
        dist_class: callable from the parameters to a distribution.
        reference_gamma: discount, in [0, 1], 0.995 if None; float or tensor, 0-d or ``[*B, T]``. An
            entry of the td of this name wins.
        reference_lmbda: decay of the trace, in [0, 1], 1 if None; likewise.
        critic_coeff: weight of the critic, 0 for a policy gradient alone; float or tensor, 0-d or
            ``[*B, T]``. An entry of the td wins.
        entropy_coeff: weight of the entropy; likewise.
        distance: elementwise function of the value and its target.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_objective``, ``loss_critic``, ``loss_entropy``, and detached ``entropy``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or a reference discount stands beside an
            ``advantage``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Xu, van Hasselt & Silver (2018), "Meta-gradient reinforcement learning", section 1.
    """
    batch = Batch("mgrl_outer_loss", td)
    value = batch.step("state_value")
    given = {"reference_gamma": reference_gamma, "reference_lmbda": reference_lmbda}
    if batch.finished(("advantage", "value_target"), **given):
        advantage, target = batch.step("advantage"), batch.step("value_target")
    else:
        defaults = {"reference_gamma": 0.995, "reference_lmbda": 1.0}
        discounts = [
            batch.hyper(name, defaults[name] if x is None else x, 0.0, 1.0)
            for name, x in given.items()
        ]
        learned_with = [key for key in ("gamma", "lmbda") if batch.has(key)]
        plain = Batch(batch.function, td.exclude(*learned_with)) if learned_with else batch
        advantage, target = stopped_advantage(plain, *discounts)
    dist = make_distribution(batch, dist_class)
    error = distances(batch.function, distance, value, target)
    policy_entropy = entropy(batch, dist)
    losses = {
        "loss_objective": -action_log_prob(batch, dist) * advantage,
        "loss_critic": batch.hyper("critic_coeff", critic_coeff) * error,
        "loss_entropy": -batch.hyper("entropy_coeff", entropy_coeff) * policy_entropy,
    }
    return batch.reduced(reduction, losses, {"entropy": policy_entropy})


def _regularizers(
    batch: Batch, policy_entropy: Tensor, coeffs: tuple[float | Tensor, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    log_y = log_softmax(batch.vector("prediction"))
    metrics = {
        "entropy": policy_entropy,
        "prediction_entropy": disorder(log_y),
        "pi_hat_square": batch.step("pi_hat").square(),
        "y_hat_square": batch.vector("y_hat", log_y.shape[-1], "prediction").square().sum(-1),
    }
    names = ("policy_entropy", "prediction_entropy", "pi_hat", "y_hat")
    signs = (-1, -1, 1, 1)
    losses = {
        f"loss_{name}": sign * batch.hyper(f"{name}_coeff", coeff) * metric
        for name, sign, coeff, metric in zip(names, signs, coeffs, metrics.values(), strict=True)
    }
    return losses, metrics


def _centred(batch: Batch, x: Tensor) -> Tensor:
    return batch.filled(x - batch.mean(x), 0.0)


def _divergence(prediction: Tensor, y_hat: Tensor, eps: float | Tensor) -> Tensor:
    """KL(y || y_hat) with eps inside both logarithms, ``[*B]``."""
    log_y = log_softmax(prediction)
    y = log_y.exp()
    some = y > 0
    y_hat = torch.where(some, y_hat, 1.0)
    if _is_zero(eps):
        return divergence(log_y, log(y_hat))
    floor = eps.unsqueeze(-1) if isinstance(eps, Tensor) and eps.dim() else eps  # [*B, 1]
    return times(y, (torch.where(some, y, 1.0) + floor).log() - log(y_hat + floor)).sum(-1)


def _is_zero(eps: float | Tensor) -> bool:
    """Whether eps is the number 0, so that no floor is needed; a tensor is not looked at."""
    return not isinstance(eps, Tensor) and eps == 0
