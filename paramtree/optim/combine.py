"""Transforms of transforms: one after another, and different ones for different parts of a tree."""

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDict
from torch import Tensor

from .. import tree
from .arguments import Tree, aligned, parts
from .base import Step, Transform, require_transform, updated
from .leafwise import Leafwise, Work, run


def chain(**transforms: Transform) -> Transform:
    """Transforms one after another, each fed with the updates of the one before.

    Args:
        transforms: the transforms under the names that their states get.

    Returns:
        The transform; ``state["adam", "mu", "policy", "weight"]`` is where ``adam=scale_by_adam()``
        keeps its first moment of ``params["policy", "weight"]``.

    Raises:
        ValueError: there are none.
        TypeError: one isn't a transform.
    """
    _require_transforms("chain", transforms)

    def init(params: Tree) -> TensorDict:
        return tree.new({name: transform.init(params) for name, transform in transforms.items()})

    if all([isinstance(transform.update, Leafwise | Chained) for transform in transforms.values()]):
        return Transform(init, Chained({name: t.update for name, t in transforms.items()}))

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        updates: Any = grads
        states = parts("chain", state, *transforms)
        after: dict[str, TensorDict] = {}
        for (name, transform), own in zip(transforms.items(), states, strict=True):
            updates, after[name] = updated(transform, updates, own, params, extra)
        return updates, tree.new(after)

    return Transform(init, update)


class Chained:
    """Update of a chain whose members all run on leaves, so that the chain does too.

    Args:
        stages: the members' updates by name.
    """

    def __init__(self, stages: dict[str, Any]) -> None:
        self.stages = stages
        self.flat: list[Leafwise] = []
        for stage in stages.values():
            self.flat += stage.flat if isinstance(stage, Chained) else [stage]

    def __call__(self, grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        """Updates and the next state."""
        return run("chain", self, grads, state, params)

    def on_leaves(self, u: list[Tensor], state: Any, work: Work) -> tuple[list[Tensor], TensorDict]:
        """Updates and the next state, on leaves."""
        states = parts("chain", state, *self.stages)
        after: dict[str, TensorDict] = {}
        for (name, stage), own in zip(self.stages.items(), states, strict=True):
            u, after[name] = stage.on_leaves(u, own, work)
        return u, tree.new(after)

    def held(self, state: Any) -> list[Any]:
        """States of ``flat``."""
        found: list[Any] = []
        states = parts("chain", state, *self.stages)
        for stage, own in zip(self.stages.values(), states, strict=True):
            found += stage.held(own) if isinstance(stage, Chained) else [own]
        return found

    def whole(self, states: list[TensorDict]) -> TensorDict:
        """The chain's state from those of ``flat``, which are taken out of the list."""
        pairs = self.stages.items()
        return tree.new(
            {n: s.whole(states) if isinstance(s, Chained) else states.pop(0) for n, s in pairs}
        )


def partition(transforms: Mapping[str, Transform]) -> Transform:
    """Different transforms for different parts of a tree; each sees its part alone.

        >>> from paramtree.optim import adam, sgd
        >>> optimizer = partition({"policy": adam(1e-3), "critic.**": sgd(1e-2)})

    Args:
        transforms: a transform for each pattern, as ``tree.select`` knows patterns.

    Returns:
        The transform; its state has the patterns as names:
        ``state["policy", "adam", "mu", "policy", "weight"]``.

    Raises:
        ValueError: there are none; later, in ``init`` and ``update``: a pattern matches nothing, or
            a leaf is matched by no pattern or by two.
        TypeError: one isn't a transform.
    """
    _require_transforms("partition", transforms)

    def init(params: Tree) -> TensorDict:
        own = _divided(params, transforms)
        return tree.new({name: transforms[name].init(part) for name, part in own.items()})

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        _, structure = aligned("partition", params, grads=grads)
        own, slopes = _divided(params, transforms), _divided(grads, transforms)
        states = parts("partition", state, *transforms)
        after: dict[str, TensorDict] = {}
        found: dict[tuple[Any, ...], Tensor] = {}
        for (name, transform), before in zip(transforms.items(), states, strict=True):
            updates, after[name] = updated(transform, slopes[name], before, own[name], extra)
            found |= zip(tree.paths(updates), tree.leaves(updates), strict=True)
        leaves = [found[path] for path in structure.paths()]
        return tree.unflatten(structure, leaves), tree.new(after)

    return Transform(init, update)


def _divided(whole: Tree, transforms: Mapping[str, Transform]) -> dict[str, TensorDict]:
    """Part of a tree for each pattern; every leaf is in exactly one."""
    chosen = {pattern: _chosen(whole, pattern) for pattern in transforms}
    owner: dict[tuple[str, ...], str] = {}
    for pattern, part in chosen.items():
        for path in tree.paths(part):
            if path in owner:
                both = f"{owner[path]!r} and {pattern!r}"
                raise ValueError(
                    f"partition: {tree.show_path(path)} matches {both}, expected one pattern"
                )
            owner[path] = pattern
    for path in tree.paths(whole):
        if path not in owner:
            known = ", ".join([repr(pattern) for pattern in transforms])
            raise ValueError(
                f"partition: {tree.show_path(path)} matches none of {known}; give it a transform, "
                "set_to_zero() to leave it as it is"
            )
    return chosen


def _chosen(whole: Tree, pattern: str) -> TensorDict:
    try:
        return tree.select(whole, pattern)
    except ValueError as error:
        raise ValueError(f"partition: {str(error).removeprefix('select: ')}") from None


def _require_transforms(fn: str, transforms: Any) -> None:
    if not isinstance(transforms, Mapping):
        kind = type(transforms).__name__
        raise TypeError(
            f"{fn}: transforms is a {kind}, expected a dictionary of patterns and transforms"
        )
    if not transforms:
        raise ValueError(f"{fn}: no transforms given, expected at least one")
    for name, transform in transforms.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{fn}: {name!r} is among the names, expected text that isn't empty")
        require_transform(fn, repr(name), transform)
