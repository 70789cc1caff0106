"""Optimizers that keep no more than the sign of a direction.

A sign's derivative is 0 wherever it has one, and is taken as 0 at 0: no gradient with respect to
earlier gradients, parameters or decays goes through it. What is left are the derivatives with
respect to the rate and to the decay of the weights.
"""

from typing import Any

import torch
from torch import Tensor

from .alias import descent
from .arguments import Hyper, Schedule, require_hyper
from .base import Transform
from .leafwise import Values, leafwise


def scale_by_sign() -> Transform:
    """Signs of the gradient: ``u = sign(g)``; its derivative is 0.

    NaN stays NaN. Of a complex leaf it's the signs of the real and of the imaginary parts.

    Returns:
        The transform, without a state.

    Reference: Bernstein et al. (2018), algorithm 1.
    """
    return leafwise("scale_by_sign", lambda c, g, p: _sign(g))


def scale_by_lion(b1: Hyper | Schedule = 0.9, b2: Hyper | Schedule = 0.99) -> Transform:
    """Lion's direction; its derivative is 0.

        u = sign(b1 mu + (1 - b1) g),   mu = b2 mu + (1 - b2) g

    NaN stays NaN. Of a complex leaf it's the signs of the real and of the imaginary parts.

    Args:
        b1: weight of the moment in the direction, float in [0, 1), 0-d tensor or schedule.
        b2: decay of the moment, float in [0, 1), 0-d tensor or schedule.

    Returns:
        The transform; its state holds ``mu``, and ``count`` where there is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Chen et al. (2023), algorithm 2.
    """
    require_hyper("scale_by_lion", "b1", b1, low=0, below=1)
    require_hyper("scale_by_lion", "b2", b2, low=0, below=1)

    def prepare(h: Values, t: Any) -> dict[str, Any]:
        return {"b1": h.b1, "fresh1": 1 - h.b1, "b2": h.b2, "fresh2": 1 - h.b2}

    def rule(c: Values, g: Tensor, p: Any, mu: Tensor) -> tuple[Tensor, Tensor]:
        return _sign(c.b1 * mu + c.fresh1 * g), c.b2 * mu + c.fresh2 * g

    hyper, slots = {"b1": b1, "b2": b2}, {"mu": torch.zeros_like}
    return leafwise("scale_by_lion", rule, hyper=hyper, slots=slots, prepare=prepare)


def _sign(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), x, x.sign())  # torch's sign of NaN is 0


def lion(
    lr: Hyper | Schedule = 1e-4,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.99,
    weight_decay: Hyper | Schedule = 0.0,
) -> Transform:
    """Lion: ``p (1 - lr weight_decay) - lr u``, with ``u`` from ``scale_by_lion``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_lion``.
        b2: as in ``scale_by_lion``.
        weight_decay: float or 0-d tensor, not negative, or schedule; decoupled.

    Returns:
        ``chain(lion=scale_by_lion(...), decay=add_decayed_weights(weight_decay),
        lr=scale_by_learning_rate(lr))``, with decay only where its number isn't 0.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Chen et al. (2023), algorithm 2.
    """
    return descent("lion", {"lion": scale_by_lion(b1, b2)}, lr, weight_decay, decoupled=True)
