"""Gradients from values alone: evolution strategies.

What is estimated is the gradient of the function smoothed by a Gaussian of width σ,

    ∇ E f(x + σ ε) = E[f(x + σ ε) ε] / σ,    ε ~ N(0, I)

so ``f`` need not be differentiable, and a long inner loop costs no memory. The estimate itself is
made of plain tensor operations: it can be differentiated with respect to σ, to x, and to whatever
``f`` closes over. Every leaf's perturbations are drawn from one key and the leaf's path, so a new
leaf leaves those of its siblings alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..autodiff.gradients import kind_of
from ..rng import fold_in, normal
from ..rng.keys import check_key
from ..tree import flatten, unflatten
from ._check import (
    Hyper,
    Leaves,
    at_path,
    require_count,
    require_real,
    require_scalar,
)
from .loop import Loop, Part
from .on_demand import on_demand

_METHODS = ("antithetic", "forward", "naive")
_RANKS = (None, "pair", "centered")


def es_grad(
    fn: Callable[[Any], Any],
    key: Tensor,
    *,
    method: str = "antithetic",
    sigma: Hyper = 0.1,
    samples: int = 32,
    rank: str | None = None,
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
    estimator = _Estimator("es_grad", key, method, sigma, samples, rank, chunk, has_aux)

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
    estimator = _Estimator("zero_order", key, method, sigma, samples, rank, chunk, has_aux)

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
    chunk: int | None
    has_aux: bool

    def __post_init__(self) -> None:
        name, key = self.fn_name, self.key
        check_key(name, key)
        if key.ndim != 1:
            shape = tuple(key.shape)
            raise ValueError(f"{name}: key has shape {shape}, expected [2]; vmap maps over several")
        _require_one_of(name, "method", self.method, _METHODS)
        _require_one_of(name, "rank", self.rank, _RANKS)
        require_real(name, "sigma", self.sigma, above=0.0)
        require_count(name, "samples", self.samples)
        if self.chunk is not None:
            require_count(name, "chunk", self.chunk)
        if self.rank is not None and self.method != "antithetic":
            got = f"rank is {self.rank!r}, expected None (from method={self.method!r})"
            raise ValueError(f"{name}: {got}")

    def __call__(self, what: str, fn: Callable[[Any], Any], nest: Any) -> Any:
        leaves, structure = flatten(nest)
        self._require_float(what, nest, leaves, structure.paths())
        out = fn(nest)
        value = require_scalar(self.fn_name, what, out, self.has_aux)
        rows = zip(structure.paths(), leaves, strict=True)
        noise = [_noise(self.key, path, leaf, self.samples) for path, leaf in rows]

        def values(sign: int) -> Tensor:
            def at(*moves: Tensor) -> Tensor:
                pairs = zip(leaves, moves, strict=True)
                moved = [x + _times(move, sign * self.sigma) for x, move in pairs]
                got = fn(unflatten(structure, moved))
                return require_scalar(self.fn_name, what, got, self.has_aux)

            return _evaluated(at, noise, self.chunk)

        if self.method == "antithetic":
            weight = _difference(values(1), values(-1), self.rank) / 2
        else:
            weight = values(1) - value if self.method == "forward" else values(1)
        slopes = [_mean_product(weight, leaf, self.sigma) for leaf in noise]
        return out, unflatten(structure, slopes)

    def _require_float(
        self, what: str, nest: Any, leaves: Leaves, paths: list[tuple[Any, ...]]
    ) -> None:
        if not leaves:
            got = f"{kind_of(nest)} without tensors"
            raise TypeError(f"{self.fn_name}: the argument of {what} is {got}, expected floats")
        for path, leaf in zip(paths, leaves, strict=True):
            if not (leaf.is_floating_point() or leaf.is_complex()):
                raise TypeError(
                    f"{self.fn_name}: the argument of {what}{at_path(path)} is {leaf.dtype}, "
                    "expected a float dtype; tree.partition takes it out"
                )


def _require_one_of(fn: str, name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        names = ", ".join([repr(one) for one in known])
        raise ValueError(f"{fn}: {name} is {value!r}, expected one of {names}")


def _noise(key: Tensor, path: tuple[Any, ...], leaf: Tensor, samples: int) -> Tensor:
    """Standard normal numbers ``[samples, *shape]``; real and imaginary parts are two of them."""
    for part in path:  # a part may be the path of a leaf in its own nest
        key = _folded(key, part)
    if leaf.is_complex():
        parts = normal(key, (samples, *leaf.shape, 2), dtype=leaf.real.dtype)
        return torch.view_as_complex(parts).to(leaf.device)
    return normal(key, (samples, *leaf.shape), dtype=leaf.dtype).to(leaf.device)


def _folded(key: Tensor, part: Any) -> Tensor:
    for name in part if isinstance(part, tuple) else (part,):
        key = fold_in(key, name)
    return key


def _evaluated(at: Callable[..., Tensor], noise: Leaves, chunk: int | None) -> Tensor:
    """Values ``[samples]`` for perturbations ``[samples, *shape]``."""
    samples = noise[0].shape[0]
    if chunk == 1:
        return torch.stack([at(*[leaf[i] for leaf in noise]) for i in range(samples)])
    parts = zip(*[leaf.split(chunk or samples) for leaf in noise], strict=True)
    values = [torch.func.vmap(at)(*part) for part in parts]
    return torch.cat(values) if len(values) > 1 else values[0]


def _difference(up: Tensor, down: Tensor, rank: str | None) -> Tensor:
    """``f(x + σε) - f(x - σε)``, or the difference of the ranks."""
    if rank == "pair":
        return torch.sign(up - down).detach()
    if rank == "centered":
        both = torch.cat((up, down)).detach()
        other = both.unsqueeze(1)  # [n, 1]
        below = (other < both).sum(0) + ((other == both).sum(0) - 1) / 2
        ranks = (below / (both.numel() - 1) - 0.5).to(up.dtype)
        return ranks[: up.numel()] - ranks[up.numel() :]
    return up - down


def _mean_product(weight: Tensor, noise: Tensor, sigma: Hyper) -> Tensor:
    """``mean w ε / σ`` in the leaf's dtype."""
    wide = weight.to(noise.dtype).reshape(-1, *[1] * (noise.ndim - 1))
    width = sigma.to(noise.dtype) if isinstance(sigma, Tensor) else sigma
    return (wide * noise).mean(0) / width


def _times(x: Tensor, factor: Hyper) -> Tensor:
    return x * (factor.to(x.dtype) if isinstance(factor, Tensor) else factor)
