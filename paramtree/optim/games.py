"""Optimizers for games, which cycle where plain descent diverges: a step past the last gradient.

On ``min over x, max over y of x y`` gradient descent of both players spirals outwards with any
rate; the optimistic one, whose update guesses that the next gradient changes as the last one did,
comes to rest at the equilibrium.
"""

from typing import Any

import torch
from torch import Tensor

from .adam_moments import scale_by_adam
from .alias import descent
from .arguments import Hyper, Schedule, require_hyper
from .base import Transform
from .combine import chain
from .leafwise import Values, leafwise
from .transform import scale


def scale_by_optimistic_gradient(
    alpha: Hyper | Schedule = 1.0, beta: Hyper | Schedule = 1.0
) -> Transform:
    """The gradient and its change: ``u = alpha g + beta (g - g_before)``, at first ``alpha g``.

    Args:
        alpha: float, 0-d tensor or schedule.
        beta: optimism, float, 0-d tensor or schedule.

    Returns:
        The transform; its state holds ``count`` and ``previous_gradient``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number isn't finite.
        TypeError: an argument is of another kind.

    Reference: Mokhtari, Ozdaglar & Pattathil (2020), section 4.
    """
    fn = "scale_by_optimistic_gradient"
    require_hyper(fn, "alpha", alpha)
    require_hyper(fn, "beta", beta)

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        old = torch.where(t == 1, torch.zeros_like(t), h.beta)
        return {"new": h.alpha + old, "old": old}

    def rule(c: Values, g: Tensor, p: Any, before: Tensor) -> tuple[Tensor, Tensor]:
        return (
            c.new * g - c.old * before,
            g.clone(),
        )  # memory of its own, as gradients may be reused

    hyper, slots = {"alpha": alpha, "beta": beta}, {"previous_gradient": torch.zeros_like}
    return leafwise(fn, rule, hyper=hyper, slots=slots, counted=True, prepare=prepare)


def optimistic_gradient_descent(
    lr: Hyper | Schedule, alpha: Hyper | Schedule = 1.0, beta: Hyper | Schedule = 1.0
) -> Transform:
    """Optimistic gradient descent: ``p - lr (alpha g + beta (g - g_before))``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        alpha: float, 0-d tensor or schedule.
        beta: optimism, float, 0-d tensor or schedule.

    Returns:
        ``chain(optimistic=scale_by_optimistic_gradient(alpha, beta),
        lr=scale_by_learning_rate(lr))``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Mokhtari, Ozdaglar & Pattathil (2020), section 4.
    """
    optimistic = scale_by_optimistic_gradient(alpha, beta)
    return descent("optimistic_gradient_descent", {"optimistic": optimistic}, lr)


def optimistic_adam(
    lr: Hyper | Schedule,
    optimism: Hyper | Schedule | None = None,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    eps_root: Hyper | Schedule = 0.0,
    nesterov: bool = True,
) -> Transform:
    """Optimistic Adam: ``p - lr u - optimism (u - u_before)``, with ``u`` from ``scale_by_adam``.

    ``optimistic_adam_v2`` has the optimism in parts of the rate.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        optimism: float, 0-d tensor or schedule; None for ``lr``.
        b1: as in ``scale_by_adam``.
        b2: as in ``scale_by_adam``.
        eps: as in ``scale_by_adam``.
        eps_root: as in ``scale_by_adam``.
        nesterov: as in ``scale_by_adam``.

    Returns:
        ``chain(adam=scale_by_adam(...), optimistic=scale_by_optimistic_gradient(lr, optimism),
        sign=scale(-1.0))``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Daskalakis et al. (2018), algorithm 1.
    """
    require_hyper("optimistic_adam", "lr", lr, low=0)
    optimism = lr if optimism is None else optimism
    require_hyper("optimistic_adam", "optimism", optimism)
    return chain(
        adam=scale_by_adam(b1, b2, eps, eps_root, nesterov),
        optimistic=scale_by_optimistic_gradient(lr, optimism),
        sign=scale(-1.0),
    )


def optimistic_adam_v2(
    lr: Hyper | Schedule,
    alpha: Hyper | Schedule = 1.0,
    beta: Hyper | Schedule = 1.0,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    eps_root: Hyper | Schedule = 0.0,
    nesterov: bool = True,
) -> Transform:
    """Optimistic Adam: ``p - lr (alpha u + beta (u - u_before))``, ``u`` from ``scale_by_adam``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        alpha: float, 0-d tensor or schedule.
        beta: optimism, float, 0-d tensor or schedule.
        b1: as in ``scale_by_adam``.
        b2: as in ``scale_by_adam``.
        eps: as in ``scale_by_adam``.
        eps_root: as in ``scale_by_adam``.
        nesterov: as in ``scale_by_adam``.

    Returns:
        ``chain(adam=scale_by_adam(...), optimistic=scale_by_optimistic_gradient(alpha, beta),
        lr=scale_by_learning_rate(lr))``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Daskalakis et al. (2018), algorithm 1.
    """
    adam = scale_by_adam(b1, b2, eps, eps_root, nesterov)
    optimistic = scale_by_optimistic_gradient(alpha, beta)
    return descent("optimistic_adam_v2", {"adam": adam, "optimistic": optimistic}, lr)
