"""Adam's relatives in torch.optim: Adamax, RAdam and NAdam.

mu, nu   means of g and g^2 over the steps, as in ``scale_by_adam``
t        number of the step, from 1
"""

from typing import Any

import torch
from torch import Tensor

from ..tree import root
from .adam_moments import require_moments, second_moment
from .arguments import Hyper, Schedule, require_hyper
from .base import Transform
from .leafwise import Values, leafwise

TRACTABLE = 4  # rho above which the rectified variance of RAdam is finite


def scale_by_adamax(
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
) -> Transform:
    """Adamax's direction: Adam with the largest decayed gradient for a second moment.

        mu = b1 mu + (1 - b1) g,   nu = max(b2 nu, |g| + eps)
        u = mu / nu / (1 - b1^t)

    The derivative of ``|g|`` is taken as 0 at 0.

    Args:
        b1: decay of the first moment, float in [0, 1), 0-d tensor or schedule.
        b2: decay of the maximum, float in [0, 1), 0-d tensor or schedule.
        eps: float or 0-d tensor, not negative, or schedule.

    Returns:
        The transform; its state holds ``count``, ``mu`` and ``nu``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Kingma & Ba (2015), algorithm 2.
    """
    fn = "scale_by_adamax"
    require_moments(fn, b1, b2, eps)

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        return {"fresh1": 1 - h.b1, "b2": h.b2, "eps": h.eps, "fix1": 1 - h.b1**t}

    def rule(c: Values, g: Tensor, p: Any, mu: Tensor, nu: Tensor) -> tuple[Tensor, ...]:
        mu, nu = torch.lerp(mu, g, c.fresh1), torch.maximum(nu * c.b2, g.abs() + c.eps)
        return mu / (nu * c.fix1), mu, nu

    return _two_moments(fn, rule, {"b1": b1, "b2": b2, "eps": eps}, prepare)


def scale_by_radam(
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    threshold: Hyper | Schedule = 5.0,
) -> Transform:
    """RAdam's direction: Adam's, held back for as long as its second moment says little.

        mu, nu as in scale_by_adam,   rho_inf = 2 / (1 - b2) - 1
        rho = rho_inf - 2 t b2^t / (1 - b2^t)                           steps that nu has averaged
        r^2 = (rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho)
        u = r mu / (1 - b1^t) sqrt(1 - b2^t) / (sqrt(nu) + eps)  where rho > threshold
        u = mu / (1 - b1^t)  elsewhere

    The square root's derivatives are taken as 0 at 0; that in the threshold is 0 everywhere. torch
    adds eps to the root before it corrects it, optax after that.

    Args:
        b1: decay of the first moment, float in [0, 1), 0-d tensor or schedule.
        b2: decay of the second moment, float in [0, 1), 0-d tensor or schedule.
        eps: float or 0-d tensor, not negative, or schedule.
        threshold: float or 0-d tensor, at least 4, or schedule.

    Returns:
        The transform; its state holds ``count``, ``mu`` and ``nu``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Liu et al. (2020), algorithm 2.
    """
    fn = "scale_by_radam"
    require_moments(fn, b1, b2, eps)
    require_hyper(fn, "threshold", threshold, low=TRACTABLE)

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        fix1, fix2 = 1 - h.b1**t, 1 - h.b2**t
        longest = 2 / (1 - h.b2) - 1 + torch.zeros_like(t)
        length = longest - 2 * t * h.b2**t / fix2
        rectified = (length > h.threshold) & (length > TRACTABLE)
        # where they aren't, r is undefined: any numbers that keep its derivatives finite
        longest, length = torch.where(rectified, longest, 6.0), torch.where(rectified, length, 6.0)
        r2 = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        # mu / (sqrt(nu) size + rest), with size 0 where nu isn't asked
        size = torch.where(rectified, fix1 / (r2 * fix2).sqrt(), 0.0)
        rest = torch.where(rectified, h.eps * size, fix1)
        return {"fresh1": 1 - h.b1, "b2": h.b2, "fresh2": 1 - h.b2, "size": size, "rest": rest}

    def rule(c: Values, g: Tensor, p: Any, mu: Tensor, nu: Tensor) -> tuple[Tensor, ...]:
        mu, nu = torch.lerp(mu, g, c.fresh1), second_moment(nu, g, c)
        return mu / (root(nu) * c.size + c.rest), mu, nu

    hyper = {"b1": b1, "b2": b2, "eps": eps, "threshold": threshold}
    return _two_moments(fn, rule, hyper, prepare)


def scale_by_nadam(
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    momentum_decay: Hyper | Schedule = 4e-3,
) -> Transform:
    """NAdam's direction, with torch's schedule of the momentum.

        mu, nu as in scale_by_adam,   m_t = b1 (1 - 0.96^(t momentum_decay) / 2)
        ahead = (1 - m_t) g / (1 - m_1 ... m_t) + m_(t+1) mu / (1 - m_1 ... m_(t+1))
        u = ahead / (sqrt(nu / (1 - b2^t)) + eps)

    The square root's derivatives are taken as 0 at 0. Adam with Nesterov's momentum and no
    schedule, which is optax's NAdam, is ``scale_by_adam(nesterov=True)``.

    Args:
        b1: decay of the first moment, float in [0, 1), 0-d tensor or schedule.
        b2: decay of the second moment, float in [0, 1), 0-d tensor or schedule.
        eps: float or 0-d tensor, not negative, or schedule.
        momentum_decay: float or 0-d tensor, not negative, or schedule.

    Returns:
        The transform; its state holds ``count``, ``mu``, ``nu`` and ``mu_product``, ``m_1 ... m_t``
        in float64.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Dozat (2016), algorithm 8, with 0.96^(t / 250) in the momentum.
    """
    fn = "scale_by_nadam"
    require_moments(fn, b1, b2, eps)
    require_hyper(fn, "momentum_decay", momentum_decay, low=0)

    def prepare(h: Values, t: Tensor, mu_product: Tensor) -> dict[str, Any]:
        now = h.b1 * (1 - 0.5 * 0.96 ** (t * h.momentum_decay))
        later = h.b1 * (1 - 0.5 * 0.96 ** ((t + 1) * h.momentum_decay))
        mu_product = mu_product * now
        return {
            "fresh1": 1 - h.b1,
            "b2": h.b2,
            "fresh2": 1 - h.b2,
            "eps": h.eps,
            "size": (1 - h.b2**t) ** -0.5,
            "new": (1 - now) / (1 - mu_product),
            "old": later / (1 - mu_product * later),
            "mu_product": mu_product,
        }

    def rule(c: Values, g: Tensor, p: Any, mu: Tensor, nu: Tensor) -> tuple[Tensor, ...]:
        mu, nu = torch.lerp(mu, g, c.fresh1), second_moment(nu, g, c)
        return (c.new * g + c.old * mu) / (root(nu) * c.size + c.eps), mu, nu

    hyper = {"b1": b1, "b2": b2, "eps": eps, "momentum_decay": momentum_decay}
    return _two_moments(fn, rule, hyper, prepare, {"mu_product": 1.0})


def _two_moments(
    fn: str,
    rule: Any,
    hyper: dict[str, Hyper | Schedule],
    prepare: Any,
    numbers: dict[str, float] | None = None,
) -> Transform:
    slots = {"mu": torch.zeros_like, "nu": torch.zeros_like}
    options = {"slots": slots, "numbers": numbers, "counted": True, "prepare": prepare}
    return leafwise(fn, rule, hyper=hyper, **options)
