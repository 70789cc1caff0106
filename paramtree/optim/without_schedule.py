"""Optimizers without a schedule: an average of the iterates takes the place of a falling rate.

    z   the sequence that the base optimizer moves
    x   its weighted average, for evaluation
    y   the params, between the two, at which gradients are taken:  y = (1 - b1) z + b1 x

Only y and z are kept; x is what ``schedule_free_eval_params`` makes of them.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree
from .alias import adamw, sgd
from .arguments import (
    Hyper,
    Schedule,
    Tree,
    aligned,
    at_count,
    cast,
    number,
    parameters,
    parts,
    require_hyper,
    require_int,
    wide,
    zero_count,
)
from .base import Step, Transform, require_transform, updated
from .leafwise import Work
from .schedule import linear

NAMES = ("count", "b1", "weight_sum", "max_lr", "z", "base")


def schedule_free(
    base: Transform,
    lr: Hyper | Schedule,
    b1: Hyper | Schedule = 0.9,
    weight_lr_power: Hyper | Schedule = 2.0,
) -> Transform:
    """A base optimizer whose momentum is an interpolation with the average of its iterates.

        z' = z + base(g),   w = max(lr so far)^weight_lr_power,   c = w / (sum of the w so far)
        x' = (1 - c) x + c z',   p' = (1 - b1) z' + b1 x'

    The gradient is the one at the params p; the base optimizer, which sees them, is to have no
    momentum of its own. The law is optax's: a schedule of the rate, which here makes weights only,
    is asked for the step that follows, ``lr(count + 1)``. The updates are to be applied as they
    come, so of a chain this is the last link.

    Args:
        base: the transform, with the sign and the rate in its updates, such as ``sgd(lr)``.
        lr: its learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: weight of the average, float above 0 and at most 1, 0-d tensor or schedule.
        weight_lr_power: power of the rate that iterates are averaged with; float or 0-d tensor, not
            negative, or schedule; 0 makes it the plain mean.

    Returns:
        The transform; its state holds ``count``, ``b1`` (the one that the params are made with),
        ``weight_sum``, ``max_lr``, ``z`` and ``base``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Defazio et al. (2024), equations 9 to 11, with the weights of their code.
    """
    fn = "schedule_free"
    require_transform(fn, "base", base)
    require_hyper(fn, "lr", lr, low=0)
    _require_b1(fn, b1)
    require_hyper(fn, "weight_lr_power", weight_lr_power, low=0)

    def init(params: Tree) -> TensorDict:
        leaves, structure = parameters(fn, params)
        count = zero_count(leaves)
        z = [x.clone() for x in Work(leaves, structure).params]
        zeros = [wide(count) for _ in range(2)]
        first = number(at_count(fn, "b1", b1, count), count)
        values = (count, first, *zeros, tree.unflatten(structure, z), base.init(params))
        return tree.new(dict(zip(NAMES, values, strict=True)))

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        count, old_b1, weight_sum, max_lr, z_tree, before = parts(fn, state, *NAMES)
        updates, after = updated(base, grads, before, params, extra)
        (leaves, u), structure = aligned(fn, params, updates=updates)
        work = Work(leaves, structure)
        z = work.read(fn, "state['z']", z_tree, exact=True)
        rate = number(at_count(fn, "lr", lr, count + 1), count).to(max_lr.dtype)
        max_lr = torch.maximum(max_lr, rate)
        power = at_count(fn, "weight_lr_power", weight_lr_power, count)
        some = max_lr > 0  # 0 to a power has derivatives that aren't finite
        nothing = (number(power, count) == 0).to(max_lr.dtype)
        weight = torch.where(some, torch.where(some, max_lr, 1.0) ** power, nothing)
        weight_sum = weight_sum + weight
        none = weight_sum == 0  # all rates so far were 0
        c = torch.where(none, 0.0, weight / torch.where(none, 1.0, weight_sum))
        new_b1 = number(at_count(fn, "b1", b1, count), count)
        moved, new_z = [], []
        for y, own, step in zip(work.params, z, work.pack(u), strict=True):
            x = _average(y, own, old_b1)
            own = own + step
            x = x + cast(c, y) * (own - x)
            moved.append(own + cast(new_b1, y) * (x - own) - y)
            new_z.append(own)
        moved = [x.to(leaf.dtype) for x, leaf in zip(moved, leaves, strict=True)]
        values = (count + 1, new_b1, weight_sum, max_lr, tree.unflatten(structure, new_z), after)
        return tree.unflatten(structure, moved), tree.new(dict(zip(NAMES, values, strict=True)))

    return Transform(init, update)


def schedule_free_eval_params(state: Tree, params: Tree) -> TensorDict:
    """The average that ``schedule_free`` is evaluated at: ``x = z + (p - z) / b1``.

    Args:
        state: state of ``schedule_free`` itself; in a chain that is its own entry.
        params: the params that go with it.

    Returns:
        A tree like the params, differentiable in both.

    Raises:
        ValueError: the state belongs to another optimizer, or names or shapes differ.
        TypeError: an argument isn't a tree, or dtypes differ.
    """
    fn = "schedule_free_eval_params"
    _, b1, _, _, z_tree, _ = parts(fn, state, *NAMES)
    leaves, structure = parameters(fn, params)
    work = Work(leaves, structure)
    z = work.read(fn, "state['z']", z_tree, exact=True)
    x = [_average(y, own, b1) for y, own in zip(work.params, z, strict=True)]
    return tree.unflatten(structure, [x.to(p.dtype) for x, p in zip(x, leaves, strict=True)])


def _average(y: Tensor, z: Tensor, b1: Tensor) -> Tensor:
    return z + (y - z) / cast(b1, z)


def schedule_free_sgd(
    lr: Hyper | Schedule = 1.0,
    warmup_steps: int = 0,
    b1: Hyper | Schedule = 0.9,
    weight_decay: Hyper | Schedule = 0.0,
    weight_lr_power: Hyper | Schedule = 2.0,
) -> Transform:
    """``schedule_free`` around ``sgd``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        warmup_steps: over how many steps the rate rises from 0, as optax has it, so that the first
            update is 0; not with a schedule.
        b1: as in ``schedule_free``.
        weight_decay: as in ``sgd``.
        weight_lr_power: as in ``schedule_free``.

    Returns:
        ``schedule_free(sgd(rate, weight_decay=weight_decay), rate, b1, weight_lr_power)``.

    Raises:
        ValueError: a tensor isn't 0-d, a number is out of range, or there is a warmup with a
            schedule.
        TypeError: an argument is of another kind.

    Reference: Defazio et al. (2024), equations 9 to 11.
    """
    rate = _warmed("schedule_free_sgd", lr, warmup_steps)
    _require_b1("schedule_free_sgd", b1)
    return schedule_free(sgd(rate, weight_decay=weight_decay), rate, b1, weight_lr_power)


def schedule_free_adamw(
    lr: Hyper | Schedule = 0.0025,
    warmup_steps: int = 0,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    weight_decay: Hyper | Schedule = 0.0,
    weight_lr_power: Hyper | Schedule = 2.0,
) -> Transform:
    """``schedule_free`` around ``adamw`` without its first moment.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        warmup_steps: as in ``schedule_free_sgd``.
        b1: as in ``schedule_free``.
        b2: decay of the second moment, float in [0, 1), 0-d tensor or schedule.
        eps: as in ``adamw``.
        weight_decay: as in ``adamw``.
        weight_lr_power: as in ``schedule_free``.

    Returns:
        ``schedule_free(adamw(rate, 0.0, b2, eps, weight_decay=weight_decay), rate, b1,
        weight_lr_power)``.

    Raises:
        ValueError: a tensor isn't 0-d, a number is out of range, or there is a warmup with a
            schedule.
        TypeError: an argument is of another kind.

    Reference: Defazio et al. (2024), algorithm 1.
    """
    rate = _warmed("schedule_free_adamw", lr, warmup_steps)
    _require_b1("schedule_free_adamw", b1)
    base = adamw(rate, 0.0, b2, eps, weight_decay=weight_decay)
    return schedule_free(base, rate, b1, weight_lr_power)


def _warmed(fn: str, lr: Any, warmup_steps: Any) -> Hyper | Schedule:
    require_hyper(fn, "lr", lr, low=0)
    require_int(fn, "warmup_steps", warmup_steps, 0)
    if not warmup_steps:
        return lr
    if callable(lr) and not isinstance(lr, Tensor):
        raise ValueError(f"{fn}: warmup_steps is {warmup_steps}, expected 0 with a schedule as lr")
    return linear(0.0, lr, warmup_steps)


def _require_b1(fn: str, b1: Any) -> None:
    require_hyper(fn, "b1", b1, low=0)
    if isinstance(b1, int | float) and not 0 < b1 <= 1:
        raise ValueError(f"{fn}: b1 is {b1}, expected above 0 and at most 1")
