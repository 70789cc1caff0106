"""Distributions of actions as objects, and what is computed from two of them.

A ``dist_class`` is a function from parameters to an object with ``log_prob(action)`` and
``entropy()``; here are those that torch.distributions lacks or cannot do under every transform. All
of their numbers are per step, ``[*B]``, differentiable any number of times, and no random number is
drawn: noise is an argument.

Symbols: p is a vector of A probabilities, z ~ Normal(loc, scale) a vector of D components that are
independent. 0 log 0 is 0, and where a probability is 0 every gradient is finite.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Normal,
    OneHotCategorical,
)
from torch.distributions import kl_divergence as torch_kl

from ._check import (
    batch_first,
    check_alike,
    check_broadcast,
    check_flag,
    check_float,
    check_hyper,
    check_index,
    gather,
    no_data,
)
from ._numbers import disorder, divergence, log_softmax, times

# ---- distributions


def independent_normal(loc: Tensor, scale: Tensor) -> Independent:
    """Normal distribution of a vector of independent components, as a ``dist_class``.

    Args:
        loc: mean, ``[*B, D]`` float.
        scale: standard deviation, ``[*B, D]`` float, positive.

    Returns:
        The distribution, of batch shape ``[*B]`` and event shape ``[D]``.

    Raises:
        ValueError: the scale does not broadcast to the shape of the mean, or is not positive (which
            is looked at where data may be: not under a transform, nor in a compiler).
        TypeError: an argument is not floating-point.
    """
    _check_normal("independent_normal", loc, scale)
    return Independent(_Normal(loc, scale, validate_args=False), 1, validate_args=False)


def tanh_normal(
    loc: Tensor, scale: Tensor, low: float | Tensor = -1.0, high: float | Tensor = 1.0
) -> "TanhNormal":
    """Distribution of a vector of bounded components, as a ``dist_class``.

        action = (high + low) / 2 + (high - low) / 2 tanh(z),    z ~ Normal(loc, scale)

    TorchRL's ``TanhNormal`` with the same numbers, but: the entropy is the distribution's own, not
    an estimate from samples; an action on a bound, or nearer to it than the dtype's resolution, is
    taken for one at that distance from it, and gets no gradient; ``upscale`` and ``tanh_loc`` are
    left to the network, which makes the mean.

    Args:
        loc: mean of z, ``[*B, D]`` float.
        scale: standard deviation of z, ``[*B, D]`` float, positive.
        low: the least action; float, or tensor that broadcasts to ``[*B, D]``.
        high: the greatest action, likewise.

    Returns:
        The distribution, of batch shape ``[*B]`` and event shape ``[D]``.

    Raises:
        ValueError: a shape does not broadcast to that of the mean, the scale is not positive (as
            in ``independent_normal``), or ``low`` is not below ``high``.
        TypeError: an argument is not floating-point.

    Source: Haarnoja et al. (2018), "Soft actor-critic", appendix C.
    """
    name = "tanh_normal"
    shape = _check_normal(name, loc, scale)
    for key, value in (("low", low), ("high", high)):
        check_hyper(name, key, value, shape, "loc")
    if not isinstance(low, Tensor) and not isinstance(high, Tensor) and not low < high:
        raise ValueError(f"{name}: low is {low}, expected a number below high, which is {high}")
    return TanhNormal(loc, scale, low, high)


def masked_categorical(logits: Tensor, action_mask: Tensor) -> "LeanCategorical":
    """Categorical distribution over the actions that a mask allows, as a ``dist_class``.

        p_k = m_k exp(logits_k) / sum_j m_j exp(logits_j)

    A forbidden action has probability 0 and log-probability -inf, and its logit, -inf and NaN
    included, is without influence and without gradient. At a step that allows no action all
    probabilities are 0: each log-probability is -inf, the entropy is 0, and no gradient flows.
    Unlike TorchRL's MaskedCategorical the entropy's gradient is finite however it is weighted.

    Args:
        logits: ``[*B, A]`` float.
        action_mask: ``[*B, A]`` bool, True where an action is allowed. A reducer takes it from the
            td's entry ``action_mask``.

    Returns:
        The distribution, of batch shape ``[*B]``; its actions are indices or one-hot.

    Raises:
        ValueError: the shapes differ.
        TypeError: the logits are not floating-point, or the mask is not bool.

    Source: Huang & Ontanon (2022), "A closer look at invalid action masking", section 3.
    """
    name = "masked_categorical"
    shape = check_float(name, "logits", logits).shape
    if not shape or not shape[-1]:
        raise ValueError(f"{name}: logits has shape {tuple(shape)}, expected [*B, A]")
    if check_flag(name, "action_mask", action_mask).shape != shape:
        raise ValueError(
            f"{name}: action_mask has shape {tuple(action_mask.shape)}, expected "
            f"{batch_first(shape)} (from logits)"
        )
    some = action_mask.any(-1, keepdim=True)
    forbidden = torch.zeros_like(logits).masked_fill(some, -torch.inf)  # finite if there is none
    log_probs = log_softmax(torch.where(action_mask, logits, forbidden))
    return LeanCategorical(log_probs.masked_fill(~action_mask, -torch.inf))


class LeanCategorical(Categorical):
    """torch's Categorical over log-probabilities that are normalized already."""

    def __init__(self, log_probs: Tensor, source: str = "logits") -> None:
        """Takes log-probabilities ``[*B, A]``, and the key that they came from, for errors."""
        vars(self).update(logits=log_probs, _param=log_probs)  # torch's class makes them lazily
        self._num_events = log_probs.shape[-1]
        self.source = source
        Distribution.__init__(self, log_probs.shape[:-1], validate_args=False)

    def log_prob(self, action: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Log-probability ``[*B]`` of an action, an index or one-hot."""
        return self.gathered("log_prob", "action", action)

    def entropy(self) -> Tensor:
        """Entropy ``[*B]``."""
        return disorder(self.logits)

    def gathered(self, function: str, name: str, action: Any, mask: Tensor | None = None) -> Tensor:
        """``log_prob`` on behalf of a function, whose name and word for it its errors bear."""
        batch, size = self._batch_shape, self._num_events
        index = check_index(function, name, action, batch, size, self.source, mask)
        return gather(function, name, self.logits, index, self.source)


class _Normal(Normal):
    """torch's Normal, which squares the scale: one of 1e-25 is then 0 in float32."""

    def log_prob(self, value: Tensor) -> Tensor:
        z = (value - self.loc) / self.scale
        return -0.5 * z.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)


class TanhNormal(Distribution):
    """What ``tanh_normal`` gives."""

    arg_constraints = {}  # pyright: ignore[reportAssignmentType]

    def __init__(
        self, loc: Tensor, scale: Tensor, low: float | Tensor, high: float | Tensor
    ) -> None:
        """Takes checked parameters."""
        self.base = _Normal(loc, scale, validate_args=False)
        self.low, self.high = low, high
        self.center, self.half = (high + low) / 2, (high - low) / 2
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def log_prob(self, action: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Log-density ``[*B]`` of an action ``[*B, D]``."""
        shape = self.base.batch_shape
        if check_float("log_prob", "action", action).shape[-len(shape) :] != shape:
            raise ValueError(
                f"log_prob: action has shape {tuple(action.shape)}, expected {batch_first(shape)} "
                "(from loc)"
            )
        limit = 1 - torch.finfo(action.dtype).resolution
        z = ((action - self.center) / self.half).clamp(-limit, limit).atanh()
        return (self.base.log_prob(z) - self._stretch(z)).sum(-1)

    def sample_with(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The action ``[*B, D]`` that standard normal noise gives, and its log-density ``[*B]``.

        The log-density is exact where tanh rounds to a bound, and both carry gradient to loc and
        scale.
        """
        z = self.base.loc + self.base.scale * noise
        action = self.center + self.half * z.tanh()
        return action, (self.base.log_prob(z) - self._stretch(z)).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy ``[*B]``: that of the normal plus E[log d action / dz], to about 1e-12.

        With t = exp(-2 |z|) the logarithm is log(2 (high - low)) - 2 |z| - 2 log(1 + t), and the
        last term's series in t^k has expectations in closed form.
        """
        mean, scale = self._wide()
        k, weight = _alternating(mean)
        right, left = _powers(mean, scale, k), _powers(-mean, scale, k)
        ratio = mean / scale
        distance = scale * math.sqrt(2 / math.pi) * (-ratio.square() / 2).exp()
        distance = distance + mean * (ratio * math.sqrt(0.5)).erf()
        rest = ((right + left) * weight / k).sum(-1)
        stretch = math.log(4) - 2 * distance - 2 * rest
        value = scale.log() + 0.5 * math.log(2 * math.pi * math.e) + stretch
        return (value.to(self.base.loc.dtype) + self._log_half()).sum(-1)

    @property
    def mean(self) -> Tensor:
        """Mean action ``[*B, D]``."""
        mean, scale = self._wide()
        k, weight = _alternating(mean)
        rest = ((_powers(mean, scale, k) - _powers(-mean, scale, k)) * weight).sum(-1)
        value = (mean / scale * math.sqrt(0.5)).erf() - 2 * rest
        return self.center + self.half * value.to(self.base.loc.dtype)

    @property
    def deterministic_sample(self) -> Tensor:
        """The image ``[*B, D]`` of loc, which is the median of each component."""
        return self.center + self.half * self.base.loc.tanh()

    def _stretch(self, z: Tensor) -> Tensor:
        """The logarithm of d action / dz."""
        return self._log_half() + 2 * (math.log(2) - z - F.softplus(-2 * z))

    def _log_half(self) -> Any:
        return self.half.log() if isinstance(self.half, Tensor) else math.log(self.half)

    def _wide(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of z, in float32 at least: there is no narrower error function."""
        loc, scale = torch.broadcast_tensors(self.base.loc, self.base.scale)
        dtype = torch.promote_types(loc.dtype, torch.float32)
        return loc.to(dtype), scale.to(dtype)


# ---- functions of parameters


def categorical_kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Divergence of two categorical distributions.

        KL(p || q) = sum_k p_k (log p_k - log q_k)

    It is +inf where an action has p_k > 0 and q_k = 0; the gradient leaves such an action out.

    Args:
        logits_p: log-probabilities up to a constant, ``[..., A]`` float; -inf is probability 0.
        logits_q: likewise, of the same shape.

    Returns:
        ``[...]``.

    Raises:
        ValueError: the shapes differ.
        TypeError: an argument is not floating-point.

    Source: Kullback & Leibler (1951), equation 2.4.
    """
    check_alike("categorical_kl", {"logits_p": logits_p, "logits_q": logits_q})
    return divergence(log_softmax(logits_p), log_softmax(logits_q))


def categorical_cross_entropy(probs: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of a categorical distribution against target probabilities.

        H(p, q) = -sum_k p_k log q_k

    It is +inf where an action has p_k > 0 and q_k = 0; the gradient leaves such an action out.

    rlax divides p by its sum first, so that its gradient in p is another.

    Args:
        probs: p, ``[..., A]`` float, taken as they are: they need not add up to 1.
        logits: log q up to a constant, ``[..., A]`` float, of the same shape.

    Returns:
        ``[...]``.

    Raises:
        ValueError: the shapes differ.
        TypeError: an argument is not floating-point.

    Source: Goodfellow et al. (2016), "Deep learning", section 3.13.
    """
    check_alike("categorical_cross_entropy", {"probs": probs, "logits": logits})
    return times(probs, -log_softmax(logits)).sum(-1)


def importance_ratio(log_prob: Tensor, behavior_log_prob: Tensor) -> Tensor:
    """Importance ratio of an action under a policy to that under the policy that took it.

        rho = pi(a|s) / mu(a|s) = exp(log pi(a|s) - log mu(a|s))

    Nothing is clipped: a log-ratio of 80 is 5.5e34, a number of float32 and of bfloat16 too, and
    only above 88 does it overflow to inf there (709 in float64, 11 in float16). An action that the
    policy forbids (log pi = -inf) has ratio 0 and no gradient.

    Args:
        log_prob: log pi, ``[...]`` float.
        behavior_log_prob: log mu, ``[...]`` float, of the same shape; finite, as the action was
            taken.

    Returns:
        ``[...]``, differentiable in both.

    Raises:
        ValueError: the shapes differ.
        TypeError: an argument is not floating-point.

    Source: Sutton & Barto (2018), section 5.5.
    """
    pair = {"log_prob": log_prob, "behavior_log_prob": behavior_log_prob}
    check_alike("importance_ratio", pair)
    return (log_prob - behavior_log_prob).exp()


# ---- for the other files, without checks


def normal_divergence(p: Normal, q: Normal) -> Tensor:
    """KL(p || q) of normal distributions, per component; stable where they are nearly equal.

    1/2 (r^2 - 1 - log r^2 + ((loc_p - loc_q) / scale_q)^2),    r = scale_p / scale_q
    """
    log_ratio = 2 * (p.scale.log() - q.scale.log())
    shift = (p.loc - q.loc) / q.scale
    return 0.5 * (log_ratio.expm1() - log_ratio + shift.square())


def known_divergence(p: Any, q: Any) -> Tensor | None:
    """KL(p || q) of two single distributions, None if none is known.

    torch's own functions for the discrete ones do not map, and leave out gradients at the bounds.
    """
    if isinstance(p, _CATEGORICAL) and isinstance(q, _CATEGORICAL):
        return divergence(p.logits, q.logits)
    if isinstance(p, Bernoulli) and isinstance(q, Bernoulli):
        pair = (torch.stack([F.logsigmoid(-x), F.logsigmoid(x)], -1) for x in (p.logits, q.logits))
        return divergence(*pair)
    if isinstance(p, TanhNormal) and isinstance(q, TanhNormal):
        bounds = ((p.low, q.low), (p.high, q.high))
        same = (isinstance(a, Tensor) or isinstance(b, Tensor) or a == b for a, b in bounds)
        return normal_divergence(p.base, q.base).sum(-1) if all(same) else None
    if isinstance(p, Normal) and isinstance(q, Normal):
        return normal_divergence(p, q)
    if isinstance(p, Independent) and isinstance(q, Independent):
        dims = p.reinterpreted_batch_ndims
        value = known_divergence(p.base_dist, q.base_dist)
        if value is None or dims != q.reinterpreted_batch_ndims:
            return None
        return value.flatten(-dims).sum(-1)
    try:
        return torch_kl(p, q)
    except NotImplementedError:
        return None


# ---- private

_CATEGORICAL = (Categorical, OneHotCategorical)


def _alternating(like: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers k = 1, 2, ... and weights: sum_k (-1)^(k+1) a_k is sum_k weight_k a_k.

    For terms a_k that are moments of a positive density on [0, 1]. Source: Cohen, Rodriguez
    Villegas & Zagier (2000), "Convergence acceleration of alternating series", algorithm 1.
    """
    n = 20 if like.dtype == torch.float64 else 10  # exact to 2 / 5.8^n
    d = (3 + math.sqrt(8)) ** n
    d = (d + 1 / d) / 2
    b, c, weights = -1.0, -d, []
    for k in range(n):
        c = b - c
        weights.append(c / d)
        b = b * (k + n) * (k - n) / ((k + 0.5) * (k + 1))
    options = {"dtype": like.dtype, "device": like.device}
    return torch.arange(1, n + 1, **options), torch.tensor(weights, **options)


def _powers(mean: Tensor, scale: Tensor, k: Tensor) -> Tensor:
    """E[exp(-2 k z); z > 0] for z ~ Normal(mean, scale), with a last axis for k."""
    mean, scale = mean.unsqueeze(-1), scale.unsqueeze(-1)
    x = mean / scale - 2 * k * scale
    near = x >= 0  # each form is without overflow and cancellation on its own side
    exponent = torch.where(near, 2 * (k * scale).square() - 2 * k * mean, 0.0)
    close = exponent.exp() * (torch.where(near, -x, 0.0) * math.sqrt(0.5)).erfc()
    far = (-(mean / scale).square() / 2).exp()
    far = far * torch.special.erfcx(torch.where(near, 0.0, -x) * math.sqrt(0.5))
    return torch.where(near, close, far) / 2


def _check_normal(function: str, loc: Tensor, scale: Tensor) -> torch.Size:
    shape = check_float(function, "loc", loc).shape
    check_float(function, "scale", scale)
    if not shape:
        raise ValueError(f"{function}: loc has shape (), expected [*B, D]")
    check_broadcast(function, "scale", scale, shape, "loc", batch_first)
    if not no_data(scale) and bool((scale <= 0).any()):
        raise ValueError(f"{function}: scale holds numbers that are not above 0, expected positive")
    return shape
