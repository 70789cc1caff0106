"""Proximal policy optimization: several updates on one batch, kept near the policy that drew it.

Symbols: mu is the policy that drew the actions, ``action_log_prob`` its log mu(a_t|s_t); pi is the
policy that learns; r_t = pi(a_t|s_t) / mu(a_t|s_t) is the ratio, l_t its logarithm; A_t is the
advantage, G_t the value's target, V the value, H the entropy. The reducers read a td ``[*B, T]``
that holds the outputs of networks, and differ in what keeps pi near mu:

    ppo_loss                nothing
    ppo_clip_loss           no gain from a ratio beyond 1 - eps to 1 + eps
    ppo_kl_penalty_loss     a price on KL(mu || pi), whose coefficient kl_coeff_update adapts
    discovered_policy_loss  a drift that a meta-learner found

All have the same two terms beside, ``loss_critic`` and ``loss_entropy``, and the same diagnostics.
Ratios are formed from logarithms, and one that a clip cuts off is never raised to its power: it
may be beyond the range of floats.

Several agents are one more batch dimension: a td ``[*B, agents, T]`` with a policy output, an
advantage and a value per agent is IPPO, and with one value for all, expanded, MAPPO.
"""

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from ._check import check_float, check_hyper, check_positive
from ._critics import Distance
from ._proximal import clip_range, clipped, discovered_gain, kl_from_behavior, opened
from .distances import squared_error
from .distributions import DistClass


def ppo_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    critic_coeff: float | Tensor | None = 0.5,
    entropy_coeff: float | Tensor = 0.01,
    value_clip: float | Tensor | None = None,
    distance: Distance = squared_error,
    normalize_advantage: bool = False,
    reduction: str = "mean",
) -> TensorDictBase:
    """Policy gradient with importance weights: the surrogate of PPO before any clipping.

        loss_objective = -r_t A_t,    r_t = pi(a_t|s_t) / mu(a_t|s_t)
        loss_critic = critic_coeff distance(V(s_t), G_t), by default (V(s_t) - G_t)^2, without 1/2
        loss_entropy = -entropy_coeff H(pi(.|s_t))

    With ``value_clip`` c the critic's error is the larger of that and the same with V(s_t) held
    within c of the value from before, ``("behavior", "state_value")``.

    Detaches nothing where the td holds ``advantage`` and ``value_target``. Where it holds neither,
    they are made here from ``gamma`` and ``lmbda``, with a **full stop** on the values that enter
    them, as in ``a2c_loss``: exact for one inner step.

    Unlike TorchRL's PPOLoss: the error is squared, not smooth-L1, and weighs 1/2, not 1 (give
    ``distance`` and ``critic_coeff``). Normalized advantages are divided by the population
    deviation + 1e-8, as in purejaxrl; TorchRL takes the sample deviation, at least 1e-6.
    ``explained_variance`` and ``ESS`` are taken over all steps, not for each step of time over the
    first dimension. The value from before has a key of its own, where TorchRL takes the td's
    ``state_value`` for it.

    Args:
        td: ``[*B, T]`` with the policy's parameters (see ``distribution``), ``action``,
            ``action_log_prob``, ``state_value``, ``advantage`` and ``value_target``, or instead of
            the last two what ``add_advantage`` reads; optionally ``mask`` and ``weight``.
        dist_class: callable from the parameters to a distribution.
        gamma: discount, in [0, 1], only for a td without ``advantage``; float or tensor, 0-d or
            ``[*B, T]``. An entry of the td wins, as for all of these.
        lmbda: decay of the trace, in [0, 1]; likewise.
        critic_coeff: weight of the critic's loss; float or tensor, 0-d or ``[*B, T]``. With None
            there is none, and ``state_value`` and ``value_target`` are not read.
        entropy_coeff: weight of the entropy; likewise. With the number 0 a distribution without an
            entropy will do.
        value_clip: how far V may move from its value before, at least 0; likewise. None: any way.
        distance: elementwise function of the value and its target.
        normalize_advantage: whether the advantages are brought to mean 0 and deviation 1 over the
            td.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_objective``, ``loss_critic``, ``loss_entropy``, and detached ``entropy``,
        ``kl_approx`` (mean of -l_t), ``mean_ratio``, ``max_ratio``, ``ESS`` (the effective sample
        size (sum r)^2 / sum r^2 over the number of steps, at most 1), ``explained_variance`` (1 -
        Var(G - V) / Var(G)) and, with ``value_clip``, ``value_clip_fraction``. With reduction
        "none" those that belong to no step (from ``mean_ratio`` to ``explained_variance``) are left
        out.

    Raises:
        ValueError: a key is missing, a shape is wrong, a float is out of its range, or ``gamma`` or
            ``lmbda`` stands beside an ``advantage``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Schulman et al. (2017), "Proximal policy optimization algorithms", equation 6.
    """
    step = opened("ppo_loss", td, dist_class, gamma, lmbda, normalize_advantage)
    losses, metrics = {"loss_objective": -step.advantage * step.log_ratio.exp()}, {}
    critic = (critic_coeff, value_clip, distance)
    return step.reduced(reduction, losses, metrics, entropy_coeff, *critic)


def ppo_clip_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    eps: float | Tensor = 0.2,
    eps_low: float | Tensor | None = None,
    eps_high: float | Tensor | None = None,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    critic_coeff: float | Tensor | None = 0.5,
    entropy_coeff: float | Tensor = 0.01,
    value_clip: float | Tensor | None = None,
    distance: Distance = squared_error,
    normalize_advantage: bool = False,
    reduction: str = "mean",
) -> TensorDictBase:
    """PPO with a clipped ratio: no gain from moving it further from 1 than eps.

        loss_objective = -min(r_t A_t, clip(r_t, 1 - eps_low, 1 + eps_high) A_t)

    The other terms are those of ``ppo_loss``, and so are stops, diagnostics and differences from
    TorchRL. A step that is cut off gives its bound the gradient, and the policy none.

    Args:
        td: as in ``ppo_loss``.
        dist_class: callable from the parameters to a distribution.
        eps: how far the ratio counts, at least 0, on each side that has no number of its own; float
            or tensor, 0-d or ``[*B, T]``. An entry of the td wins, as for all of these.
        eps_low: the same below 1 alone. From 1 on nothing is cut off there.
        eps_high: the same above 1 alone.
        gamma: as in ``ppo_loss``, and so are all that follow.
        lmbda: likewise.
        critic_coeff: likewise.
        entropy_coeff: likewise.
        value_clip: likewise.
        distance: likewise.
        normalize_advantage: likewise.
        reduction: likewise.

    Returns:
        As ``ppo_loss``, and ``clip_fraction``: how many ratios lie beyond the bounds, whichever way
        the advantage points.

    Raises:
        ValueError: as ``ppo_loss``; or ``eps`` is given beside both of its sides.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Schulman et al. (2017), equation 7; two sides: Yu et al. (2025), "DAPO", section 3.1.
    """
    step = opened("ppo_clip_loss", td, dist_class, gamma, lmbda, normalize_advantage)
    bounds = clip_range(step.batch, eps, eps_low, eps_high)
    log_ratio, outside = clipped(step.log_ratio, step.advantage, *bounds)
    losses = {"loss_objective": -step.advantage * log_ratio.exp()}
    metrics = {"clip_fraction": outside.to(log_ratio.dtype)}
    critic = (critic_coeff, value_clip, distance)
    return step.reduced(reduction, losses, metrics, entropy_coeff, *critic)


def ppo_kl_penalty_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    kl_coeff: float | Tensor = 1.0,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    critic_coeff: float | Tensor | None = 0.5,
    entropy_coeff: float | Tensor = 0.01,
    value_clip: float | Tensor | None = None,
    distance: Distance = squared_error,
    normalize_advantage: bool = False,
    reduction: str = "mean",
) -> TensorDictBase:
    """PPO with a price on the divergence from the policy that drew the actions.

        loss_objective = -r_t A_t
        loss_kl = kl_coeff KL(mu(.|s_t) || pi(.|s_t))

    The other terms are those of ``ppo_loss``, and so are stops, diagnostics and differences from
    TorchRL. Its KLPENPPOLoss has the two terms in one. It also changes its coefficient as it is
    called, after the value is made and before the gradient is, which is then that of the next
    coefficient; here value and gradient have the one given, and ``kl_coeff_update`` makes the next.

    Args:
        td: as in ``ppo_loss``, and a nested td ``behavior`` with the parameters of mu under the
            names that those of pi have, e.g. ``("behavior", "logits")``.
        dist_class: callable from the parameters to a distribution, of a kind that ``kl_divergence``
            knows.
        kl_coeff: weight of the divergence; float or tensor, 0-d or ``[*B, T]``. An entry of the td
            wins.
        gamma: as in ``ppo_loss``, and so are all that follow.
        lmbda: likewise.
        critic_coeff: likewise.
        entropy_coeff: likewise.
        value_clip: likewise.
        distance: likewise.
        normalize_advantage: likewise.
        reduction: likewise.

    Returns:
        As ``ppo_loss``, and ``loss_kl`` and the detached divergence ``kl``.

    Raises:
        ValueError: as ``ppo_loss``; or the divergence is not known.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Schulman et al. (2017), equation 8.
    """
    step = opened("ppo_kl_penalty_loss", td, dist_class, gamma, lmbda, normalize_advantage)
    divergence = kl_from_behavior(step, dist_class)
    losses = {
        "loss_objective": -step.advantage * step.log_ratio.exp(),
        "loss_kl": step.batch.hyper("kl_coeff", kl_coeff) * divergence,
    }
    metrics = {"kl": divergence}
    critic = (critic_coeff, value_clip, distance)
    return step.reduced(reduction, losses, metrics, entropy_coeff, *critic)


def kl_coeff_update(
    kl_coeff: float | Tensor,
    kl: Tensor,
    target: float | Tensor = 0.01,
    *,
    increment: float | Tensor = 2.0,
    decrement: float | Tensor = 0.5,
    tolerance: float | Tensor = 1.5,
) -> Tensor:
    """The next coefficient of the divergence: more after too much of it, less after too little.

        kl_coeff increment   if kl > target tolerance
        kl_coeff decrement   if kl < target / tolerance
        kl_coeff             else

    Args:
        kl_coeff: the coefficient until now; float, or tensor that broadcasts to ``kl``'s shape.
        kl: mean divergence ``[...]`` float, what ``ppo_kl_penalty_loss`` gives as ``kl``.
        target: what it should be, at least 0; likewise.
        increment: factor after too much, at least 1; likewise.
        decrement: factor after too little, in [0, 1]; likewise.
        tolerance: how many times more or less is too much or too little, at least 1; likewise.

    Returns:
        ``[...]``, differentiable in ``kl_coeff``, ``increment`` and ``decrement``; in the others it
        is constant between its jumps.

    Raises:
        ValueError: a float is out of its range, or a shape does not broadcast.
        TypeError: an argument is not a number or a floating-point tensor.

    Source: Schulman et al. (2017), section 4.
    """
    name = "kl_coeff_update"
    shape = check_float(name, "kl", kl).shape
    ranges = {
        "kl_coeff": (kl_coeff, -math.inf, math.inf),
        "target": (target, 0.0, math.inf),
        "increment": (increment, 1.0, math.inf),
        "decrement": (decrement, 0.0, 1.0),
        "tolerance": (tolerance, 1.0, math.inf),
    }
    for key, (value, low, high) in ranges.items():
        check_hyper(name, key, value, shape, "kl", low, high)
    if not isinstance(kl_coeff, Tensor):
        kl_coeff = torch.full_like(kl, kl_coeff)
    smaller = torch.where(kl < target / tolerance, kl_coeff * decrement, kl_coeff)
    return torch.where(kl > target * tolerance, kl_coeff * increment, smaller)


def discovered_policy_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    alpha: float | Tensor = 2.0,
    beta: float | Tensor = 0.6,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    critic_coeff: float | Tensor | None = 0.5,
    entropy_coeff: float | Tensor = 0.01,
    value_clip: float | Tensor | None = None,
    distance: Distance = squared_error,
    normalize_advantage: bool = False,
    reduction: str = "mean",
) -> TensorDictBase:
    """Discovered policy optimization: a smooth drift, found by meta-learning, for PPO's clip.

        loss_objective = -(r_t A_t - drift_t)
        drift_t = relu((r_t - 1) A_t - alpha tanh((r_t - 1) A_t / alpha)) if A_t >= 0, else
                  relu(l_t A_t - beta tanh(l_t A_t / beta))

    The other terms are those of ``ppo_loss``, and so are stops and diagnostics. The paper and
    purejaxrl normalize the advantages; here that is ``normalize_advantage``.

    Args:
        td: as in ``ppo_loss``.
        dist_class: callable from the parameters to a distribution.
        alpha: width of the free zone where the advantage is positive, above 0; float or tensor, 0-d
            or ``[*B, T]``. An entry of the td wins.
        beta: the same where it is negative.
        gamma: as in ``ppo_loss``, and so are all that follow.
        lmbda: likewise.
        critic_coeff: likewise.
        entropy_coeff: likewise.
        value_clip: likewise.
        distance: likewise.
        normalize_advantage: likewise.
        reduction: likewise.

    Returns:
        As ``ppo_loss``.

    Raises:
        ValueError: as ``ppo_loss``.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Lu et al. (2022), "Discovered policy optimisation", section 5.
    """
    step = opened("discovered_policy_loss", td, dist_class, gamma, lmbda, normalize_advantage)
    widths = _width(step.batch, "alpha", alpha), _width(step.batch, "beta", beta)
    gain = discovered_gain(step.log_ratio, step.advantage, *widths)
    losses, metrics = {"loss_objective": -gain}, {}
    critic = (critic_coeff, value_clip, distance)
    return step.reduced(reduction, losses, metrics, entropy_coeff, *critic)


def _width(batch: Batch, name: str, value: float | Tensor) -> float | Tensor:
    """A hyper-parameter that is divided by; a step that is left out divides by 1."""
    if not batch.has(name):
        check_positive(batch.function, name, value)
    value = batch.hyper(name, value)
    return batch.filled(value, 1.0) if isinstance(value, Tensor) and value.dim() else value
