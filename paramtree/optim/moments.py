"""Adam's relatives whose second moment is of another kind: belief, yogi, novograd."""

from typing import Any

import torch
from torch import Tensor

from ..tree import root
from .adam_moments import require_moments, second_moment
from .alias import descent
from .arguments import Hyper, Schedule, cast, given, require_flag, require_hyper
from .base import Transform
from .clipping import squares
from .leafwise import Values, leafwise


def scale_by_belief(
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-16,
    eps_root: Hyper | Schedule = 1e-16,
    nesterov: bool = False,
) -> Transform:
    """AdaBelief's direction: small steps where gradients aren't what the moment expected.

        mu = b1 mu + (1 - b1) g,   nu = b2 nu + (1 - b2) (g - mu)^2 + eps_root
        u = mu / (sqrt(nu / (1 - b2^t)) + eps) / (1 - b1^t)

    With ``nesterov``, ``b1 mu / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)`` stands for ``mu / (1 -
    b1^t)``.

    Args:
        b1: decay of the first moment, float in [0, 1), 0-d tensor or schedule.
        b2: decay of the second moment, float in [0, 1), 0-d tensor or schedule.
        eps: float or 0-d tensor, not negative, or schedule.
        eps_root: float or 0-d tensor, not negative, or schedule; it adds up in ``nu``.
        nesterov: look ahead by one step.

    Returns:
        The transform; its state holds ``count``, ``mu`` and ``nu``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Zhuang et al. (2020), algorithm 2.
    """
    fn = "scale_by_belief"
    require_moments(fn, b1, b2, eps, eps_root)
    require_flag(fn, "nesterov", nesterov)

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        c = _corrected(h, t) | {"eps_root": h.eps_root}
        if nesterov:
            c |= {"old": h.b1 * (1 - h.b1**t) / (1 - h.b1 ** (t + 1))}
        return c

    def rule(c: Values, g: Tensor, p: Any, mu: Tensor, nu: Tensor) -> tuple[Tensor, ...]:
        mu = torch.lerp(mu, g, c.fresh1)
        nu = second_moment(nu, g - mu, c) + c.eps_root
        ahead = c.old * mu + c.fresh1 * g if nesterov else mu
        return ahead / (root(nu) * c.size + c.eps), mu, nu

    hyper = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    slots = {"mu": torch.zeros_like, "nu": torch.zeros_like}
    return leafwise(fn, rule, hyper=hyper, slots=slots, counted=True, prepare=prepare)


def scale_by_yogi(
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-3,
    eps_root: Hyper | Schedule = 0.0,
    initial_accumulator_value: Hyper = 1e-6,
) -> Transform:
    """Yogi's direction: a second moment that moves by no more than the square that comes.

        mu = b1 mu + (1 - b1) g,   nu = nu - (1 - b2) sign(nu - g^2) g^2
        u = mu / (sqrt(nu / (1 - b2^t) + eps_root) + eps) / (1 - b1^t)

    The sign's derivative is 0. Both moments begin at ``initial_accumulator_value``.

    Args:
        b1: decay of the first moment, float in [0, 1), 0-d tensor or schedule.
        b2: decay of the second moment, float in [0, 1), 0-d tensor or schedule.
        eps: float or 0-d tensor, not negative, or schedule.
        eps_root: float or 0-d tensor, not negative, or schedule.
        initial_accumulator_value: float or 0-d tensor, not negative.

    Returns:
        The transform; its state holds ``count``, ``mu`` and ``nu``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Zaheer et al. (2018), algorithm 2, with Adam's corrections.
    """
    fn, initial = "scale_by_yogi", initial_accumulator_value
    require_moments(fn, b1, b2, eps, eps_root)
    require_hyper(fn, "initial_accumulator_value", initial, low=0, schedule=False)
    rooted = given(eps_root)

    def start(leaf: Tensor) -> Tensor:
        parts = torch.view_as_real(leaf) if leaf.is_complex() else leaf
        filled = torch.zeros_like(parts) + cast(initial, parts)
        return torch.view_as_complex(filled) if leaf.is_complex() else filled

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        return _corrected(h, t) | {"eps_root": h.eps_root * (1 - h.b2**t)}

    def rule(c: Values, g: Tensor, p: Any, mu: Tensor, nu: Tensor) -> tuple[Tensor, ...]:
        mu, square = torch.lerp(mu, g, c.fresh1), g * g
        nu = nu - c.fresh2 * (nu - square).sign() * square
        return mu / (root(nu + c.eps_root if rooted else nu) * c.size + c.eps), mu, nu

    hyper = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    slots = {"mu": start, "nu": start}
    return leafwise(fn, rule, hyper=hyper, slots=slots, counted=True, prepare=prepare)


def _corrected(h: Values, t: Tensor) -> dict[str, Any]:
    """Coefficients of ``mu / (sqrt(nu) size + eps)``, with Adam's corrections taken together."""
    fix1, fix2 = 1 - h.b1**t, 1 - h.b2**t
    c = {"b2": h.b2, "fresh1": 1 - h.b1, "fresh2": 1 - h.b2}
    return c | {"size": fix1 / fix2.sqrt(), "eps": h.eps * fix1}


def scale_by_novograd(
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.25,
    eps: Hyper | Schedule = 1e-8,
    eps_root: Hyper | Schedule = 0.0,
    weight_decay: Hyper | Schedule = 0.0,
) -> Transform:
    """NovoGrad's direction: one second moment for each leaf.

        nu = b2 nu + (1 - b2) |g|^2,   nu_1 = |g_1|^2
        u = mu = b1 mu + g / (sqrt(nu + eps_root) + eps) + weight_decay p

    The root's derivatives are taken as 0 at 0.

    Args:
        b1: decay of the first moment, float in [0, 1), 0-d tensor or schedule.
        b2: decay of the second moment, float in [0, 1), 0-d tensor or schedule.
        eps: float or 0-d tensor, not negative, or schedule.
        eps_root: float or 0-d tensor, not negative, or schedule.
        weight_decay: float or 0-d tensor, not negative, or schedule; in the moment.

    Returns:
        The transform; its state holds ``count``, ``mu`` and ``nu``, which is real and 0-d for each
        leaf.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Ginsburg et al. (2019), algorithm 1, without its factor ``1 - b1``.
    """
    fn = "scale_by_novograd"
    require_moments(fn, b1, b2, eps, eps_root)
    require_hyper(fn, "weight_decay", weight_decay, low=0)
    decays = given(weight_decay)

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        fresh = torch.where(t == 1, torch.ones_like(t), 1 - h.b2)
        c = {"b1": h.b1, "b2": h.b2, "fresh": fresh, "eps": h.eps, "eps_root": h.eps_root}
        return c | {"weight_decay": h.weight_decay}

    def rule(c: Values, g: Tensor, p: Tensor, mu: Tensor, nu: Tensor) -> tuple[Tensor, ...]:
        nu = c.b2 * nu + c.fresh * squares(g).sum()
        step = g / (root(nu + c.eps_root) + c.eps)
        mu = c.b1 * mu + (step + c.weight_decay * p if decays else step)
        return mu, mu, nu

    hyper = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root, "weight_decay": weight_decay}
    slots = {"mu": torch.zeros_like, "nu": lambda leaf: squares(leaf).new_zeros(())}
    options = {"hyper": hyper, "slots": slots, "counted": True, "prepare": prepare}
    return leafwise(fn, rule, **options, scope="leaf", reads_params=True)


def adabelief(
    lr: Hyper | Schedule = 1e-3,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-16,
    eps_root: Hyper | Schedule = 1e-16,
    nesterov: bool = False,
) -> Transform:
    """AdaBelief: ``p - lr u``, with ``u`` from ``scale_by_belief``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_belief``.
        b2: as in ``scale_by_belief``.
        eps: as in ``scale_by_belief``.
        eps_root: as in ``scale_by_belief``.
        nesterov: as in ``scale_by_belief``.

    Returns:
        ``chain(belief=scale_by_belief(...), lr=scale_by_learning_rate(lr))``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Zhuang et al. (2020), algorithm 2.
    """
    belief = scale_by_belief(b1, b2, eps, eps_root, nesterov)
    return descent("adabelief", {"belief": belief}, lr)


def yogi(
    lr: Hyper | Schedule = 1e-2,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-3,
) -> Transform:
    """Yogi: ``p - lr u``, with ``u`` from ``scale_by_yogi``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_yogi``.
        b2: as in ``scale_by_yogi``.
        eps: as in ``scale_by_yogi``.

    Returns:
        ``chain(yogi=scale_by_yogi(...), lr=scale_by_learning_rate(lr))``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Zaheer et al. (2018), algorithm 2, with Adam's corrections.
    """
    return descent("yogi", {"yogi": scale_by_yogi(b1, b2, eps)}, lr)


def novograd(
    lr: Hyper | Schedule = 1e-2,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.25,
    eps: Hyper | Schedule = 1e-6,
    eps_root: Hyper | Schedule = 0.0,
    weight_decay: Hyper | Schedule = 0.0,
) -> Transform:
    """NovoGrad: ``p - lr u``, with ``u`` from ``scale_by_novograd``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_novograd``.
        b2: as in ``scale_by_novograd``.
        eps: as in ``scale_by_novograd``.
        eps_root: as in ``scale_by_novograd``.
        weight_decay: as in ``scale_by_novograd``.

    Returns:
        ``chain(novograd=scale_by_novograd(...), lr=scale_by_learning_rate(lr))``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Ginsburg et al. (2019), algorithm 1, without its factor ``1 - b1``.
    """
    direction = scale_by_novograd(b1, b2, eps, eps_root, weight_decay)
    return descent("novograd", {"novograd": direction}, lr)
