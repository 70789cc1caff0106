"""Optimizers by the names that the world gives them: chains, with torch.optim's numbers."""

from torch import Tensor

from .base import Schedule, Transform
from .combine import chain
from .leafwise import Hyper, require_hyper
from .transform import add_decayed_weights, scale, scale_by_adam, scale_by_schedule, trace


def sgd(
    lr: Hyper | Schedule,
    momentum: Hyper = 0.0,
    dampening: Hyper = 0.0,
    nesterov: bool = False,
    weight_decay: Hyper = 0.0,
) -> Transform:
    """Stochastic gradient descent: ``p - lr t``, with ``t`` the gradient or its ``trace``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        momentum: float or 0-d tensor, not negative.
        dampening: float or 0-d tensor; without it at the first step.
        nesterov: look ahead by one step.
        weight_decay: float or 0-d tensor, not negative, times the params added to the gradient.

    Returns:
        ``chain(decay=add_decayed_weights(...), momentum=trace(...), lr=scale(-lr))``, the first two
        only where their numbers aren't 0.

    Raises:
        ValueError: a tensor isn't 0-d, a number is out of range, or ``dampening`` or ``nesterov``
            comes without momentum or with one another.
        TypeError: an argument is of another kind.
    """
    require_hyper("sgd", "momentum", momentum, low=0)
    require_hyper("sgd", "dampening", dampening)
    require_hyper("sgd", "weight_decay", weight_decay, low=0)
    parts: dict[str, Transform] = {}
    if _given(weight_decay):
        parts["decay"] = add_decayed_weights(weight_decay)
    if _given(momentum):
        parts["momentum"] = trace(momentum, dampening, nesterov)
    elif nesterov or _given(dampening):
        raise ValueError("sgd: momentum is 0, expected more with dampening or nesterov=True")
    return chain(**parts, lr=_descent("sgd", lr))


def adam(
    lr: Hyper | Schedule,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
) -> Transform:
    """Adam: ``p - lr u``, with ``u`` from ``scale_by_adam``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_adam``.
        b2: as in ``scale_by_adam``.
        eps: as in ``scale_by_adam``.
        eps_root: as in ``scale_by_adam``.

    Returns:
        ``chain(adam=scale_by_adam(...), lr=scale(-lr))``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Kingma & Ba (2015), algorithm 1.
    """
    return chain(adam=scale_by_adam(b1, b2, eps, eps_root), lr=_descent("adam", lr))


def adamw(
    lr: Hyper | Schedule,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.01,
) -> Transform:
    """Adam with decoupled weight decay: ``p (1 - lr weight_decay) - lr u``, ``u`` as in ``adam``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_adam``.
        b2: as in ``scale_by_adam``.
        eps: as in ``scale_by_adam``.
        eps_root: as in ``scale_by_adam``.
        weight_decay: float or 0-d tensor, not negative.

    Returns:
        ``chain(adam=scale_by_adam(...), decay=add_decayed_weights(weight_decay), lr=scale(-lr))``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Loshchilov & Hutter (2019), algorithm 2.
    """
    decay = add_decayed_weights(weight_decay)
    return chain(adam=scale_by_adam(b1, b2, eps, eps_root), decay=decay, lr=_descent("adamw", lr))


def _given(value: Hyper) -> bool:
    return isinstance(value, Tensor) or value != 0


def _descent(fn: str, lr: Hyper | Schedule) -> Transform:
    if callable(lr):
        return scale_by_schedule(lambda count: -lr(count))
    require_hyper(fn, "lr", lr, low=0)
    return scale(-lr)
