"""Derivatives of a solution by the equation that it solves, not by the way it was found.

Where ``F(x, a) = 0`` defines x as a function of a, the implicit function theorem gives

    dx/da = -(∂F/∂x)^-1 ∂F/∂a,    in reverse:  u = -(∂F/∂x)^-T g,   da = (∂F/∂a)^T u

so a gradient costs one linear system, whatever the number of steps to x, and no memory in them.
The adjoint u solves an equation of the same kind, ``(∂F/∂x)^T u + g = 0``, so its own derivatives
come by the same rule, and with them those of any order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..autodiff import detach, value_and_grad
from ..autodiff.gradients import kind_of
from ..tree import flatten, unflatten
from ._check import Leaves, like
from .captured import captured, with_captured
from .linear_solve import Solve, conjugate_gradient, normal_conjugate_gradient
from .loop import Loop

Residual = Callable[[Leaves, Leaves], Leaves]
Optimality = Callable[..., Any]


def custom_root(
    optimality: Optimality,
    argnums: int | tuple[int, ...] | None = None,
    has_aux: bool = False,
    solve: Solve = conjugate_gradient,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a solver: its solution is differentiated by the equation that it solves.

        >>> from paramtree import grad
        >>> def loss(x, a):
        ...     return (x - a.sin()).square().sum()
        >>> @custom_root(grad(loss))                       # grad(loss) = 0 at what fit gives
        ... def fit(x, a):                                 # any algorithm, run without a graph
        ...     return x - 0.5 * grad(loss)(x, a)
        >>> grad(lambda a: fit(torch.zeros(1), a).sum())(torch.zeros(1))
        tensor([1.])

    The decorated solver may be mapped, differentiated any number of times, in reverse and forward
    mode, and called inside an outer graph. Its derivatives are as good as its solution, and ``x``
    itself stays what it returned. Tensors that ``optimality`` closes over have derivatives too.
    In code that torch.compile captures whole (``fullgraph=True``) it can't be called: dynamo knows
    no Function with a rule for forward mode; elsewhere it breaks the graph.

    Args:
        optimality: ``optimality(params, *args) -> nest`` like the params, zero at the solution;
            differentiable. Pure.
        argnums: positions, counted with the params at 0, of the arguments to differentiate in, an
            int or a tuple; default: all behind the params. The others count as constants, and
            ``init_params`` always does: a solution doesn't depend on where the search for it began.
        has_aux: whether the solver returns ``(params, aux)``; aux is cut off from every graph.
        solve: ``solve(matvec, b) -> x`` for the systems with ``∂F/∂x`` and its transpose, on nests
            like the params (tuples of their float leaves where they have others):
            ``conjugate_gradient`` where it is symmetric positive definite, as the Hessian at a
            minimum, else ``normal_conjugate_gradient`` or ``neumann``.

    Returns:
        The decorator of ``solver(init_params, *args, **settings) -> params``, a nest with float
        leaves; the positional ones go to ``optimality`` too.

    Raises:
        ValueError: argnums names the params; when called, an argument that isn't there, or the
            names or shapes of what ``optimality`` returns differ from the params'.
        TypeError: an argument of the decorator is of another kind; when called, a setting holds a
            tensor, or the params have no float leaf.

    Reference: Blondel et al. (2022), section 2.
    """
    for name, value in (("optimality", optimality), ("solve", solve)):
        if not callable(value):
            raise TypeError(f"custom_root: {name} is {kind_of(value)}, expected a function")
    numbers = None if argnums is None else _positions(argnums)

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(solver):
            raise TypeError(f"custom_root: the solver is {kind_of(solver)}, expected a function")

        def solved(init_params: Any, *args: Any, **settings: Any) -> Any:
            if flatten(settings)[0]:
                names = ", ".join([name for name in settings if flatten(settings[name])[0]])
                raise TypeError(
                    f"custom_root: {names} is given by name, expected by position, since it holds "
                    "tensors, and optimality gets the positional arguments"
                )
            chosen = range(1, len(args) + 1) if numbers is None else numbers
            if chosen and max(chosen) > len(args):
                raise ValueError(
                    f"custom_root: argnums is {argnums}, but the solver got {len(args)} arguments "
                    "behind the params"
                )
            with torch.no_grad():
                out = solver(detach(init_params), *detach(args), **settings)
            if has_aux and not (isinstance(out, tuple) and len(out) == 2):
                raise ValueError(
                    f"custom_root: the solver returned {kind_of(out)}, expected (params, aux) with "
                    "has_aux=True"
                )
            params, aux = out if has_aux else (out, None)
            kept = tuple([a if i + 1 in chosen else detach(a) for i, a in enumerate(args)])
            params = _rooted("custom_root", optimality, solve, detach(params), kept)
            return (params, detach(aux)) if has_aux else params

        return solved

    return decorate


def implicit(
    step: Callable[[Any, Any, int], Any],
    outer: Callable[[Any, Any], Any],
    steps: int,
    *,
    optimality: Optimality | None = None,
    solve: Solve | None = None,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
) -> Callable[[Any, Any], Any]:
    """Gradient of an outer loss after inner steps, by the equation that the final state solves.

    The steps run without a graph, so memory doesn't grow with them. The gradient is that of the
    unrolled steps where these have converged, and otherwise only as near to it as they are.

    Args:
        step: ``step(hyper, state, k) -> state``, pure, with k the number of the step.
        outer: ``outer(hyper, state) -> 0-d tensor``, or ``(tensor, aux)`` with ``has_aux``.
        steps: how many, at least 1.
        optimality: ``optimality(hyper, state) -> nest`` like the state, zero at the final one;
            default: ``state - step(hyper, state, steps)``, which is zero at a fixed point. Integer
            leaves of it, such as counts, are left alone.
        solve: as in ``custom_root``; default: ``conjugate_gradient`` for an ``optimality`` that is
            given, whose matrix has to be symmetric, as that of a gradient is. For the default
            ``optimality`` the matrix is ``I - ∂step/∂state``, which with momentum or another
            optimizer isn't, so there it's ``normal_conjugate_gradient``.
        argnums: what to differentiate in: 0 (hyper), 1 (the initial state, zero throughout), or a
            tuple of both.
        has_aux: whether ``outer`` returns something beside the loss.

    Returns:
        ``fn(hyper, state) -> (value, grads)``, with ``((value, aux), grads)`` for ``has_aux``.

    Raises:
        ValueError: steps or argnums is out of range; when called, as in ``custom_root`` and
            ``grad``.
        TypeError: as in ``custom_root`` and ``grad``.

    Reference: Rajeswaran et al. (2019), section 3.
    """
    loop = Loop("implicit", step, outer, steps, argnums, has_aux)
    for name, value in (("optimality", optimality), ("solve", solve)):
        if value is not None and not callable(value):
            raise TypeError(f"implicit: {name} is a {type(value).__name__}, expected a function")
    if solve is None:
        solve = normal_conjugate_gradient if optimality is None else conjugate_gradient
    solver: Solve = solve

    def residual(state: Any, hyper: Any) -> Any:
        if optimality is not None:
            return optimality(hyper, state)
        leaves, structure = flatten(state)
        after = like(
            "implicit",
            ("step's result", step(hyper, state, steps)),
            ("the state", structure, leaves),
        )
        changes = [
            x - y if x.is_floating_point() or x.is_complex() else x
            for x, y in zip(leaves, after, strict=True)
        ]
        return unflatten(structure, changes)

    def both(hyper: Any, state: Any) -> Any:
        h, s = loop.parts(hyper, state)

        def objective(a: Leaves, b: Leaves) -> Any:
            hyper, start = h.join(a), s.join(b)
            with torch.no_grad():
                final = loop.run(detach(hyper), detach(start), 0, steps)
            return loop.end(hyper, _rooted("implicit", residual, solver, detach(final), (hyper,)))

        out, (dh, ds) = value_and_grad(objective, (0, 1), has_aux)(h.floats, s.floats)
        return out, loop.slopes(h, dh, s, ds)

    return both


def _positions(argnums: int | tuple[int, ...]) -> tuple[int, ...]:
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if not all([isinstance(n, int) and not isinstance(n, bool) for n in numbers]):
        raise TypeError(f"custom_root: argnums is {argnums!r}, expected an int or a tuple of them")
    if not all([n >= 1 for n in numbers]) or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"custom_root: argnums is {argnums}, expected different positions from 1 on; 0 are the "
            "params, whose initial values have no influence on a solution"
        )
    return numbers


@torch._disable_dynamo  # dynamo knows no Function with a rule for forward mode
def _rooted(fn: str, optimality: Optimality, solve: Solve, params: Any, args: Any) -> Any:
    """The params, as a function of the arguments and of what ``optimality`` closes over."""
    leaves, structure = flatten(params)
    inputs, arguments = flatten(args)
    real = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point() or leaf.is_complex()]
    if not real:
        raise TypeError(f"{fn}: the params are {kind_of(params)} without float leaves")

    def filled(x: Leaves) -> Leaves:
        full = list(leaves)
        for i, leaf in zip(real, x, strict=True):
            full[i] = leaf
        return full

    def residual(x: Leaves, a: Leaves) -> Leaves:
        found = optimality(unflatten(structure, filled(x)), *unflatten(arguments, a))
        column = like(fn, ("what optimality returns", found), ("the params", structure, leaves))
        return [column[i] for i in real]

    whole = len(real) == len(leaves)
    vectors = structure if whole else flatten(tuple(leaves[: len(real)]))[1]

    def solve_leaves(matvec: Callable[[Leaves], Leaves], b: Leaves) -> Leaves:
        def product(x: Any) -> Any:
            return unflatten(vectors, matvec(flatten(x)[0]))

        return like(
            fn, ("what solve returns", solve(product, unflatten(vectors, b))), ("b", vectors, b)
        )

    x = [leaves[i] for i in real]
    hidden = captured(residual, x, inputs)
    problem = _Problem(with_captured(residual, hidden, len(inputs)), solve_leaves)
    return unflatten(structure, filled(_attached(problem, x, [*inputs, *hidden])))


@dataclass
class _Problem:
    """An equation, ``residual(x, inputs) = 0``; not a tuple, which transforms would look into."""

    residual: Residual
    solve: Callable[[Callable[[Leaves], Leaves], Leaves], Leaves]


def _attached(problem: _Problem, x: Leaves, inputs: Leaves) -> Leaves:
    """Leaves of the values of x, as the function of the inputs that the problem makes them."""
    return list(_Root.apply(problem, len(x), *[leaf.detach() for leaf in x], *inputs))


class _Root(torch.autograd.Function):
    """A solution and its derivatives. All tensors are inputs, so every transform sees them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(problem: _Problem, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple([x.clone() for x in tensors[:n]])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.problem, ctx.n, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        problem, n = ctx.problem, ctx.n
        solution, inputs = list(ctx.saved_tensors[:n]), list(ctx.saved_tensors[n:])
        x = _attached(problem, solution, inputs)
        u = _adjoint(problem, x, inputs, [g.contiguous() for g in grads])  # not expanded ones
        wanted = [i for i, leaf in enumerate(inputs) if ctx.needs_input_grad[2 + n + i]]

        def residual(*leaves: Tensor) -> tuple[Tensor, ...]:
            full = list(inputs)
            for i, leaf in zip(wanted, leaves, strict=True):
                full[i] = leaf
            return tuple(problem.residual(x, full))

        pull = torch.func.vjp(residual, *[inputs[i] for i in wanted])[1]
        slopes: list[Any] = [None] * len(inputs)
        for i, slope in zip(wanted, pull(tuple(u)), strict=True):
            slopes[i] = slope
        return (None, None, *[None] * n, *slopes)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        problem, n = ctx.problem, ctx.n
        solution, inputs = list(ctx.saved_tensors[:n]), list(ctx.saved_tensors[n:])
        x = _attached(problem, solution, inputs)
        rows = zip(tangents[2 + n :], inputs, strict=True)
        return tuple(_tangent(problem, x, inputs, [_filled(t, leaf) for t, leaf in rows]))


def _adjoint(problem: _Problem, x: Leaves, inputs: Leaves, grads: Leaves) -> Leaves:
    """Solution of ``(∂F/∂x)^T u + g = 0``, as a function of all three arguments."""
    n = len(x)

    def residual(u: Leaves, given: Leaves) -> Leaves:
        x, inputs, grads = given[:n], given[n:-n], given[-n:]
        pull = torch.func.vjp(lambda *x: tuple(problem.residual(list(x), inputs)), *x)[1]
        return [a + g for a, g in zip(pull(tuple(u)), grads, strict=True)]

    with torch.no_grad():
        at, constants = _cut(x), _cut(inputs)
        pull = torch.func.vjp(lambda *x: tuple(problem.residual(list(x), constants)), *at)[1]
        u = problem.solve(lambda u: list(pull(tuple(u))), [-g for g in _cut(grads)])
    return _attached(_Problem(residual, problem.solve), u, [*x, *inputs, *grads])


def _tangent(problem: _Problem, x: Leaves, inputs: Leaves, tangents: Leaves) -> Leaves:
    """Solution of ``∂F/∂x y + ∂F/∂a t = 0``, as a function of all three arguments."""
    n, m = len(x), len(inputs)

    def push(x: Leaves, inputs: Leaves, y: Leaves, t: Leaves) -> Leaves:
        return torch.func.jvp(problem.residual, (x, inputs), (y, t))[1]

    def residual(y: Leaves, given: Leaves) -> Leaves:
        return push(given[:n], given[n : n + m], y, given[n + m :])

    with torch.no_grad():
        at, constants = _cut(x), _cut(inputs)
        still, idle = [torch.zeros_like(a) for a in at], [torch.zeros_like(a) for a in constants]
        b = [-r for r in push(at, constants, still, _cut(tangents))]
        y = problem.solve(lambda y: push(at, constants, y, idle), b)
    return _attached(_Problem(residual, problem.solve), y, [*x, *inputs, *tangents])


def _cut(leaves: Leaves) -> Leaves:
    return [leaf.detach() for leaf in leaves]


def _filled(tangent: Tensor | None, leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if tangent is None else tangent.contiguous()
