"""Perturbations of a nest of tensors, and the gradient that values at perturbed places estimate.

These are the two halves of every evolution strategy; what lies between them, how the values are
found, is the caller's. Perturbations are a nest like the one that they perturb, with an axis
``[n]`` in front, so a rule's parameters times n are a tree of batch size ``[n]``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..autodiff.gradients import kind_of
from ..rng import fold_in, normal
from ..rng.keys import check_key
from ..tree import flatten, unflatten, with_axis, without_axis
from ._check import Hyper, Leaves, at_path, require_count, require_real

BASES = ("normal", "orthogonal")
RANKS = (None, "pair", "centered")


def perturbations(key: Tensor, nest: Any, n: int, *, basis: str = "normal") -> Any:
    """Directions ε of mean 0 and covariance I.

    Args:
        key: int64 [2]; the same key, the same directions.
        nest: tree, tensor or nest of float leaves.
        n: how many.
        basis: ``"normal"``: independent standard normal numbers, each leaf's from the key and its
            path, so that a new leaf leaves its siblings' alone. ``"orthogonal"``: rows of random
            orthogonal matrices times the square root of P, the number of real entries of all
            leaves; P of them span the whole space, ``mean ε εᵀ = I``, further ones are drawn anew.

    Returns:
        Nest like the given one with leaves ``[n, *shape]``; batch sizes begin with n.

    Raises:
        ValueError: n is below 1, the basis isn't known, or the key has a batch.
        TypeError: an argument is of another kind, or a leaf isn't of a float dtype.

    Source: Choromanski et al. (2018), "Structured evolution with compact architectures for scalable
    policy optimization", section 3.1, for the orthogonal ones.
    """
    fn = "perturbations"
    require_key(fn, key)
    require_count(fn, "n", n)
    require_one_of(fn, "basis", basis, BASES)
    leaves, structure = flatten(nest)
    paths = structure.paths()
    require_floats(fn, "nest", nest, leaves, paths)
    return unflatten(with_axis(structure, n), directions(key, paths, leaves, n, basis))


def es_gradient(
    up: Tensor, down: Tensor, noise: Any, *, sigma: Hyper = 0.1, rank: str | None = None
) -> Any:
    """Gradient estimate of antithetic pairs: ``mean (f(x + σε) - f(x - σε)) ε / 2σ``.

    Args:
        up: ``[n]``, values at ``x + σε``.
        down: ``[n]``, values at ``x - σε``.
        noise: nest of ε, leaves ``[n, *shape]``, as ``perturbations`` gives it.
        sigma: σ, positive.
        rank: what takes the place of values: ``"pair"`` 1 for the higher value of a pair and 0 for
            the lower, ``"centered"`` the ranks among all values, from -1/2 to 1/2; equal values
            share theirs. Ranks have no derivative.

    Returns:
        Nest like the noise, without its first axis.

    Raises:
        ValueError: shapes don't fit, or an option is out of range or not known.
        TypeError: an argument is of another kind.

    Source: Salimans et al. (2017), "Evolution strategies as a scalable alternative to reinforcement
    learning", section 2; the pair's ranks as in GROOVE: Jackson et al. (2024).
    """
    fn = "es_gradient"
    require_real(fn, "sigma", sigma, above=0.0)
    require_one_of(fn, "rank", rank, RANKS)
    leaves, structure = flatten(noise)
    require_floats(fn, "noise", noise, leaves, structure.paths())
    for name, value in (("up", up), ("down", down)):
        if not isinstance(value, Tensor) or value.ndim != 1 or not value.is_floating_point():
            raise ValueError(f"{fn}: {name} is {kind_of(value)}, expected floats of shape [n]")
    sizes = {x.shape[0] if x.ndim else None for x in (down, *leaves)}
    if sizes != {up.shape[0]}:
        shapes = ", ".join(str(tuple(x.shape)) for x in (down, *leaves))
        raise ValueError(f"{fn}: down and noise have shapes {shapes}, expected {len(up)} rows each")
    weight = difference(up, down, rank) / 2
    return unflatten(without_axis(structure), [mean_product(weight, x, sigma) for x in leaves])


def displaced(nest: Any, noise: Any, width: Hyper) -> Any:
    """Places ``x + width ε``.

    Args:
        nest: x.
        noise: nest of ε, leaves ``[n, *shape]``.
        width: float or 0-d tensor.

    Returns:
        Nest like the noise.
    """
    leaves, (moves, structure) = flatten(nest)[0], flatten(noise)
    return unflatten(structure, [x + times(y, width) for x, y in zip(leaves, moves, strict=True)])


# ------------------------------------------------------------------- on leaves, for the estimators


def directions(
    key: Tensor, paths: Sequence[tuple[Any, ...]], leaves: Leaves, n: int, basis: str
) -> Leaves:
    """Perturbations ``[n, *shape]`` of each leaf.

    Args:
        key: int64 [2].
        paths: of the leaves.
        leaves: what is perturbed.
        n: how many.
        basis: see ``perturbations``.

    Returns:
        One tensor for each leaf.
    """
    rows = [_normal(key, path, x, n) for path, x in zip(paths, leaves, strict=True)]
    return _orthogonal(rows) if basis == "orthogonal" else rows


def difference(up: Tensor, down: Tensor, rank: str | None) -> Tensor:
    """``f(x + σε) - f(x - σε)``, or the difference of the ranks.

    Args:
        up: the first values, ``[n]``.
        down: the second.
        rank: see ``es_gradient``.

    Returns:
        ``[n]``.
    """
    if rank == "pair":
        return torch.sign(up - down).detach()
    if rank == "centered":
        both = torch.cat((up, down)).detach()
        other = both.unsqueeze(1)  # [n, 1]
        wide = torch.promote_types(up.dtype, torch.float32)  # bfloat16 can't count to 257
        below = (other < both).sum(0).to(wide) + ((other == both).sum(0) - 1).to(wide) / 2
        ranks = (below / (both.numel() - 1) - 0.5).to(up.dtype)
        return ranks[: up.numel()] - ranks[up.numel() :]
    return up - down


def mean_product(weight: Tensor, noise: Tensor, sigma: Hyper) -> Tensor:
    """``mean w ε / σ`` in the leaf's dtype.

    Args:
        weight: ``[n]``.
        noise: ``[n, *shape]``.
        sigma: σ.

    Returns:
        ``[*shape]``.
    """
    wide = weight.to(noise.dtype).reshape(-1, *[1] * (noise.ndim - 1))
    width = sigma.to(noise.dtype) if isinstance(sigma, Tensor) else sigma
    return (wide * noise).mean(0) / width


def times(x: Tensor, factor: Hyper) -> Tensor:
    """A product in the tensor's dtype.

    Args:
        x: the tensor.
        factor: float or tensor.

    Returns:
        The product.
    """
    return x * (factor.to(x.dtype) if isinstance(factor, Tensor) else factor)


def require_key(fn: str, key: Any) -> None:
    """Refuse what isn't one key.

    Args:
        fn: name of the function that was called.
        key: what came in.

    Raises:
        ValueError: it has a batch.
        TypeError: it's of another kind.
    """
    check_key(fn, key)
    if key.ndim != 1:
        shape = tuple(key.shape)
        raise ValueError(f"{fn}: key has shape {shape}, expected [2]; vmap maps over several")


def require_one_of(fn: str, name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Refuse a word that isn't known.

    Args:
        fn: name of the function that was called.
        name: of its argument.
        value: what came in.
        known: what may.

    Raises:
        ValueError: it's something else.
    """
    if value not in known:
        names = ", ".join([repr(one) for one in known])
        raise ValueError(f"{fn}: {name} is {value!r}, expected one of {names}")


def require_floats(
    fn: str, what: str, nest: Any, leaves: Leaves, paths: list[tuple[Any, ...]]
) -> None:
    """Refuse a nest that has no leaves, or others than floats.

    Args:
        fn: name of the function that was called.
        what: name of the nest.
        nest: the nest.
        leaves: its leaves.
        paths: their paths.

    Raises:
        TypeError: it's one.
    """
    if not leaves:
        got = f"{kind_of(nest)} without tensors"
        raise TypeError(f"{fn}: {what} is {got}, expected floats")
    for path, leaf in zip(paths, leaves, strict=True):
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(
                f"{fn}: {what}{at_path(path)} is {leaf.dtype}, "
                "expected a float dtype; tree.partition takes it out"
            )


def _normal(key: Tensor, path: tuple[Any, ...], leaf: Tensor, n: int) -> Tensor:
    """Standard normal numbers ``[n, *shape]``; real and imaginary parts are two of them."""
    for part in path:  # a part may be the path of a leaf in its own nest
        for name in part if isinstance(part, tuple) else (part,):
            key = fold_in(key, name)
    if leaf.is_complex():
        parts = normal(key, (n, *leaf.shape, 2), dtype=leaf.real.dtype)
        return torch.view_as_complex(parts).to(leaf.device)
    return normal(key, (n, *leaf.shape), dtype=leaf.dtype).to(leaf.device)


def _orthogonal(rows: Leaves) -> Leaves:
    """The same rows, made orthogonal in blocks of P and of length sqrt(P): Haar distributed."""
    real = [torch.view_as_real(x) if x.is_complex() else x for x in rows]
    wide = torch.cat([x.reshape(len(x), -1).to(torch.float64) for x in real], 1)  # [n, P]
    size = wide.shape[1]
    blocks = []
    for block in wide.split(size):
        q, r = torch.linalg.qr(block.mT)  # [P, rows]
        sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)  # makes Q unique
        blocks.append((q * sign).mT * size**0.5)
    parts = torch.cat(blocks).split([x[0].numel() for x in real], 1)
    out = []
    for x, part, leaf in zip(real, parts, rows, strict=True):
        own = part.to(x.dtype).reshape(x.shape)
        out.append(torch.view_as_complex(own.contiguous()) if leaf.is_complex() else own)
    return out
