"""Functions of numbers that torch lacks, or has with a derivative that is not finite; no checks.

They are elementwise, over the last axis or over all elements, and differentiable any number of
times.
"""

import math

import torch
from torch import Tensor


def bounded(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """``x`` held to [low, high], differentiable in all three; at a bound x gets the gradient."""
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        return x.clamp(low, high)
    return x.clamp(*(_like(x, bound) for bound in (low, high)))


def root(x: Tensor) -> Tensor:
    """Square root whose derivative at 0 is taken as 0, for deviations of numbers all equal."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), x.detach())


def log(x: Tensor) -> Tensor:
    """Logarithm whose derivative at 0 is taken as 0, for an infinity that is without effect."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).log(), x.detach().log())


def ratio(log_ratio: Tensor) -> Tensor:
    """A ratio of probabilities from its logarithm, finite whatever that is.

    What is too large for the dtype is constant, so that clipping it later meets no inf times 0.
    """
    return log_ratio.clamp(max=math.log(torch.finfo(log_ratio.dtype).max) - 1).exp()


def times(weight: Tensor, x: Tensor) -> Tensor:
    """The product, where 0 times inf is 0; inf where the weight is positive, without gradient."""
    endless = x == torch.inf
    return (weight * torch.where(endless, 0.0, x)).masked_fill(endless & (weight > 0), torch.inf)


def log_softmax(x: Tensor) -> Tensor:
    """As torch's, over the last axis, whose CPU kernel wakes all threads for a few columns."""
    if x.shape[-1] >= 16 or not x.is_cpu:
        return x.log_softmax(-1)
    return x - x.logsumexp(-1, keepdim=True)


def disorder(log_probs: Tensor) -> Tensor:
    """Entropy -sum_k p_k log p_k, where 0 log 0 is 0, with gradients that are finite."""
    probs = log_probs.exp()
    return -(probs * torch.where(probs > 0, log_probs, 0.0)).sum(-1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum_k p_k (log p_k - log q_k) of log-probabilities that are normalized."""
    log_ratio = torch.where(log_p == -torch.inf, 0.0, log_p) - log_q
    return times(log_p.exp(), log_ratio).sum(-1)


def normalized(x: Tensor, mask: Tensor | None, eps: float | Tensor) -> Tensor:
    """``x`` with mean 0 and deviation 1; equal numbers become 0, with gradients that are finite.

    It is first brought to [-1, 0]: the result is the same, to every order, but equal numbers are
    then exactly 0, whatever the rounding of their mean, and no square is beyond the dtype.
    """
    count = x.numel() if mask is None else mask.sum().clamp(min=1)
    top = (x.detach() if mask is None else torch.where(mask, x.detach(), -torch.inf)).amax()
    below = x - top if mask is None else torch.where(mask, x - top, 0.0)
    size = -below.detach().amin()
    size = torch.where(size > 0, size.clamp(min=torch.finfo(x.dtype).tiny), 1.0)
    inner = below / size
    centered = inner - inner.sum() / count
    centered = centered if mask is None else torch.where(mask, centered, 0.0)
    deviation = root(centered.square().sum() / count) + eps / size
    return centered / torch.where(deviation > 0, deviation, 1.0)


def picked(values: Tensor, index: Tensor) -> Tensor:
    """Of ``[..., A]`` the entries ``[...]`` at an index that is known to be one."""
    return values.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _like(x: Tensor, bound: float | Tensor) -> Tensor:
    if not isinstance(bound, Tensor):
        return torch.full((), bound, dtype=x.dtype, device=x.device)
    return bound.to(dtype=x.dtype, device=None if bound.dim() else x.device)
