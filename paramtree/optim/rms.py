"""Directions divided by the root of squared gradients: RMSprop, Adagrad, Adadelta.

g    gradient
nu   mean of g^2 over the steps, later ones weighing more, or their sum
mu   mean of g
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..tree import root
from .adam_moments import second_moment
from .arguments import Hyper, Schedule, cast, given, require_flag, require_hyper
from .base import Transform
from .leafwise import Values, leafwise


def scale_by_rms(
    decay: Hyper | Schedule = 0.99,
    eps: Hyper | Schedule = 1e-8,
    initial_scale: Hyper = 0.0,
    eps_in_root: bool = False,
) -> Transform:
    """RMSprop's direction, with torch's numbers.

        nu = decay nu + (1 - decay) g^2
        u = g / (sqrt(nu) + eps),   with eps_in_root g / sqrt(nu + eps)

    The square root's derivatives are taken as 0 at 0, so that no gradient through it is NaN.

    Args:
        decay: float in [0, 1), 0-d tensor or schedule; torch's ``alpha``.
        eps: float or 0-d tensor, not negative, or schedule.
        initial_scale: first value of ``nu``, float or 0-d tensor, not negative.
        eps_in_root: whether ``eps`` is under the root, as in optax, and not beside it.

    Returns:
        The transform; its state holds ``nu``, and ``count`` where there is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Tieleman & Hinton (2012), lecture 6.5.
    """
    fn = "scale_by_rms"
    _require_mean(fn, decay, eps, initial_scale, eps_in_root)

    def rule(c: Values, g: Tensor, p: Any, nu: Tensor) -> tuple[Tensor, Tensor]:
        nu = second_moment(nu, g, c)
        return g / _size(nu, c.eps, eps_in_root), nu

    slots = {"nu": filled(initial_scale)}
    return leafwise(fn, rule, hyper={"decay": decay, "eps": eps}, slots=slots, prepare=_means)


def scale_by_stddev(
    decay: Hyper | Schedule = 0.99,
    eps: Hyper | Schedule = 1e-8,
    initial_scale: Hyper = 0.0,
    eps_in_root: bool = False,
) -> Transform:
    """Centered RMSprop's direction, with torch's numbers.

        mu = decay mu + (1 - decay) g,   nu = decay nu + (1 - decay) g^2
        u = g / (sqrt(nu - mu^2) + eps),   with eps_in_root g / sqrt(nu - mu^2 + eps)

    The square root's derivatives are taken as 0 at 0, and so is the root of a variance that
    rounding made negative.

    Args:
        decay: as in ``scale_by_rms``.
        eps: as in ``scale_by_rms``.
        initial_scale: as in ``scale_by_rms``.
        eps_in_root: as in ``scale_by_rms``.

    Returns:
        The transform; its state holds ``mu`` and ``nu``, and ``count`` where there is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Graves (2013), equations 38 to 41.
    """
    fn = "scale_by_stddev"
    _require_mean(fn, decay, eps, initial_scale, eps_in_root)

    def rule(c: Values, g: Tensor, p: Any, mu: Tensor, nu: Tensor) -> tuple[Tensor, ...]:
        mu, nu = torch.lerp(mu, g, c.fresh2), second_moment(nu, g, c)
        return g / _size(nu - mu * mu, c.eps, eps_in_root), mu, nu

    slots = {"mu": torch.zeros_like, "nu": filled(initial_scale)}
    return leafwise(fn, rule, hyper={"decay": decay, "eps": eps}, slots=slots, prepare=_means)


def scale_by_rss(
    initial_accumulator: Hyper = 0.0,
    eps: Hyper | Schedule = 1e-10,
    lr_decay: Hyper | Schedule = 0.0,
) -> Transform:
    """Adagrad's direction, with torch's numbers.

        nu = nu + g^2
        u = g / (sqrt(nu) + eps) / (1 + (t - 1) lr_decay)

    The square root's derivatives are taken as 0 at 0. optax adds eps under the root.

    Args:
        initial_accumulator: first value of ``nu``, float or 0-d tensor, not negative.
        eps: float or 0-d tensor, not negative, or schedule.
        lr_decay: float or 0-d tensor, not negative, or schedule.

    Returns:
        The transform; its state holds ``count`` and ``nu``, here a sum.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Duchi, Hazan & Singer (2011), figure 1, the diagonal case.
    """
    fn = "scale_by_rss"
    require_hyper(fn, "initial_accumulator", initial_accumulator, low=0, schedule=False)
    require_hyper(fn, "eps", eps, low=0)
    require_hyper(fn, "lr_decay", lr_decay, low=0)

    slows = given(lr_decay)

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        return {"eps": h.eps, "slower": 1 + (t - 1) * h.lr_decay}

    def rule(c: Values, g: Tensor, p: Any, nu: Tensor) -> tuple[Tensor, Tensor]:
        nu = nu + g * g
        size = root(nu) + c.eps
        return g / (size * c.slower if slows else size), nu

    hyper, slots = {"eps": eps, "lr_decay": lr_decay}, {"nu": filled(initial_accumulator)}
    return leafwise(fn, rule, hyper=hyper, slots=slots, counted=True, prepare=prepare)


def scale_by_adadelta(rho: Hyper | Schedule = 0.9, eps: Hyper | Schedule = 1e-6) -> Transform:
    """Adadelta's direction, with torch's numbers.

        nu = rho nu + (1 - rho) g^2
        u = g sqrt(nu_update + eps) / sqrt(nu + eps),   nu_update = rho nu_update + (1 - rho) u^2

    The square roots' derivatives are taken as 0 at 0.

    Args:
        rho: decay of both means, float in [0, 1), 0-d tensor or schedule.
        eps: float or 0-d tensor, not negative, or schedule; with 0 nothing ever moves.

    Returns:
        The transform; its state holds ``nu`` and ``nu_update``, and ``count`` where there is a
        schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Zeiler (2012), algorithm 1.
    """
    fn = "scale_by_adadelta"
    require_hyper(fn, "rho", rho, low=0, below=1)
    require_hyper(fn, "eps", eps, low=0)

    def prepare(h: Values, t: Any) -> dict[str, Any]:
        return {"b2": h.rho, "fresh2": 1 - h.rho, "eps": h.eps}

    def rule(c: Values, g: Tensor, p: Any, nu: Tensor, nu_update: Tensor) -> tuple[Tensor, ...]:
        nu = second_moment(nu, g, c)
        u = g * root(nu_update + c.eps) / root(nu + c.eps)
        return u, nu, second_moment(nu_update, u, c)

    slots = {name: torch.zeros_like for name in ("nu", "nu_update")}
    return leafwise(fn, rule, hyper={"rho": rho, "eps": eps}, slots=slots, prepare=prepare)


def filled(value: Hyper) -> Callable[[Tensor], Tensor]:
    """What makes the first value of a state entry that begins at a number.

    Args:
        value: float or 0-d tensor.

    Returns:
        Function of a leaf: its shape and dtype, full of the value; of a complex leaf both parts.
    """

    def start(leaf: Tensor) -> Tensor:
        if leaf.is_complex():
            pairs = torch.zeros_like(torch.view_as_real(leaf.resolve_conj()))
            return torch.view_as_complex(pairs + cast(value, leaf))
        return torch.zeros_like(leaf) + cast(value, leaf)

    return start


def _means(h: Values, t: Any) -> dict[str, Any]:
    return {"b2": h.decay, "fresh2": 1 - h.decay, "eps": h.eps}


def _size(square: Tensor, eps: Hyper, inside: bool) -> Tensor:
    return root(square + eps) if inside else root(square) + eps


def _require_mean(fn: str, decay: Any, eps: Any, initial_scale: Any, eps_in_root: Any) -> None:
    require_hyper(fn, "decay", decay, low=0, below=1)
    require_hyper(fn, "eps", eps, low=0)
    require_hyper(fn, "initial_scale", initial_scale, low=0, schedule=False)
    require_flag(fn, "eps_in_root", eps_in_root)
