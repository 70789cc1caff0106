"""Trees as vectors: sums, multiples, zeros, random ones, dtypes, and whether two are close."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from ..rng import fold_in, normal
from .algebra import paired
from .names import Selection, matched
from .structure import Structure, flatten, require_tree, show_path, unflatten


def add(left: TensorDictBase, right: TensorDictBase) -> TensorDict:
    """Tree of ``x + y``, leaves brought together by name.

    Args:
        left: a tree.
        right: a tree with the same names, in any order, and the same shapes.

    Returns:
        The tree, with the batch sizes of the left one; dtypes mix as they do in torch.

    Raises:
        ValueError: names or shapes differ.
        TypeError: an argument isn't a tree.
    """
    a, b, structure = paired("add", left, right)
    return unflatten(structure, [x + y for x, y in zip(a, b, strict=True)])


def sub(left: TensorDictBase, right: TensorDictBase) -> TensorDict:
    """Tree of ``x - y``, leaves brought together by name.

    Args:
        left: a tree.
        right: a tree with the same names, in any order, and the same shapes.

    Returns:
        The tree, with the batch sizes of the left one; dtypes mix as they do in torch.

    Raises:
        ValueError: names or shapes differ.
        TypeError: an argument isn't a tree.
    """
    a, b, structure = paired("sub", left, right)
    return unflatten(structure, [x - y for x, y in zip(a, b, strict=True)])


def scale(tree: TensorDictBase, factor: float | Tensor) -> TensorDict:
    """Tree of ``factor x``.

    Args:
        tree: a tree of float or complex leaves.
        factor: float or real 0-d tensor; ``vmap`` maps over one per task.

    Returns:
        The tree, in the leaves' own dtypes, differentiable in the factor.

    Raises:
        ValueError: the factor has dims.
        TypeError: an argument is of another kind.
    """
    if isinstance(factor, Tensor):
        if factor.ndim:
            shape = f"shape {tuple(factor.shape)}, expected a float or a 0-d tensor"
            raise ValueError(f"scale: factor has {shape}; vmap maps over one factor per task")
        if factor.is_complex() or factor.dtype == torch.bool:
            raise TypeError(f"scale: factor is {factor.dtype}, expected a real dtype")
    elif not isinstance(factor, int | float) or isinstance(factor, bool):
        kind = type(factor).__name__
        raise TypeError(f"scale: factor is a {kind}, expected a float or a 0-d tensor")
    leaves, structure = _floats("scale", tree, complex_too=True)
    return unflatten(structure, [x * _in_dtype(factor, x) for x in leaves])


def _in_dtype(factor: float | Tensor, leaf: Tensor) -> float | Tensor:
    """The factor, which must not widen a 0-d leaf."""
    return factor.to(leaf.dtype) if isinstance(factor, Tensor) else factor


def cast(tree: TensorDictBase, dtype: torch.dtype, *selections: Selection) -> TensorDict:
    """Tree in another float dtype, all of it or the leaves that a selection names.

    Compute in bfloat16 over float32 masters, their gradient in float32:
    ``grad(lambda p: loss(net(cast(p, torch.bfloat16), buffers, cast(batch, torch.bfloat16))))``.

    Args:
        tree: a tree; leaves that are not of a real float dtype stay as they are.
        dtype: a real float dtype.
        selections: as in ``select``, such as ``"policy.**"`` or a predicate of ``(path, leaf)``;
            none for all leaves.

    Returns:
        The tree; it shares the leaves that had the dtype already, and carries gradient.

    Raises:
        ValueError: a selection matches nothing; the message lists the nearest names.
        TypeError: it isn't a tree, the dtype isn't a real float one, or a selection is of another
            kind.

    Source: Micikevicius et al. (2018), "Mixed precision training", section 3.1.
    """
    require_tree("cast", "tree", tree)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"cast: dtype is {dtype!r}, expected a real float dtype")
    leaves, structure = flatten(tree)
    paths = structure.paths()
    wanted = matched("cast", leaves, structure, selections) if selections else set(paths)
    pairs = zip(paths, leaves, strict=True)
    chosen = [path in wanted and leaf.is_floating_point() for path, leaf in pairs]
    out = [x.to(dtype) if is_chosen else x for x, is_chosen in zip(leaves, chosen, strict=True)]
    return unflatten(structure, out)


def zeros_like(tree: TensorDictBase) -> TensorDict:
    """Tree of zeros.

    Args:
        tree: a tree whose names, shapes, dtypes and devices the result has.

    Returns:
        The tree.

    Raises:
        TypeError: it isn't a tree.
    """
    require_tree("zeros_like", "tree", tree)
    leaves, structure = flatten(tree)
    return unflatten(structure, [torch.zeros_like(x) for x in leaves])


def allclose(
    left: TensorDictBase,
    right: TensorDictBase,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    equal_nan: bool = False,
) -> Tensor:
    """Whether all numbers of two trees are close: ``|x - y| <= atol + rtol |y|``.

    An infinity is close to itself alone. Integers and booleans are compared exactly.

    Args:
        left: a tree.
        right: a tree with the same names, in any order, the same shapes and dtypes.
        rtol: tolerance in units of the right one's numbers.
        atol: tolerance beside it.
        equal_nan: whether NaN is close to NaN.

    Returns:
        0-d bool, True for trees without leaves.

    Raises:
        ValueError: names or shapes differ.
        TypeError: an argument isn't a tree, or dtypes differ.
    """
    a, b, structure = paired("allclose", left, right)
    for at, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.dtype != y.dtype:
            where = f"{show_path(structure.paths()[at])} of tree 1 is {y.dtype}"
            raise TypeError(f"allclose: {where}, expected {x.dtype} (from tree 0)")
    if not a:
        return torch.ones((), dtype=torch.bool)
    pairs = zip(a, b, strict=True)
    return torch.stack([_close(x, y, rtol, atol, equal_nan).all() for x, y in pairs]).all()


def _close(x: Tensor, y: Tensor, rtol: float, atol: float, equal_nan: bool) -> Tensor:
    """Like torch.isclose for floats, which vmap has no rule for."""
    same = x == y
    if not (x.is_floating_point() or x.is_complex()):
        return same
    far = (x - y).abs()
    same = same | (far.isfinite() & (far <= atol + rtol * y.abs()))
    return same | (x.isnan() & y.isnan()) if equal_nan else same


def random_like(
    key: Tensor, tree: TensorDictBase, sample: Callable[..., Tensor] = normal
) -> TensorDict:
    """Tree of random numbers, with a key of its own for each path.

    The key of a leaf is that of its sub-tree with its name folded in, so a leaf's numbers don't
    depend on what else there is, and ``random_like(key, tree)["policy"]`` is
    ``random_like(fold_in(key, "policy"), tree["policy"])``.

    Args:
        key: int64 [2], or [*batch, 2] where each leaf's shape begins with the batch.
        tree: a tree of float leaves, whose names, shapes, dtypes and devices the result has.
        sample: ``sample(key, shape, dtype=dtype) -> tensor``, one of rng's.

    Returns:
        The tree.

    Raises:
        ValueError: the key has another shape.
        TypeError: the key is of another kind, the tree isn't one, or a leaf isn't of a float dtype.
    """
    leaves, structure = _floats("random_like", tree)
    drawn = []
    for path, leaf in zip(structure.paths(), leaves, strict=True):
        own = reduce(fold_in, path, key).to(leaf.device)
        drawn.append(sample(own, tuple(leaf.shape), dtype=leaf.dtype))
    return unflatten(structure, drawn)


def _floats(fn: str, tree: Any, complex_too: bool = False) -> tuple[list[Tensor], Structure]:
    """Leaves of a tree and its structure; raises where a leaf isn't of a float dtype."""
    require_tree(fn, "tree", tree)
    leaves, structure = flatten(tree)
    for at, leaf in enumerate(leaves):
        if not (leaf.is_floating_point() or (complex_too and leaf.is_complex())):
            what = f"{leaf.dtype}, expected a float dtype; tree.partition takes it out"
            raise TypeError(f"{fn}: {show_path(structure.paths()[at])} is {what}")
    return leaves, structure
