"""Linear systems ``A x = b`` on trees, where ``A`` is known by its products with trees alone.

A solver is a function ``solve(matvec, b) -> x``; ``functools.partial`` gives it other options. It
consists of plain tensor operations, so its derivatives, of any order, are those of the iterate that
it returns: exact as far as the iteration converged, with respect to ``b``, to real options, and to
whatever ``matvec`` closes over. Inner products are real, ``Re sum conj(x) y``, over all leaves.

An iteration that has converged stays where it is: its step is masked to zero, so one task of many
under ``vmap`` stops without the others. Where values can be read without waiting for a device
(plain tensors on the CPU, not under a transform or in compiled code) the loop is left instead, with
the same result.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..autodiff.gradients import kind_of
from ..rng.philox import is_readable
from ..tree import flatten, unflatten
from ..tree.algebra import sum_of
from ._check import Hyper, Leaves, at_path, like, require_count, require_real

MatVec = Callable[[Any], Any]
Solve = Callable[[MatVec, Any], Any]


def conjugate_gradient(
    matvec: MatVec,
    b: Any,
    *,
    x0: Any = None,
    maxiter: int | None = None,
    rtol: float = 1e-10,
    atol: float = 0.0,
    damping: Hyper = 0.0,
) -> Any:
    """Solution of ``(A + damping I) x = b`` for a symmetric positive definite ``A``.

        α = <r, r> / <p, A p>,  x' = x + α p,  r' = r - α A p,  p' = r' + <r', r'> / <r, r> p

    Args:
        matvec: the linear function ``x -> A x`` of trees like ``b``.
        b: tree, tensor or nest of float leaves.
        x0: where to begin, like ``b``; default: zero.
        maxiter: largest number of iterations, at least 1; default: four times the number of
            unknowns, at most 200.
        rtol: it has converged where ``|r| <= max(rtol |b|, atol)``.
        atol: the same, absolute.
        damping: added to the diagonal, not negative.

    Returns:
        The solution, like ``b``.

    Raises:
        ValueError: names or shapes of ``x0`` or of what ``matvec`` returns differ from b's, or
            an option is out of range.
        TypeError: ``b`` has no leaf of a float dtype, or one of another, or an option is of another
            kind.

    Reference: Hestenes & Stiefel (1952), section 3.
    """
    system = _System("conjugate_gradient", matvec, b)
    _require_options(system.fn, maxiter, rtol=rtol, atol=atol)
    require_real(system.fn, "damping", damping, low=0.0)
    start = None if x0 is None else system.like_b("x0", x0)
    product = system.product if _is_zero(damping) else _damped(system.product, damping)
    return system.tree(_conjugate_gradient(product, system.b, start, maxiter, rtol, atol))


def normal_conjugate_gradient(
    matvec: MatVec,
    b: Any,
    *,
    x0: Any = None,
    maxiter: int | None = None,
    rtol: float = 1e-10,
    atol: float = 0.0,
    damping: Hyper = 0.0,
) -> Any:
    """Solution of ``(A^T A + damping I) x = A^T b``, that of ``A x = b`` for ``damping=0``.

    ``A`` need not be symmetric or definite; the transpose comes from the vector-Jacobian product of
    ``matvec``. The condition number is that of ``A`` squared, so it takes more iterations.

    Args:
        matvec: the linear function ``x -> A x`` of trees like ``b``.
        b: tree, tensor or nest of float leaves.
        x0: as in ``conjugate_gradient``.
        maxiter: as in ``conjugate_gradient``.
        rtol: it has converged where ``|A^T r| <= max(rtol |A^T b|, atol)``.
        atol: the same, absolute.
        damping: added to the diagonal of ``A^T A``, not negative.

    Returns:
        The solution, like ``b``.

    Raises:
        ValueError: as in ``conjugate_gradient``.
        TypeError: as in ``conjugate_gradient``.

    Reference: Hestenes & Stiefel (1952), section 10.
    """
    system = _System("normal_conjugate_gradient", matvec, b)
    _require_options(system.fn, maxiter, rtol=rtol, atol=atol)
    require_real(system.fn, "damping", damping, low=0.0)
    start = None if x0 is None else system.like_b("x0", x0)
    zeros = tuple([torch.zeros_like(x) for x in system.b])
    pull = torch.func.vjp(lambda *x: tuple(system.product(list(x))), *zeros)[1]

    def transposed(y: Leaves) -> Leaves:
        return list(pull(tuple(y)))

    def normal(x: Leaves) -> Leaves:
        return transposed(system.product(x))

    product = normal if _is_zero(damping) else _damped(normal, damping)
    right = transposed(system.b)
    return system.tree(_conjugate_gradient(product, right, start, maxiter, rtol, atol))


def neumann(matvec: MatVec, b: Any, *, terms: int = 100, alpha: Hyper = 1.0) -> Any:
    """The first terms of the Neumann series of ``A^-1 b``.

        x = α sum_{k < terms} (I - α A)^k b

    It converges where every eigenvalue of ``I - α A`` is inside the unit circle, as for a
    contraction's fixed point, ``A = I - ∂step/∂x``, with ``α = 1``; ``terms`` steps of it are then
    those of an unrolled gradient cut off after as many.

    Args:
        matvec: the linear function ``x -> A x`` of trees like ``b``.
        b: tree, tensor or nest of float leaves.
        terms: number of terms, at least 1.
        alpha: positive.

    Returns:
        The sum, like ``b``.

    Raises:
        ValueError: names or shapes of what ``matvec`` returns differ from b's, or an option is out
            of range.
        TypeError: as in ``conjugate_gradient``.

    Reference: Lorraine, Vicol & Duvenaud (2020), section 3.
    """
    system = _System("neumann", matvec, b)
    require_count(system.fn, "terms", terms)
    require_real(system.fn, "alpha", alpha, above=0.0)
    term, total = system.b, system.b
    for _ in range(terms - 1):
        term = _axpy(term, system.product(term), -alpha)
        total = [x + y for x, y in zip(total, term, strict=True)]
    return system.tree([_times(x, alpha) for x in total])


class _System:
    """The right-hand side as leaves, and the product of ``A`` with leaves like them."""

    def __init__(self, fn: str, matvec: MatVec, b: Any) -> None:
        if not callable(matvec):
            raise TypeError(f"{fn}: matvec is {kind_of(matvec)}, expected a function of trees")
        self.fn, self.matvec = fn, matvec
        self.b, self.structure = flatten(b)
        if not self.b:
            raise TypeError(f"{fn}: b is {kind_of(b)} without tensors, expected float leaves")
        for path, leaf in zip(self.structure.paths(), self.b, strict=True):
            if not (leaf.is_floating_point() or leaf.is_complex()):
                raise TypeError(f"{fn}: b{at_path(path)} is {leaf.dtype}, expected a float dtype")

    def product(self, x: Leaves) -> Leaves:
        return self.like_b("what matvec returns", self.matvec(self.tree(x)))

    def tree(self, x: Leaves) -> Any:
        return unflatten(self.structure, x)

    def like_b(self, what: str, nest: Any) -> Leaves:
        return like(self.fn, (what, nest), ("b", self.structure, self.b))


def _require_options(fn: str, maxiter: int | None, **tolerances: float) -> None:
    if maxiter is not None:
        require_count(fn, "maxiter", maxiter)
    for name, value in tolerances.items():
        if isinstance(value, Tensor):
            raise TypeError(f"{fn}: {name} is a tensor, expected a float")
        require_real(fn, name, value, low=0.0)


def _conjugate_gradient(
    product: Callable[[Leaves], Leaves],
    b: Leaves,
    start: Leaves | None,
    maxiter: int | None,
    rtol: float,
    atol: float,
) -> Leaves:
    if maxiter is None:
        maxiter = max(1, min(4 * sum([leaf.numel() for leaf in b]), 200))
    x = [torch.zeros_like(leaf) for leaf in b] if start is None else start
    r = b if start is None else [v - w for v, w in zip(b, product(x), strict=True)]
    goal = (rtol * rtol * _dot(b, b)).clamp(min=atol * atol).detach()
    p, size = r, _dot(r, r)
    for _ in range(maxiter):
        going = size > goal
        if _is_known_false(going):
            break
        image = product(p)
        step = _ratio(size, _dot(p, image), going)
        x, r = _axpy(x, p, step), _axpy(r, image, -step)
        before, size = size, _dot(r, r)
        p = _axpy(r, p, _ratio(size, before, going))
    return x


def _ratio(above: Tensor, below: Tensor, going: Tensor) -> Tensor:
    """Quotient, 0 where the iteration has ended or broken down; its derivatives have no NaN."""
    valid = going & (below != 0)
    return torch.where(valid, above, 0) / torch.where(valid, below, 1)


def _is_known_false(flag: Tensor) -> bool:
    return not torch.compiler.is_compiling() and is_readable(flag) and not bool(flag)


def _damped(product: Callable[[Leaves], Leaves], damping: Hyper) -> Callable[[Leaves], Leaves]:
    return lambda x: _axpy(product(x), x, damping)


def _is_zero(value: Hyper) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _dot(left: Leaves, right: Leaves) -> Tensor:
    terms = []
    for x, y in zip(left, right, strict=True):
        product = (x.conj() * y).real if x.is_complex() else x * y
        terms.append(product.sum())
    return sum_of(terms)


def _axpy(left: Leaves, right: Leaves, factor: Hyper) -> Leaves:
    return [x + _times(y, factor) for x, y in zip(left, right, strict=True)]


def _times(x: Tensor, factor: Hyper) -> Tensor:
    """Product in the leaf's dtype, whatever the factor's."""
    return x * (factor.to(x.dtype) if isinstance(factor, Tensor) else factor)
