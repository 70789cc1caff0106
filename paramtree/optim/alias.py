"""Optimizers by the names that the world gives them: chains, with torch.optim's numbers."""

from collections.abc import Mapping

from .adam_moments import scale_by_adam, scale_by_amsgrad
from .arguments import Hyper, Schedule, given, require_flag, require_hyper
from .base import Transform
from .combine import chain
from .transform import add_decayed_weights, scale, scale_by_learning_rate, trace


def sgd(
    lr: Hyper | Schedule = 1e-3,
    momentum: Hyper | Schedule = 0.0,
    dampening: Hyper | Schedule = 0.0,
    nesterov: bool = False,
    weight_decay: Hyper | Schedule = 0.0,
    maximize: bool = False,
) -> Transform:
    """Stochastic gradient descent: ``p - lr t``, with ``t`` the gradient or its ``trace``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        momentum: float or 0-d tensor, not negative, or schedule.
        dampening: float, 0-d tensor or schedule; without it at the first step, and, as in torch,
            without a meaning where the momentum is 0.
        nesterov: look ahead by one step.
        weight_decay: float or 0-d tensor, not negative, or schedule, times the params added to the
            gradient.
        maximize: ascend.

    Returns:
        ``chain(decay=add_decayed_weights(...), momentum=trace(...),
        lr=scale_by_learning_rate(lr))``, the first two only where their numbers aren't 0.

    Raises:
        ValueError: a tensor isn't 0-d, a number is out of range, ``nesterov`` comes without
            momentum, or with dampening.
        TypeError: an argument is of another kind.
    """
    require_hyper("sgd", "momentum", momentum, low=0)
    require_hyper("sgd", "dampening", dampening)
    parts: dict[str, Transform] = {}
    if given(momentum):
        parts["momentum"] = trace(momentum, dampening, nesterov)
    elif nesterov:
        raise ValueError("sgd: momentum is 0, expected more with nesterov=True")
    return descent("sgd", parts, lr, weight_decay, maximize=maximize)


def adam(
    lr: Hyper | Schedule = 1e-3,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    eps_root: Hyper | Schedule = 0.0,
    weight_decay: Hyper | Schedule = 0.0,
    amsgrad: bool = False,
    nesterov: bool = False,
    detach_denominator: bool = False,
    maximize: bool = False,
) -> Transform:
    """Adam: ``p - lr u``, with ``u`` from ``scale_by_adam``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_adam``.
        b2: as in ``scale_by_adam``.
        eps: as in ``scale_by_adam``.
        eps_root: as in ``scale_by_adam``.
        weight_decay: float or 0-d tensor, not negative, or schedule, times the params added to the
            gradient.
        amsgrad: ``scale_by_amsgrad``.
        nesterov: as in ``scale_by_adam``; not with ``amsgrad``.
        detach_denominator: as in ``scale_by_adam``; not with ``amsgrad``.
        maximize: ascend.

    Returns:
        ``chain(decay=add_decayed_weights(...), adam=scale_by_adam(...),
        lr=scale_by_learning_rate(lr))``, the first only where there is decay.

    Raises:
        ValueError: a tensor isn't 0-d, a number is out of range, or options exclude one another.
        TypeError: an argument is of another kind.

    Reference: Kingma & Ba (2015), algorithm 1.
    """
    options = (b1, b2, eps, eps_root, amsgrad, nesterov, detach_denominator)
    return descent("adam", _moments("adam", *options), lr, weight_decay, maximize=maximize)


def adamw(
    lr: Hyper | Schedule = 1e-3,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    eps_root: Hyper | Schedule = 0.0,
    weight_decay: Hyper | Schedule = 0.01,
    amsgrad: bool = False,
    nesterov: bool = False,
    detach_denominator: bool = False,
    maximize: bool = False,
) -> Transform:
    """Adam with decoupled weight decay: ``p (1 - lr weight_decay) - lr u``, ``u`` as in ``adam``.

    ``masked`` decays a part of the tree alone:
    ``chain(adam=scale_by_adam(), decay=masked(add_decayed_weights(0.01), "**.weight"), lr=...)``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_adam``.
        b2: as in ``scale_by_adam``.
        eps: as in ``scale_by_adam``.
        eps_root: as in ``scale_by_adam``.
        weight_decay: float or 0-d tensor, not negative, or schedule.
        amsgrad: as in ``adam``.
        nesterov: as in ``adam``.
        detach_denominator: as in ``adam``.
        maximize: ascend; the weights decay all the same.

    Returns:
        ``chain(adam=scale_by_adam(...), decay=add_decayed_weights(weight_decay),
        lr=scale_by_learning_rate(lr))``.

    Raises:
        ValueError: a tensor isn't 0-d, a number is out of range, or options exclude one another.
        TypeError: an argument is of another kind.

    Reference: Loshchilov & Hutter (2019), algorithm 2.
    """
    options = (b1, b2, eps, eps_root, amsgrad, nesterov, detach_denominator)
    parts = _moments("adamw", *options)
    return descent("adamw", parts, lr, weight_decay, decoupled=True, maximize=maximize)


def _moments(
    fn: str,
    b1: Hyper | Schedule,
    b2: Hyper | Schedule,
    eps: Hyper | Schedule,
    eps_root: Hyper | Schedule,
    amsgrad: bool,
    nesterov: bool,
    detach_denominator: bool,
) -> dict[str, Transform]:
    require_flag(fn, "amsgrad", amsgrad)
    if amsgrad and (nesterov or detach_denominator):
        other = "nesterov" if nesterov else "detach_denominator"
        raise ValueError(f"{fn}: {other} is True, expected False with amsgrad=True")
    if amsgrad:
        return {"amsgrad": scale_by_amsgrad(b1, b2, eps, eps_root)}
    return {"adam": scale_by_adam(b1, b2, eps, eps_root, nesterov, detach_denominator)}


def descent(
    fn: str,
    parts: Mapping[str, Transform],
    lr: Hyper | Schedule,
    weight_decay: Hyper | Schedule = 0.0,
    *,
    decoupled: bool = False,
    maximize: bool = False,
) -> Transform:
    """The chain of an optimizer: ascent, L2 decay, its own parts, decoupled decay, rate.

    Args:
        fn: name of the function that was called, for messages.
        parts: what makes the direction, by name.
        lr: learning rate.
        weight_decay: its factor; no decay where it's the number 0.
        decoupled: whether the decay goes past the parts, as AdamW's does.
        maximize: ascend.

    Returns:
        The chain.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is negative.
        TypeError: an argument is of another kind.
    """
    require_hyper(fn, "lr", lr, low=0)
    require_hyper(fn, "weight_decay", weight_decay, low=0)
    require_flag(fn, "maximize", maximize)
    decay = {"decay": add_decayed_weights(weight_decay)} if given(weight_decay) else {}
    stages = {**parts, **decay} if decoupled else {**decay, **parts}
    ascent = {"ascent": scale(-1.0)} if maximize else {}
    return chain(**ascent, **stages, lr=scale_by_learning_rate(lr))
