"""Transforms that see a leaf as one thing: its mean, and its length beside that of its update."""

from typing import Any

from torch import Tensor, where

from ..tree import root
from .adam_moments import scale_by_adam
from .alias import descent
from .arguments import Hyper, Schedule, given, require_flag, require_hyper
from .base import Transform
from .clipping import squares
from .combine import chain
from .leafwise import Values, leafwise
from .transform import add_decayed_weights, scale_by_learning_rate, trace


def centralize() -> Transform:
    """Gradients without their means over all dims but the first; vectors and scalars stay.

    Returns:
        The transform, without a state.

    Reference: Yong et al. (2020), equation 1.
    """

    def rule(c: Values, g: Tensor, p: Any) -> Tensor:
        return g - g.mean(tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else g

    return leafwise("centralize", rule, scope="leaf")


def scale_by_trust_ratio(
    min_norm: Hyper | Schedule = 0.0,
    trust_coefficient: Hyper | Schedule = 1.0,
    eps: Hyper | Schedule = 0.0,
) -> Transform:
    """Updates as long as the params of their leaf.

        u = g trust_coefficient max(|p|, min_norm) / (max(|g|, min_norm) + eps)

    Where one of the two norms is 0, ``u = g``. A norm's derivatives are taken as 0 at 0.

    Args:
        min_norm: float or 0-d tensor, not negative, or schedule.
        trust_coefficient: float, 0-d tensor or schedule.
        eps: float or 0-d tensor, not negative, or schedule.

    Returns:
        The transform; it has a state, ``count``, only where there is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: You, Gitman & Ginsburg (2017), section 4; You et al. (2020), algorithm 2.
    """
    fn = "scale_by_trust_ratio"
    require_hyper(fn, "min_norm", min_norm, low=0)
    require_hyper(fn, "trust_coefficient", trust_coefficient)
    require_hyper(fn, "eps", eps, low=0)

    def size(x: Tensor, least: Hyper) -> Tensor:
        norm = root(squares(x).sum())
        return where(norm <= least, least, norm)

    def rule(c: Values, g: Tensor, p: Tensor) -> Tensor:
        ours, theirs = size(g, c.min_norm), size(p, c.min_norm)
        none = (ours == 0) | (theirs == 0)
        ratio = c.trust_coefficient * theirs / where(none, 1.0, ours + c.eps)
        return g * where(none, 1.0, ratio)

    hyper = {"min_norm": min_norm, "trust_coefficient": trust_coefficient, "eps": eps}
    return leafwise(fn, rule, hyper=hyper, scope="leaf", reads_params=True)


def lamb(
    lr: Hyper | Schedule,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-6,
    eps_root: Hyper | Schedule = 0.0,
    weight_decay: Hyper | Schedule = 0.0,
) -> Transform:
    """LAMB: Adam's direction with decay, each leaf's as long as its params.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_adam``.
        b2: as in ``scale_by_adam``.
        eps: as in ``scale_by_adam``.
        eps_root: as in ``scale_by_adam``.
        weight_decay: float or 0-d tensor, not negative, or schedule; behind the moments.

    Returns:
        ``chain(adam=scale_by_adam(...), decay=add_decayed_weights(weight_decay),
        trust=scale_by_trust_ratio(), lr=scale_by_learning_rate(lr))``, with decay only where its
        number isn't 0.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: You et al. (2020), algorithm 2.
    """
    require_hyper("lamb", "weight_decay", weight_decay, low=0)
    parts = {"adam": scale_by_adam(b1, b2, eps, eps_root)}
    if given(weight_decay):
        parts["decay"] = add_decayed_weights(weight_decay)
    return descent("lamb", {**parts, "trust": scale_by_trust_ratio()}, lr)


def lars(
    lr: Hyper | Schedule,
    weight_decay: Hyper | Schedule = 0.0,
    trust_coefficient: Hyper | Schedule = 0.001,
    eps: Hyper | Schedule = 0.0,
    momentum: Hyper | Schedule = 0.9,
    nesterov: bool = False,
) -> Transform:
    """LARS: gradients with decay, each leaf's scaled to the length of its params, then momentum.

    ``masked`` leaves biases out: ``chain(trust=masked(scale_by_trust_ratio(), "**.weight"), ...)``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        weight_decay: float or 0-d tensor, not negative, or schedule; in the gradient.
        trust_coefficient: float, 0-d tensor or schedule.
        eps: float or 0-d tensor, not negative, or schedule; beside the norm of the gradient.
        momentum: float or 0-d tensor, not negative, or schedule; of the steps, rate included.
        nesterov: look ahead by one step.

    Returns:
        ``chain(decay=add_decayed_weights(weight_decay), trust=scale_by_trust_ratio(...),
        lr=scale_by_learning_rate(lr), momentum=trace(momentum))``, decay and momentum only where
        their numbers aren't 0.

    Raises:
        ValueError: a tensor isn't 0-d, a number is out of range, or ``nesterov`` comes without
            momentum.
        TypeError: an argument is of another kind.

    Reference: You, Gitman & Ginsburg (2017), algorithm 1.
    """
    fn = "lars"
    require_hyper(fn, "lr", lr, low=0)
    require_hyper(fn, "weight_decay", weight_decay, low=0)
    require_hyper(fn, "momentum", momentum, low=0)
    require_flag(fn, "nesterov", nesterov)
    if nesterov and not given(momentum):
        raise ValueError(f"{fn}: momentum is 0, expected more with nesterov=True")
    decay = {"decay": add_decayed_weights(weight_decay)} if given(weight_decay) else {}
    moving = {"momentum": trace(momentum, nesterov=nesterov)} if given(momentum) else {}
    trust = scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps)
    return chain(**decay, trust=trust, lr=scale_by_learning_rate(lr), **moving)


def fromage(lr: Hyper | Schedule = 1e-2, min_norm: Hyper | Schedule = 1e-6) -> Transform:
    """Fromage: a step as long as the leaf's params, and back to their sphere.

        p = (p - lr u) / sqrt(1 + lr^2)   with u from scale_by_trust_ratio

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        min_norm: float or 0-d tensor, not negative, or schedule.

    Returns:
        The chain of ``trust=scale_by_trust_ratio(min_norm)`` and, under ``lr``, the step.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Bernstein et al. (2020), algorithm 1.
    """
    require_hyper("fromage", "lr", lr, low=0)

    def prepare(h: Values, t: Any) -> dict[str, Any]:
        shrink = (1 + h.lr**2) ** -0.5
        return {"lr": -h.lr * shrink, "decay": shrink - 1}

    def rule(c: Values, u: Tensor, p: Tensor) -> Tensor:
        return c.lr * u + c.decay * p

    step = leafwise("fromage", rule, hyper={"lr": lr}, prepare=prepare, reads_params=True)
    return chain(trust=scale_by_trust_ratio(min_norm), lr=step)
