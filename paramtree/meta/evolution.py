"""Gradients from values alone: evolution strategies.

What is estimated is the gradient of the function smoothed by a Gaussian of width σ,

    ∇ E f(x + σ ε) = E[f(x + σ ε) ε] / σ,    ε ~ N(0, I)

so ``f`` need not be differentiable, and a long inner loop costs no memory. The estimate itself is
made of plain tensor operations: it can be differentiated with respect to σ, to x, and to whatever
``f`` closes over.

How good is it? Where ``f`` is as good as linear within σ, n antithetic pairs of normal directions
in P dimensions give an estimate whose cosine to the gradient is close to ``1 / sqrt(1 + (P + 1) /
n)``, and whose length is wrong by as much. Of orthogonal directions n = P are the whole gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..autodiff.gradients import kind_of
from ..tree import flatten, unflatten
from ._check import Hyper, Leaves, require_count, require_real, require_scalar
from .loop import Loop, Part
from .on_demand import on_demand
from .perturb import (
    BASES,
    RANKS,
    difference,
    directions,
    mean_product,
    require_floats,
    require_key,
    require_one_of,
    times,
)

_METHODS = ("antithetic", "forward", "naive")


def es_grad(
    fn: Callable[[Any], Any],
    key: Tensor,
    *,
    method: str = "antithetic",
    sigma: Hyper = 0.1,
    samples: int = 32,
    rank: str | None = None,
    basis: str = "normal",
    chunk: int | None = None,
    has_aux: bool = False,
) -> Callable[[Any], Any]:
    """Value of a function and an estimate of its gradient that uses values only.

        naive       mean f(x + σε) ε / σ
        forward     mean (f(x + σε) - f(x)) ε / σ
        antithetic  mean (f(x + σε) - f(x - σε)) ε / 2σ

    All three have the same mean; the naive one's variance grows with ``f(x)²``.

    Args:
        fn: ``fn(nest) -> 0-d tensor``, or ``(tensor, aux)`` with ``has_aux``; pure, and it has to
            be mappable by vmap unless ``chunk=1``.
        key: int64 [2]; the same key, the same perturbations.
        method: one of the three.
        sigma: width of the perturbations, positive.
        samples: number of perturbations ε, at least 1; ``antithetic`` evaluates two points for
            each, the others one.
        rank: what takes the place of values, ``antithetic`` only: ``"pair"`` 1 for the higher value
            of a pair and 0 for the lower (the sign of their difference), ``"centered"`` the ranks
            among all values, from -1/2 to 1/2; equal values share theirs. The estimate is then
            a direction whose size doesn't depend on the scale of ``fn``; ranks have no derivative.
        basis: ``"normal"`` or ``"orthogonal"`` perturbations, see ``perturbations``. P antithetic
            orthogonal ones, with P the number of entries, are central differences along a whole
            basis; each is of length ``σ sqrt(P)``.
        chunk: number of perturbations that are evaluated at once, by vmap, for memory; 1 is a
            loop without vmap; default: all.
        has_aux: whether ``fn`` returns something beside the value.

    Returns:
        Function of a tree, tensor or nest of float leaves that gives ``(value, estimate)``, the
        value that of ``fn`` without perturbation and the estimate like the nest;
        ``((value, aux), estimate)`` with ``has_aux``.

    Raises:
        ValueError: an option is out of range or not known, the key has a batch, or, when called,
            ``fn`` did not return a scalar.
        TypeError: an argument is of another kind, or, when called, a leaf is not of a float dtype.

    Reference: Salimans et al. (2017), section 2.
    """
    if not callable(fn):
        raise TypeError(f"es_grad: fn is {kind_of(fn)}, expected a function")
    estimator = _Estimator("es_grad", key, method, sigma, samples, rank, basis, chunk, has_aux)

    def both(nest: Any) -> Any:
        return estimator("fn", fn, nest)

    return both


def zero_order(
    step: Callable[[Any, Any, int], Any],
    outer: Callable[[Any, Any], Any],
    steps: int,
    *,
    key: Tensor,
    method: str = "antithetic",
    sigma: Hyper = 0.1,
    samples: int = 32,
    rank: str | None = None,
    basis: str = "normal",
    chunk: int | None = None,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
) -> Callable[[Any, Any], Any]:
    """Gradient of an outer loss after inner steps, estimated from values only.

    Args:
        step: ``step(hyper, state, k) -> state``, pure, with k the number of the step; it need not
            be differentiable.
        outer: ``outer(hyper, state) -> 0-d tensor``, or ``(tensor, aux)`` with ``has_aux``.
        steps: how many, at least 1.
        key: as in ``es_grad``, as are the options that follow.
        method: see there.
        sigma: see there.
        samples: see there.
        rank: see there.
        basis: see there.
        chunk: see there.
        argnums: what to differentiate in: 0 (hyper), 1 (the initial state), or a tuple of both.
        has_aux: whether ``outer`` returns something beside the loss.

    Returns:
        ``fn(hyper, state) -> (value, grads)``, with ``((value, aux), grads)`` for ``has_aux``.

    Raises:
        ValueError: as in ``es_grad``, or steps or argnums is out of range.
        TypeError: as in ``es_grad``.

    Reference: Salimans et al. (2017), section 2.
    """
    loop = Loop("zero_order", step, outer, steps, argnums, has_aux)
    estimator = _Estimator("zero_order", key, method, sigma, samples, rank, basis, chunk, has_aux)

    def both(hyper: Any, state: Any) -> Any:
        h, s = loop.parts(hyper, state)

        def moved(floats: dict[str, Any]) -> Any:
            hyper, state = h.join(_values(floats["hyper"])), s.join(_values(floats["state"]))
            return loop.end(hyper, loop.run(hyper, state, 0, steps))

        out, slopes = estimator("outer", moved, {"hyper": _by_path(h), "state": _by_path(s)})
        return out, loop.slopes(h, _values(slopes["hyper"]), s, _values(slopes["state"]))

    return on_demand(both, both)


def _by_path(part: Part) -> dict[tuple[Any, ...], Tensor]:
    paths = part.structure.paths()
    return {paths[i]: leaf for i, leaf in zip(part.at, part.floats, strict=True)}


def _values(floats: dict[tuple[Any, ...], Tensor]) -> Leaves:
    return list(floats.values())


@dataclass
class _Estimator:
    """The options of an estimate, checked, and the estimate."""

    fn_name: str
    key: Tensor
    method: str
    sigma: Hyper
    samples: int
    rank: str | None
    basis: str
    chunk: int | None
    has_aux: bool

    def __post_init__(self) -> None:
        name = self.fn_name
        require_key(name, self.key)
        require_one_of(name, "method", self.method, _METHODS)
        require_one_of(name, "rank", self.rank, RANKS)
        require_one_of(name, "basis", self.basis, BASES)
        require_real(name, "sigma", self.sigma, above=0.0)
        require_count(name, "samples", self.samples)
        if self.chunk is not None:
            require_count(name, "chunk", self.chunk)
        if self.rank is not None and self.method != "antithetic":
            got = f"rank is {self.rank!r}, expected None (from method={self.method!r})"
            raise ValueError(f"{name}: {got}")

    def __call__(self, what: str, fn: Callable[[Any], Any], nest: Any) -> Any:
        leaves, structure = flatten(nest)
        paths = structure.paths()
        require_floats(self.fn_name, f"the argument of {what}", nest, leaves, paths)
        out = fn(nest)
        value = require_scalar(self.fn_name, what, out, self.has_aux)
        noise = directions(self.key, paths, leaves, self.samples, self.basis)

        def values(sign: int) -> Tensor:
            def at(*moves: Tensor) -> Tensor:
                pairs = zip(leaves, moves, strict=True)
                moved = [x + times(move, sign * self.sigma) for x, move in pairs]
                got = fn(unflatten(structure, moved))
                return require_scalar(self.fn_name, what, got, self.has_aux)

            return _evaluated(at, noise, self.chunk)

        if self.method == "antithetic":
            weight = difference(values(1), values(-1), self.rank) / 2
        else:
            weight = values(1) - value if self.method == "forward" else values(1)
        slopes = [mean_product(weight, leaf, self.sigma) for leaf in noise]
        return out, unflatten(structure, slopes)


def _evaluated(at: Callable[..., Tensor], noise: Leaves, chunk: int | None) -> Tensor:
    """Values ``[samples]`` for perturbations ``[samples, *shape]``."""
    samples = noise[0].shape[0]
    if chunk == 1:
        return torch.stack([at(*[leaf[i] for leaf in noise]) for i in range(samples)])
    parts = zip(*[leaf.split(chunk or samples) for leaf in noise], strict=True)
    values = [torch.func.vmap(at)(*part) for part in parts]
    return torch.cat(values) if len(values) > 1 else values[0]
