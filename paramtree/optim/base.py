"""The contract of an optimizer.

A transform is a pair ``init(params) -> state`` and ``update(grads, state, params) -> (updates,
state)``. Its state is a tree with the names of the params below its own; its counts are 0-d int64
tensors, so that they stack with the rest when tasks are mapped. A transform treats a tree as one:
norms and counts per task come from ``paramtree.vmap``, never from a batch axis.

A *hyper-parameter* is a float or a 0-d float tensor. A tensor may require grad: its gradient
through any number of steps is right, of any order. One value per task is mapped over like tasks:

    >>> from paramtree import optim, vmap
    >>> params, rates = new({"w": torch.ones(3, 2)}, [3]), torch.tensor([0.1, 0.2, 0.3])
    >>> state = vmap(optim.sgd(0.1).init)(params)
    >>> step = lambda lr, grads, state, params: optim.sgd(lr).update(grads, state, params)
    >>> updates, state = vmap(step)(rates, params, state, params)

To compiled code a tensor is data: an optimizer of each learned rate, built inside of what is
compiled or given to it, costs no graph of its own. A float is a constant of the first graph and
data to the second.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict

from ..tree import new, unflatten
from .arguments import Hyper as Hyper
from .arguments import Schedule as Schedule
from .arguments import Tree as Tree
from .arguments import aligned

Step = tuple[TensorDict, TensorDict]


class Transform(NamedTuple):
    """A pair of pure functions from gradients to updates.

    ``init(params) -> state``; ``update(grads, state, params, **extra) -> (updates, state)``. The
    updates have the names, shapes and dtypes of the params and are added to them by
    ``apply_updates``, so the transform of an optimizer that descends has the sign in it. ``extra``
    are keywords that some transforms read, such as ``value=``; the others take no notice of them.
    """

    init: Callable[[Tree], TensorDict]
    update: Callable[..., Step]


def apply_updates(params: Tree, updates: Tree) -> TensorDict:
    """Params after a step: ``p + u`` for each leaf.

    Args:
        params: tree of float or complex leaves.
        updates: tree with the same names, shapes and dtypes, from a transform's ``update``.

    Returns:
        A new tree, differentiable in both.

    Raises:
        ValueError: names or shapes differ.
        TypeError: an argument isn't a tree, a leaf isn't of a float dtype, or dtypes differ.
    """
    (p, u), structure = aligned("apply_updates", params, updates=updates)
    return unflatten(structure, [torch.add(x, y) for x, y in zip(p, u, strict=True)])


def stateless(fn: Callable[[Tree, Tree], TensorDict]) -> Transform:
    """Transform without a state.

    Args:
        fn: pure function ``(grads, params) -> updates`` of trees with the same names.

    Returns:
        The transform; its state is an empty tree.

    Raises:
        TypeError: ``fn`` isn't a function.
    """
    if not callable(fn):
        raise TypeError(f"stateless: fn is a {type(fn).__name__}, expected a function")

    def init(params: Tree) -> TensorDict:
        return new({})

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        return fn(grads, params), new({})

    return Transform(init, update)


def updated(transform: Transform, grads: Tree, state: Tree, params: Tree, extra: Any) -> Step:
    """What a transform's ``update`` gives, with those extra keywords that it takes.

    Args:
        transform: the transform, a user's own among them, whose ``update`` may take no keywords.
        grads: tree like the params.
        state: its state.
        params: the params.
        extra: keywords by name.

    Returns:
        ``(updates, state)``.
    """
    update: Any = transform.update
    while isinstance(update, partial):
        update = update.func
    code = getattr(update, "__code__", None)  # compiled code knows no signatures
    if extra and code is not None and not code.co_flags & inspect.CO_VARKEYWORDS:
        takes = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        extra = {name: value for name, value in extra.items() if name in takes}
    return transform.update(grads, state, params, **extra)


def require_transform(fn: str, name: str, value: Any) -> None:
    """Refuse what is not a transform.

    Args:
        fn: name of the function that was called, for the message.
        name: what the message calls the argument.
        value: what came in.

    Raises:
        TypeError: it isn't one.
    """
    if not isinstance(value, Transform):
        kind = type(value).__name__
        raise TypeError(f"{fn}: {name} is a {kind}, expected a Transform such as sgd(0.1)")
