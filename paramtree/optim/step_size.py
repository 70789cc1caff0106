"""Step sizes of their own: Rprop's, one for each number, and ASGD's, which fall with the steps."""

from typing import Any

import torch
from torch import Tensor

from .arguments import Hyper, Schedule, at_count, require_hyper, zero_count
from .base import Transform
from .leafwise import Values, leafwise
from .rms import filled


def scale_by_rprop(
    lr: Hyper | Schedule = 1e-2,
    eta_minus: Hyper | Schedule = 0.5,
    eta_plus: Hyper | Schedule = 1.2,
    step_min: Hyper | Schedule = 1e-6,
    step_max: Hyper | Schedule = 50.0,
) -> Transform:
    """Rprop's steps: the sign of the gradient times a size that signs alone change.

        eta = eta_plus where g previous > 0,  eta_minus where g previous < 0,  1 elsewhere
        step_size = min(max(eta step_size, step_min), step_max)
        previous = 0 where g previous < 0,  g elsewhere
        u = step_size sign(previous)

    A sign's derivative is 0, so none goes through the gradients: those in ``lr``, the factors and
    the bounds are right, and what reaches earlier params comes through the updates alone.

    Args:
        lr: first step size, float or 0-d tensor, not negative, or a schedule, which is asked for
            its first value alone.
        eta_minus: factor where the sign has changed, float in [0, 1), 0-d tensor or schedule.
        eta_plus: factor where it hasn't, float from 1 on, 0-d tensor or schedule.
        step_min: least step size, float or 0-d tensor, not negative, or schedule.
        step_max: largest step size, float from ``step_min`` on, 0-d tensor or schedule.

    Returns:
        The transform; its state holds ``previous`` and ``step_size``, and ``count`` where there is
        a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Riedmiller & Braun (1993), section 2, without weight backtracking, as torch has it.
    """
    fn = "scale_by_rprop"
    require_hyper(fn, "lr", lr, low=0)
    require_hyper(fn, "eta_minus", eta_minus, low=0, below=1)
    require_hyper(fn, "eta_plus", eta_plus, low=1)
    require_hyper(fn, "step_min", step_min, low=0)
    require_hyper(
        fn, "step_max", step_max, low=step_min if isinstance(step_min, int | float) else 0
    )

    def rule(c: Values, g: Tensor, p: Any, previous: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        product = g * previous
        same, turned = product > 0, product < 0
        size = torch.where(same, size * c.eta_plus, torch.where(turned, size * c.eta_minus, size))
        size = size.clamp(min=c.step_min).clamp(max=c.step_max)
        g = torch.where(turned, 0.0, g)
        return size * g.sign(), g, size

    hyper = {
        "eta_minus": eta_minus,
        "eta_plus": eta_plus,
        "step_min": step_min,
        "step_max": step_max,
    }

    def first(leaf: Tensor) -> Tensor:
        return filled(at_count(fn, "lr", lr, zero_count([leaf])))(leaf)

    slots = {"previous": torch.zeros_like, "step_size": first}
    return leafwise(fn, rule, hyper=hyper, slots=slots)


def averaged_descent(
    lr: Hyper | Schedule,
    lambd: Hyper | Schedule,
    alpha: Hyper | Schedule,
    t0: Hyper | Schedule,
) -> Transform:
    """ASGD's step, sign and rate in it, and the mean of the params after each; ends a chain.

        eta = lr / (1 + lambd lr (t - 1))^alpha
        u = -eta (g + lambd p)
        average = average + (p + u - average) / max(1, t - 1 - t0)

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        lambd: decay, float or 0-d tensor, not negative, or schedule.
        alpha: power with which the rate falls, float or 0-d tensor, not negative, or schedule.
        t0: steps before the average begins, float or 0-d tensor, not negative, or schedule.

    Returns:
        The transform; its state holds ``count`` and ``average``, zeros at first.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.
    """
    hyper = {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0}
    for name, value in hyper.items():
        require_hyper("asgd", name, value, low=0)

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        eta = h.lr / (1 + h.lambd * h.lr * (t - 1)) ** h.alpha
        return {"eta": eta, "lambd": h.lambd, "fresh": 1 / (t - 1 - h.t0).clamp(min=1)}

    def rule(c: Values, g: Tensor, p: Tensor, average: Tensor) -> tuple[Tensor, Tensor]:
        u = -c.eta * (g + c.lambd * p)
        return u, torch.lerp(average, p + u, c.fresh)

    slots = {"average": torch.zeros_like}
    return leafwise(
        "asgd", rule, hyper=hyper, slots=slots, counted=True, prepare=prepare, reads_params=True
    )
