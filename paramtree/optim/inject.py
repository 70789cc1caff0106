"""Hyper-parameters as entries of an optimizer's state: to read, to swap, to stack, to learn.

    >>> from paramtree import optim
    >>> params, b1 = tree.new({"w": torch.ones(3)}), torch.tensor(0.5)
    >>> optimizer = inject_hyperparams(optim.adam)(lr=optim.cosine_decay(1e-3, 1000), b1=0.9)
    >>> state = optimizer.init(params)
    >>> state["hyper", "lr"].shape, state["hyper", "b1"].shape
    (torch.Size([]), torch.Size([]))
    >>> state = tree.replace(state, {"hyper.b1": b1})     # a new state, differentiable in b1

States of many tasks, stacked, hold ``[n_tasks]`` of each.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree
from .arguments import (
    Tree,
    aligned,
    at_count,
    number,
    parts,
    require_hyper,
    zero_count,
)
from .base import Step, Transform, require_transform, updated


def inject_hyperparams(
    factory: Callable[..., Transform], static_args: str | Sequence[str] = ()
) -> Callable[..., Transform]:
    """A maker of optimizers whose hyper-parameters are read from the state at each update.

    Hyper-parameters are arguments that are floats, 0-d float tensors or schedules, and ints where
    the default is a float; flags, other ints, text and the like are as in the factory. A default
    becomes one where it's a float other than 0: a 0 that wasn't given leaves a part out.

    A schedule is asked at each update, and its value written to the new state; to swap it in the
    state has no effect. All others are what the state holds.

    Args:
        factory: what makes the optimizer, such as ``adam``; called anew at each update.
        static_args: names of arguments that stay as they are, such as a function that is no
            schedule.

    Returns:
        Function of the factory's arguments that gives the transform; its state holds ``count``,
        ``hyper`` and ``inner``. Floats become float64, so that the numbers are those of the
        factory's own optimizer; tensors are taken as they are.

    Raises:
        ValueError: a static argument is not one of the factory's; later, in ``update``: the state
            holds other hyper-parameters, or one that isn't 0-d.
        TypeError: the factory isn't a function, or gives something other than a transform.
    """
    fn = "inject_hyperparams"
    if not callable(factory) or isinstance(factory, Transform):
        kind = type(factory).__name__
        raise TypeError(f"{fn}: factory is a {kind}, expected a function such as adam")
    parameters = inspect.signature(factory).parameters
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    if unknown := sorted(static - set(parameters)):
        known = ", ".join(map(repr, parameters))
        raise ValueError(f"{fn}: static_args has {unknown[0]!r}, expected some of {known}")
    order = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}

    def make(*args: Any, **kwargs: Any) -> Transform:
        if len(args) > len(order):
            raise TypeError(f"{fn}: {len(args)} arguments given, expected at most {len(order)}")
        given = dict(zip(order, args, strict=False))
        if twice := sorted(given.keys() & kwargs.keys()):
            raise TypeError(f"{fn}: {twice[0]!r} is given twice")
        given |= kwargs
        whole = {**{n: v for n, v in defaults.items() if _counts(v)}, **given}
        hyper = {
            name: value
            for name, value in whole.items()
            if name not in static and _is_hyper(value, defaults.get(name))
        }
        rest = {name: value for name, value in given.items() if name not in hyper}
        start = torch.zeros((), dtype=torch.int64)
        first = {name: at_count(fn, name, value, start) for name, value in hyper.items()}
        made = factory(**rest, **first)  # of floats: a tensor is not checked for its range
        require_transform(fn, "what the factory gave", made)
        return _injected(factory, hyper, rest)

    return make


def _injected(
    factory: Callable[..., Transform], hyper: dict[str, Any], rest: dict[str, Any]
) -> Transform:
    fn = "inject_hyperparams"

    def at(name: str, count: Tensor) -> Tensor:
        """What was given, at a step."""
        return number(at_count(fn, name, hyper[name], count), count)

    def init(params: Tree) -> TensorDict:
        count = zero_count(aligned(fn, params)[0][0])
        values = {name: at(name, count) for name in hyper}
        inner = factory(**rest, **values).init(params)
        return tree.new({"count": count, "hyper": tree.new(values), "inner": inner})

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        count, held, before = parts(fn, state, "count", "hyper", "inner")
        values = dict(zip(hyper, parts(fn, held, *hyper), strict=True))
        for name, value in values.items():
            require_hyper(fn, f"state['hyper', {name!r}]", value, schedule=False)
            values[name] = at(name, count) if callable(hyper[name]) else value
        updates, after = updated(factory(**rest, **values), grads, before, params, extra)
        new = {"count": count + 1, "hyper": tree.new(values), "inner": after}
        return updates, tree.new(new)

    return Transform(init, update)


def _counts(default: Any) -> bool:
    """Whether an argument that wasn't given becomes a hyper-parameter."""
    return isinstance(default, float) and default != 0


def _is_hyper(value: Any, default: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and value.is_floating_point()
    if isinstance(value, bool | type | Transform):
        return False
    return isinstance(value, float) or callable(value) or _counts_as_float(value, default)


def _counts_as_float(value: Any, default: Any) -> bool:
    return isinstance(value, int) and isinstance(default, float)
