"""The pieces of optimizers, each one a ``Transform``: factors, weight decay, clipping, moments."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..tree import new, norm, root, unflatten
from .base import Schedule, Step, Transform, Tree, stateless
from .leafwise import (
    Hyper,
    Leaves,
    added,
    aligned,
    alike,
    cast,
    parts,
    require_hyper,
    scaled,
    wide,
    zero_count,
    zeros,
)


def scale(factor: Hyper) -> Transform:
    """Updates times a factor: ``u = factor g``; ``scale(-lr)`` ends a chain that descends.

    Args:
        factor: float or 0-d tensor.

    Returns:
        The transform, without a state.

    Raises:
        ValueError: a tensor isn't 0-d, or the number isn't finite.
        TypeError: the factor is of another kind.
    """
    require_hyper("scale", "factor", factor)

    def fn(grads: Tree, params: Tree) -> TensorDict:
        (_, g), structure = aligned("scale", params, grads=grads)
        return unflatten(structure, scaled(g, factor))

    return stateless(fn)


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
    fn = "scale_by_schedule"
    if not callable(schedule):
        kind = type(schedule).__name__
        raise TypeError(f"{fn}: schedule is a {kind}, expected a function of the count")

    def init(params: Tree) -> TensorDict:
        (leaves,), _ = aligned(fn, params)
        return new({"count": zero_count(leaves)})

    def update(grads: Tree, state: Tree, params: Tree) -> Step:
        (count,) = parts(fn, state, "count")
        (_, g), structure = aligned(fn, params, grads=grads)
        factor = schedule(count)
        require_hyper(fn, "the schedule's value", factor)
        return unflatten(structure, scaled(g, factor)), new({"count": count + 1})

    return Transform(init, update)


def add_decayed_weights(weight_decay: Hyper) -> Transform:
    """Weight decay: ``u = g + weight_decay p``.

    Before the moments it is torch's L2 penalty, after them (and before the rate) AdamW's decay.

    Args:
        weight_decay: float or 0-d tensor, not negative.

    Returns:
        The transform, without a state.

    Raises:
        ValueError: a tensor isn't 0-d, or the number is negative.
        TypeError: the argument is of another kind.
    """
    require_hyper("add_decayed_weights", "weight_decay", weight_decay, low=0)

    def fn(grads: Tree, params: Tree) -> TensorDict:
        (p, g), structure = aligned("add_decayed_weights", params, grads=grads)
        return unflatten(structure, added(g, p, weight_decay))

    return stateless(fn)


def clip_by_global_norm(max_norm: Hyper) -> Transform:
    """Updates scaled down where the norm of all leaves together is above a bound.

        u = g max_norm / |g|  where |g| > max_norm,  else g

    This is optax's law. torch's ``clip_grad_norm_`` multiplies by ``max_norm / (|g| + 1e-6)`` where
    that is below 1, so a gradient that it clips ends up a little shorter than ``max_norm``. A zero
    gradient stays zero, and its derivatives are finite.

    Args:
        max_norm: float or 0-d tensor, positive.

    Returns:
        The transform, without a state.

    Raises:
        ValueError: a tensor isn't 0-d, or the number isn't positive.
        TypeError: the argument is of another kind.
    """
    require_hyper("clip_by_global_norm", "max_norm", max_norm, low=0)
    if not isinstance(max_norm, Tensor) and max_norm == 0:
        raise ValueError(
            "clip_by_global_norm: max_norm is 0, expected more; scale(0.0) gives zeros"
        )

    def fn(grads: Tree, params: Tree) -> TensorDict:
        (_, g), structure = aligned("clip_by_global_norm", params, grads=grads)
        size = norm(grads)
        above = size > max_norm
        factor = torch.where(above, max_norm / torch.where(above, size, 1.0), 1.0)
        return unflatten(structure, scaled(g, factor))

    return stateless(fn)


def trace(momentum: Hyper, dampening: Hyper = 0.0, nesterov: bool = False) -> Transform:
    """Momentum as in torch's SGD: ``t_1 = g_1``, then ``t = momentum t + (1 - dampening) g``.

    The update is ``t``, or ``g + momentum t`` with ``nesterov``. The first step has no dampening.

    Args:
        momentum: float or 0-d tensor, not negative.
        dampening: float or 0-d tensor.
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
    dampened = isinstance(dampening, Tensor) or dampening != 0
    if nesterov and dampened:
        raise ValueError(f"trace: dampening is {dampening}, expected 0.0 with nesterov=True")

    def init(params: Tree) -> TensorDict:
        (leaves,), structure = aligned("trace", params)
        return new({"count": zero_count(leaves), "trace": zeros(structure, leaves)})

    def update(grads: Tree, state: Tree, params: Tree) -> Step:
        count, before = parts("trace", state, "count", "trace")
        (_, g, t), structure = aligned("trace", params, grads=grads, **{"state['trace']": before})
        if dampened:
            first = torch.ones_like(wide(count))
            t = added(scaled(g, torch.where(count == 0, first, 1 - dampening)), t, momentum)
        else:
            t = added(g, t, momentum)
        updates = added(g, t, momentum) if nesterov else t
        after = new({"count": count + 1, "trace": unflatten(structure, t)})
        return unflatten(structure, updates), after

    return Transform(init, update)


def scale_by_adam(
    b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8, eps_root: Hyper = 0.0
) -> Transform:
    """Adam's direction, with torch's numbers.

        mu = b1 mu + (1 - b1) g,   nu = b2 nu + (1 - b2) g^2
        u = mu / (sqrt(nu / (1 - b2^t) + eps_root) + eps) / (1 - b1^t)

    The square root's derivatives are taken as 0 at 0, so that no gradient through it is NaN.

    Args:
        b1: decay of the first moment, float in [0, 1) or 0-d tensor.
        b2: decay of the second moment, float in [0, 1) or 0-d tensor.
        eps: float or 0-d tensor, not negative.
        eps_root: float or 0-d tensor, not negative; a little of it keeps meta-gradients bounded
            where gradients come close to 0.

    Returns:
        The transform; its state holds ``count``, ``mu`` and ``nu``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Kingma & Ba (2015), algorithm 1.
    """
    fn = "scale_by_adam"
    require_hyper(fn, "b1", b1, low=0, below=1)
    require_hyper(fn, "b2", b2, low=0, below=1)
    require_hyper(fn, "eps", eps, low=0)
    require_hyper(fn, "eps_root", eps_root, low=0)
    numbers = not any([isinstance(value, Tensor) for value in (b1, b2, eps, eps_root)])

    def init(params: Tree) -> TensorDict:
        (leaves,), structure = aligned(fn, params)
        moments = {name: zeros(structure, leaves) for name in ("mu", "nu")}
        return new({"count": zero_count(leaves), **moments})

    def update(grads: Tree, state: Tree, params: Tree) -> Step:
        count, mu, nu = parts(fn, state, "count", "mu", "nu")
        trees = {"grads": grads, "state['mu']": mu, "state['nu']": nu}
        (_, g, mu, nu), structure = aligned(fn, params, **trees)
        count = count + 1
        fix = (1 - b1 ** wide(count), 1 - b2 ** wide(count))
        step: Any = _adam_at_once if numbers and alike(g, mu, nu) else _adam_by_leaf
        u, mu, nu = step(g, mu, nu, fix, (b1, b2, eps, eps_root))
        moments = {"mu": unflatten(structure, mu), "nu": unflatten(structure, nu)}
        return unflatten(structure, u), new({"count": count, **moments})

    return Transform(init, update)


def _adam_by_leaf(
    g: Leaves, mu: Leaves, nu: Leaves, fix: tuple[Tensor, Tensor], hyper: tuple[Hyper, ...]
) -> tuple[Leaves, Leaves, Leaves]:
    b1, b2, eps, eps_root = hyper
    updates, mus, nus = [], [], []
    for x, m, v in zip(g, mu, nu, strict=True):
        m = torch.lerp(m, x, cast(1 - b1, x))
        if isinstance(b2, Tensor):
            v = cast(b2, x) * v + cast(1 - b2, x) * x * x
        else:
            v = torch.addcmul(v * b2, x, x, value=1 - b2)
        square = v / cast(fix[1], x)
        if isinstance(eps_root, Tensor) or eps_root:
            square = square + cast(eps_root, x)
        updates.append(m / (root(square) + cast(eps, x)) / cast(fix[0], x))
        mus.append(m)
        nus.append(v)
    return updates, mus, nus


def _adam_at_once(
    g: Leaves, mu: Leaves, nu: Leaves, fix: tuple[Tensor, Tensor], hyper: tuple[float, ...]
) -> tuple[Leaves, Leaves, Leaves]:
    """As ``_adam_by_leaf``, in two thirds of its time; what is written to was made here."""
    b1, b2, eps, eps_root = hyper
    fix1, fix2 = [each.to(g[0].dtype) for each in fix]
    mu = torch._foreach_lerp(mu, g, 1 - b1)
    nu = torch._foreach_mul(nu, b2)
    torch._foreach_addcmul_(nu, g, g, 1 - b2)
    updates = torch._foreach_div(nu, fix2)
    if eps_root:
        torch._foreach_add_(updates, eps_root)
    torch._foreach_sqrt_(updates)
    torch._foreach_add_(updates, eps)
    for m, size in zip(mu, updates, strict=True):
        torch.div(m, size, out=size)
    torch._foreach_div_(updates, fix1)
    return updates, mu, nu
