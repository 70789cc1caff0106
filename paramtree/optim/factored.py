"""Second moments of a matrix from those of its rows and its columns: Adafactor, in two laws."""

from typing import Any

import torch
from torch import Tensor

from ..tree import root
from .accepting import accepting, complex_leaf
from .arguments import (
    Hyper,
    Schedule,
    given,
    require_flag,
    require_hyper,
    require_int,
)
from .base import Transform
from .clipping import require_bound, squares
from .combine import chain
from .leafwise import Values, leafwise
from .transform import scale


def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: Hyper | Schedule = 0.8,
    step_offset: int = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: Hyper | Schedule = 1e-30,
) -> Transform:
    """Gradients over their root mean squares, which a large leaf keeps for rows and columns alone.

        d = 1 - (t - step_offset)^-decay_rate,   s = g^2 + epsilon
        v_row = d v_row + (1 - d) mean of s over the longest dim,   v_col likewise over the second
        u = g sqrt(mean(v_row) / v_row) / sqrt(v_col)

    A leaf with fewer than two dims, or whose second longest is below ``min_dim_size_to_factor``,
    has ``v = d v + (1 - d) s`` and ``u = g / sqrt(v)``. A root's derivatives are taken as 0 where
    no gradient but 0 has come so far.

    Args:
        factored: whether there is anything in rows and columns.
        decay_rate: exponent, float or 0-d tensor, not negative, or schedule.
        step_offset: steps that are taken from the count, as for a count that comes from before.
        min_dim_size_to_factor: at least 1.
        epsilon: float or 0-d tensor, positive, or schedule.

    Returns:
        The transform; its state holds ``count``, ``v_row``, ``v_col`` and ``v``, real, those that a
        leaf has no use for with shape [0].

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Shazeer & Stern (2018), algorithm 4, without its clipping and its step sizes.
    """
    fn = "scale_by_factored_rms"
    require_flag(fn, "factored", factored)
    require_hyper(fn, "decay_rate", decay_rate, low=0)
    require_int(fn, "step_offset", step_offset)
    require_int(fn, "min_dim_size_to_factor", min_dim_size_to_factor, low=1)
    require_bound(fn, "epsilon", epsilon)

    def dims(x: Tensor) -> tuple[int, int] | None:
        """The second longest dim and the longest, the later one of two that are equal."""
        if not factored or x.ndim < 2:
            return None
        *_, second, longest = sorted(range(x.ndim), key=lambda dim: x.shape[dim])
        return (second, longest) if x.shape[second] >= min_dim_size_to_factor else None

    def start(which: int) -> Any:
        def zeros(leaf: Tensor) -> Tensor:
            pair, like = dims(leaf), squares(leaf)
            if (pair is None) != (which == 2):
                return like.new_zeros(0)
            return torch.zeros_like(like if pair is None else like.sum(pair[1 - which]))

        return zeros

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        return {"fresh": (t - step_offset) ** -h.decay_rate, "epsilon": h.epsilon}

    def rule(
        c: Values, g: Tensor, p: Any, row: Tensor, column: Tensor, v: Tensor
    ) -> tuple[Tensor, ...]:
        pair, s = dims(g), squares(g) + c.epsilon
        if pair is None:
            v = torch.lerp(v, s, c.fresh)
            return g * _power(v, -0.5, c.epsilon), row, column, v
        second, longest = pair
        row = torch.lerp(row, s.mean(longest), c.fresh)
        column = torch.lerp(column, s.mean(second), c.fresh)
        within = second - 1 if second > longest else second  # that dim of the rows
        whole = _power(row.mean(within, keepdim=True), 0.5, c.epsilon)
        rows = (whole * _power(row, -0.5, c.epsilon)).unsqueeze(longest)
        return g * rows * _power(column, -0.5, c.epsilon).unsqueeze(second), row, column, v

    hyper = {"decay_rate": decay_rate, "epsilon": epsilon}
    slots = {"v_row": start(0), "v_col": start(1), "v": start(2)}
    options = {"hyper": hyper, "slots": slots, "counted": True, "prepare": prepare}
    return leafwise(fn, rule, **options, scope="leaf")


def _power(v: Tensor, exponent: float, least: Hyper) -> Tensor:
    """``v^exponent``, a constant where ``v`` is ``least`` alone and its powers may overflow."""
    above = v > (least.clamp(max=1e-12) if isinstance(least, Tensor) else min(least, 1e-12))
    return torch.where(above, torch.where(above, v, 1.0) ** exponent, v.detach() ** exponent)


def adafactor(
    lr: Hyper | Schedule = 1e-2,
    beta2_decay: Hyper | Schedule = -0.8,
    eps: tuple[Hyper | Schedule | None, Hyper | Schedule] = (None, 1e-3),
    d: Hyper | Schedule = 1.0,
    weight_decay: Hyper | Schedule = 0.0,
    maximize: bool = False,
) -> Transform:
    """Adafactor, with torch's numbers.

        s = t^beta2_decay,   alpha = max(eps_2, rms(p)) min(lr, 1 / sqrt(t))
        R = (1 - s) R + s mean(g^2) over the last dim,   C likewise over the one before it
        V = R C / max(mean R, eps_1),   for vectors V = (1 - s) V + s g^2
        U = g / max(sqrt(V), eps_1)
        p = p (1 - lr weight_decay) - alpha U / max(1, rms(U) / d)

    A root's derivatives are taken as 0 at 0. optax's law is ``scale_by_factored_rms`` in a chain.

    Args:
        lr: bound of the step relative to the params, float or 0-d tensor, not negative, or a
            schedule of it.
        beta2_decay: exponent of the decay, float or 0-d tensor, not positive, or schedule.
        eps: two of float, 0-d tensor, not negative, or schedule; None for the first is the machine
            epsilon of the leaf's dtype, float32's for half-precision leaves.
        d: bound of the root mean square of ``U``, float at least 1, 0-d tensor or schedule.
        weight_decay: float or 0-d tensor, not negative, or schedule; decoupled.
        maximize: ascend; the weights decay all the same.

    Returns:
        The transform; ``state["adafactor"]`` holds ``count``, ``row_var``, ``col_var`` and
        ``variance``, those that a leaf has no use for with shape [0].

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind; later, in ``init`` and ``update``: a leaf is
            complex.

    Reference: Shazeer & Stern (2018), algorithms 4 and 5, in torch's form.
    """
    fn = "adafactor"
    eps1, eps2 = _require_adafactor(lr, beta2_decay, eps, d, weight_decay)
    require_flag(fn, "maximize", maximize)
    decays = given(weight_decay)

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        bound = t**-0.5
        c = {"fresh": t**h.beta2_decay, "rate": -torch.where(bound < h.lr, bound, h.lr)}
        own = {"decay": h.lr * h.weight_decay, "d": h.d, "eps2": h.eps2}
        return c | own | ({} if eps1 is None else {"eps1": h.eps1})

    def rule(
        c: Values, g: Tensor, p: Tensor, row: Tensor, column: Tensor, variance: Tensor
    ) -> tuple[Tensor, ...]:
        least = torch.finfo(g.dtype).eps if eps1 is None else c.eps1
        if g.ndim > 1:
            row = torch.lerp(row, _mean(g * g, -1), c.fresh)
            column = torch.lerp(column, _mean(g * g, -2), c.fresh)
            v = row @ column / _at_least(_mean(row, -2), least)
        else:
            v = variance = torch.lerp(variance, g * g, c.fresh)
        u = g * _at_least(v, least * least).rsqrt()
        size = _at_least(_rms(p), c.eps2) / _at_least(_rms(u) / c.d, 1.0)
        u = c.rate * size * u
        return (u - c.decay * p if decays else u), row, column, variance

    hyper = {"lr": lr, "beta2_decay": beta2_decay, "eps2": eps2, "d": d}
    hyper |= {"weight_decay": weight_decay} | ({} if eps1 is None else {"eps1": eps1})
    slots = {
        "row_var": lambda x: torch.zeros_like(_mean(x, -1)) if x.ndim > 1 else x.new_zeros(0),
        "col_var": lambda x: torch.zeros_like(_mean(x, -2)) if x.ndim > 1 else x.new_zeros(0),
        "variance": lambda x: x.new_zeros(0) if x.ndim > 1 else torch.zeros_like(x),
    }
    options = {"hyper": hyper, "slots": slots, "counted": True, "prepare": prepare}
    own = accepting(leafwise(fn, rule, **options, scope="leaf", reads_params=True), complex_leaf)
    return chain(**({"ascent": scale(-1.0)} if maximize else {}), adafactor=own)


def _require_adafactor(
    lr: Any, beta2_decay: Any, eps: Any, d: Any, weight_decay: Any
) -> tuple[Any, Any]:
    fn = "adafactor"
    require_hyper(fn, "lr", lr, low=0)
    require_hyper(fn, "beta2_decay", beta2_decay)
    if isinstance(beta2_decay, int | float) and beta2_decay > 0:
        raise ValueError(f"{fn}: beta2_decay is {beta2_decay}, expected at most 0")
    if not isinstance(eps, tuple | list) or len(eps) != 2:
        raise TypeError(f"{fn}: eps is {eps!r}, expected a pair such as (None, 1e-3)")
    if eps[0] is not None:
        require_hyper(fn, "eps[0]", eps[0], low=0)
    require_hyper(fn, "eps[1]", eps[1], low=0)
    require_hyper(fn, "d", d, low=1)
    require_hyper(fn, "weight_decay", weight_decay, low=0)
    return eps[0], eps[1]


def _mean(x: Tensor, dim: int) -> Tensor:
    return x.sum(dim, keepdim=True) / max(x.shape[dim], 1)  # no NaN for an empty one


def _rms(x: Tensor) -> Tensor:
    return root((x * x).sum() / max(x.numel(), 1))


def _at_least(x: Tensor, least: Hyper) -> Tensor:
    return torch.where(x > least, x, least)
