"""Transforms of a part of the tree, which is chosen by the names of its leaves.

    masked(add_decayed_weights(0.01), "**.weight")      the rest passes through unchanged
    selective_transform(adam(1e-3), "torso")            adam on all but the torso, which stays
    freeze("torso")                                     zero updates there; the rest passes through

Patterns are those of ``tree.select``. They are looked up in the params at each call, so that one
transform serves trees of any names.
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree
from .arguments import Tree, aligned
from .base import Step, Transform, require_transform, updated

Path = tuple[str, ...]
Pattern = str | Path | Callable[[Path, Tensor], bool]


def masked(inner: Transform, *patterns: Pattern) -> Transform:
    """A transform of some leaves; the updates of the others pass through unchanged.

    Args:
        inner: the transform; it sees those leaves alone.
        patterns: which, as in ``tree.select``; a leaf that two of them match is fine.

    Returns:
        The transform; its state is the inner one's, with the names of those leaves alone.

    Raises:
        ValueError: there are no patterns; later, in ``init`` and ``update``: one matches nothing.
        TypeError: an argument is of another kind.
    """
    require_transform("masked", "inner", inner)
    _require_patterns("masked", patterns)
    return _on_part("masked", inner, lambda p: _matched("masked", p, patterns), lambda g: g)


def freeze(*patterns: Pattern) -> Transform:
    """Zero updates for some leaves; those of the others pass through unchanged.

    At the end of a chain it keeps these leaves as they are; the moments of what comes before it
    are still computed for them, which ``selective_transform`` spares.

    Args:
        patterns: which, as in ``tree.select``.

    Returns:
        The transform, without a state.

    Raises:
        ValueError: there are no patterns; later, in ``init`` and ``update``: one matches nothing.
        TypeError: a pattern is of another kind.
    """
    _require_patterns("freeze", patterns)

    def init(params: Tree) -> TensorDict:
        return tree.new({})

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        return grads, tree.new({})  # pyright: ignore[reportReturnType] (a tree of _on_part's)

    rest = Transform(init, update)
    return _on_part("freeze", rest, lambda p: _unmatched("freeze", p, patterns), torch.zeros_like)


def selective_transform(optimizer: Transform, *frozen: Pattern) -> Transform:
    """An optimizer of all leaves but some, whose updates are zeros.

    Args:
        optimizer: the transform of the rest; it sees the rest alone.
        frozen: which leaves stay as they are, as in ``tree.select``.

    Returns:
        The transform; its state is the optimizer's, with the names of the rest alone.

    Raises:
        ValueError: nothing is to be frozen; later, in ``init`` and ``update``: a pattern matches
            nothing.
        TypeError: an argument is of another kind.
    """
    fn = "selective_transform"
    require_transform(fn, "optimizer", optimizer)
    _require_patterns(fn, frozen)
    return _on_part(fn, optimizer, lambda p: _unmatched(fn, p, frozen), torch.zeros_like)


def _on_part(
    fn: str,
    inner: Transform,
    chosen: Callable[[Tree], set[Path]],
    elsewhere: Callable[[Tensor], Tensor],
) -> Transform:
    """The inner transform on the chosen leaves, a function of the gradient elsewhere."""

    def init(params: Tree) -> TensorDict:
        aligned(fn, params)
        return inner.init(_part(params, chosen(params)))

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        (_, g), structure = aligned(fn, params, grads=grads)
        wanted = chosen(params)
        own = _part(params, wanted)
        updates, after = updated(inner, _part(grads, wanted), state, own, extra)
        leaves, given = tree.flatten(updates)
        tree.require_same(fn, ("updates", given), ("params", tree.flatten(own)[1]))
        found = dict(zip(given.paths(), leaves, strict=True))
        pairs = zip(structure.paths(), g, strict=True)
        whole = [found[path] if path in wanted else elsewhere(leaf) for path, leaf in pairs]
        return tree.unflatten(structure, whole), after

    return Transform(init, update)


def _part(whole: Tree, wanted: set[Path]) -> TensorDict:
    """The leaves at some paths; a tree without leaves where there are none."""
    if not wanted:
        return tree.rebuild(whole, {})
    return tree.select(whole, lambda path, leaf: path in wanted)


def _matched(fn: str, params: Tree, patterns: tuple[Pattern, ...]) -> set[Path]:
    try:
        return set(tree.paths(tree.select(params, *patterns)))
    except ValueError as error:
        raise ValueError(f"{fn}: {str(error).removeprefix('select: ')}") from None


def _unmatched(fn: str, params: Tree, patterns: tuple[Pattern, ...]) -> set[Path]:
    return set(tree.paths(params)) - _matched(fn, params, patterns)


def _require_patterns(fn: str, patterns: tuple[Any, ...]) -> None:
    if not patterns:
        raise ValueError(f"{fn}: no patterns given, expected at least one, such as '**.weight'")
    for pattern in patterns:
        if not callable(pattern):
            tree.parse_path(fn, pattern)
