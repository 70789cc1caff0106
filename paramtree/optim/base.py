"""The contract of an optimizer.

A transform is a pair ``init(params) -> state`` and ``update(grads, state, params) -> (updates,
state)``. Its state is a tree with the names of the params below its own; its counts are 0-d int64
tensors, so that they stack with the rest when tasks are mapped. A transform treats a tree as one:
norms and counts per task come from ``paramtree.vmap``, never from a batch axis.

A *hyper-parameter* is a float or a 0-d float tensor. A tensor may require grad: its gradient
through any number of steps is right, of any order. One value per task is mapped over like tasks:

    step = lambda lr, grads, state, params: sgd(lr).update(grads, state, params)
    updates, state = paramtree.vmap(step)(rates, grads, state, params)             # rates [n_tasks]
"""

from collections.abc import Callable
from typing import NamedTuple

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from ..tree import new, unflatten
from .leafwise import Hyper, added, aligned

Tree = TensorDictBase
Step = tuple[TensorDict, TensorDict]
Schedule = Callable[[Tensor], Hyper]


class Transform(NamedTuple):
    """A pair of pure functions from gradients to updates.

    ``init(params) -> state``; ``update(grads, state, params) -> (updates, state)``. The updates
    have the names of the params and are added to them by ``apply_updates``, so the transform of an
    optimizer that descends has the sign in it.
    """

    init: Callable[[Tree], TensorDict]
    update: Callable[[Tree, Tree, Tree], Step]


def apply_updates(params: Tree, updates: Tree) -> TensorDict:
    """Params after a step: ``p + u`` for each leaf.

    Args:
        params: tree of float leaves.
        updates: tree with the same names, shapes and dtypes, from a transform's ``update``.

    Returns:
        A new tree, differentiable in both.

    Raises:
        ValueError: names or shapes differ.
        TypeError: an argument isn't a tree, a leaf isn't of a float dtype, or dtypes differ.
    """
    (p, u), structure = aligned("apply_updates", params, updates=updates)
    return unflatten(structure, added(p, u))


def stateless(fn: Callable[[Tree, Tree], TensorDict]) -> Transform:
    """Transform without a state.

    Args:
        fn: pure function ``(grads, params) -> updates`` of trees with the same names.

    Returns:
        The transform; its state is an empty tree.
    """

    def init(params: Tree) -> TensorDict:
        return new({})

    def update(grads: Tree, state: Tree, params: Tree) -> Step:
        return fn(grads, params), new({})

    return Transform(init, update)
