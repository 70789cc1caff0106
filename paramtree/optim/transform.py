"""The plain pieces of optimizers, each one a ``Transform``: factors, weight decay, momentum."""

from typing import Any

import torch
from torch import Tensor

from .arguments import Hyper, Schedule, given, require_flag, require_hyper
from .base import Transform
from .leafwise import Values, leafwise


def scale(factor: Hyper | Schedule) -> Transform:
    """Updates times a factor: ``u = factor g``.

    Args:
        factor: float, 0-d tensor or schedule.

    Returns:
        The transform; it has a state, ``count``, only where the factor is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or the number isn't finite.
        TypeError: the factor is of another kind.
    """
    require_hyper("scale", "factor", factor)
    return leafwise("scale", _times, hyper={"factor": factor})


def scale_by_schedule(schedule: Schedule) -> Transform:
    """Updates times a factor that changes with the step: ``u = schedule(count) g``.

    Args:
        schedule: function of the 0-d int64 count of the updates before this one.

    Returns:
        The transform; its state holds ``count``.

    Raises:
        TypeError: the schedule isn't a function; later, in ``update``: it gave no number.
        ValueError: later, in ``update``: it gave a tensor that isn't 0-d.
    """
    if isinstance(schedule, Tensor) or not callable(schedule):
        kind = type(schedule).__name__
        raise TypeError(
            f"scale_by_schedule: schedule is a {kind}, expected a function of the count"
        )
    return leafwise("scale_by_schedule", _times, hyper={"factor": schedule})


def _times(c: Values, g: Tensor, p: Any) -> Tensor:
    return g * c.factor


def scale_by_learning_rate(lr: Hyper | Schedule) -> Transform:
    """The end of a chain that descends: ``u = -lr g``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.

    Returns:
        The transform; it has a state, ``count``, only where the rate is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or the number is negative.
        TypeError: the rate is of another kind.
    """
    require_hyper("scale_by_learning_rate", "lr", lr, low=0)

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:  # what a schedule gave is seen here first
        require_hyper("scale_by_learning_rate", "lr", h.lr, low=0, schedule=False)
        return {"lr": h.lr}

    def rule(c: Values, g: Tensor, p: Any) -> Tensor:
        return g * -c.lr

    options = {"prepare": prepare, "kernel": "rate"}
    return leafwise("scale_by_learning_rate", rule, hyper={"lr": lr}, **options)


def identity() -> Transform:
    """Updates as they are: ``u = g``.

    Returns:
        The transform, without a state.
    """
    return leafwise("identity", lambda c, g, p: g)


def set_to_zero() -> Transform:
    """No update: ``u = 0``, what ``partition`` gives to the parts that stay as they are.

    Returns:
        The transform, without a state.
    """
    return leafwise("set_to_zero", lambda c, g, p: torch.zeros_like(g))


def add_decayed_weights(weight_decay: Hyper | Schedule) -> Transform:
    """Weight decay: ``u = g + weight_decay p``.

    Before the moments it is torch's L2 penalty, after them (and before the rate) AdamW's decay.

    Args:
        weight_decay: float or 0-d tensor, not negative, or a schedule of it.

    Returns:
        The transform; it has a state, ``count``, only where the decay is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or the number is negative.
        TypeError: the argument is of another kind.
    """
    require_hyper("add_decayed_weights", "weight_decay", weight_decay, low=0)

    def rule(c: Values, g: Tensor, p: Tensor) -> Tensor:
        return plus(g, p, c.weight_decay)

    hyper = {"weight_decay": weight_decay}
    fn = "add_decayed_weights"
    return leafwise(fn, rule, hyper=hyper, reads_params=True, kernel="decay")


def trace(
    momentum: Hyper | Schedule, dampening: Hyper | Schedule = 0.0, nesterov: bool = False
) -> Transform:
    """Momentum as in torch's SGD: ``t_1 = g_1``, then ``t = momentum t + (1 - dampening) g``.

    The update is ``t``, or ``g + momentum t`` with ``nesterov``. The first step has no dampening.

    Args:
        momentum: float or 0-d tensor, not negative, or a schedule of it.
        dampening: float, 0-d tensor or schedule.
        nesterov: look ahead by one step; without dampening.

    Returns:
        The transform; its state holds ``count`` and ``trace``, zeros at first.

    Raises:
        ValueError: a tensor isn't 0-d, a number is out of range, or ``nesterov`` comes with
            dampening.
        TypeError: an argument is of another kind.

    Reference: Sutskever, Martens, Dahl & Hinton (2013), section 2, in torch's form.
    """
    require_hyper("trace", "momentum", momentum, low=0)
    require_hyper("trace", "dampening", dampening)
    require_flag("trace", "nesterov", nesterov)
    dampened = given(dampening)
    if nesterov and dampened:
        raise ValueError(f"trace: dampening is {dampening}, expected 0.0 with nesterov=True")

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        later = 1 - h.dampening
        fresh = torch.where(t == 1, torch.ones_like(t), later) if dampened else 1.0
        return {"momentum": h.momentum, "fresh": fresh}

    def rule(c: Values, g: Tensor, p: Any, t: Tensor) -> tuple[Tensor, Tensor]:
        t = plus(g * c.fresh if dampened else g, t, c.momentum)
        return (plus(g, t, c.momentum) if nesterov else t), t

    hyper, slots = {"momentum": momentum, "dampening": dampening}, {"trace": torch.zeros_like}
    kernel = "" if dampened else "nesterov" if nesterov else "momentum"
    options = {"counted": True, "prepare": prepare, "kernel": kernel}
    return leafwise("trace", rule, hyper=hyper, slots=slots, **options)


def ema(decay: Hyper | Schedule, debias: bool = True) -> Transform:
    """Mean of the gradients so far, later ones weighing more: ``m = decay m + (1 - decay) g``.

    Args:
        decay: float in [0, 1), 0-d tensor or schedule.
        debias: whether the update is ``m / (1 - decay^t)`` and not ``m``.

    Returns:
        The transform; its state holds ``count`` and ``ema``.

    Raises:
        ValueError: a tensor isn't 0-d, or the number is out of range.
        TypeError: an argument is of another kind.

    Reference: Kingma & Ba (2015), section 3.
    """
    require_hyper("ema", "decay", decay, low=0, below=1)
    require_flag("ema", "debias", debias)

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        return {"fresh": 1 - h.decay, "fix": 1 - h.decay**t}

    def rule(c: Values, g: Tensor, p: Any, m: Tensor) -> tuple[Tensor, Tensor]:
        m = torch.lerp(m, g, c.fresh)
        return (m / c.fix if debias else m), m

    slots = {"ema": torch.zeros_like}
    return leafwise("ema", rule, hyper={"decay": decay}, slots=slots, counted=True, prepare=prepare)


def plus(x: Tensor, y: Tensor, factor: Hyper) -> Tensor:
    """``x + factor y`` in one operation where the factor is a number.

    Args:
        x: any shape.
        y: the same shape.
        factor: float or 0-d tensor.

    Returns:
        The same shape.
    """
    return x + factor * y if isinstance(factor, Tensor) else torch.add(x, y, alpha=factor)
