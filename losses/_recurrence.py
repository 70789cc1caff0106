"""The one kernel of all returns: the linear recurrence backward in time, and its derivatives.

    x_t = a_t x_{t+1} + b_t,    x_T = last,    tensors [T, *batch]

``solve`` is the door for callers that have checked their shapes; ``reverse_linear`` is the public
one. Three algorithms give the same numbers: a loop over time, T operations on ``[*batch]``;
halving, about log2(T) rounds of operations on half of what was left; and back substitution, one
call for a triangular system of T^2 numbers for each of the batch. The shape decides.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._check import no_data

# Measured forward and backward on a CPU (the table of bench_losses.py --crossover): a step of the
# loop costs a fixed few microseconds, so halving wins from about 24 steps on, until a step holds so
# many numbers that the extra memory traffic of halving is what counts.
HALVE_FROM = 24
HALVE_WIDTH, HALVE_WIDEST = 25, 2500  # numbers in a step: at most so many for each of T, and in all
# Back substitution is one call, and wins while its system holds few numbers: a trajectory or some.
SOLVE_FROM, SOLVE_WIDTH, SOLVE_LARGEST = 12, 4, 2**18
METHODS = ("auto", "loop", "halve", "solve")


def solve(
    a: float | Tensor,
    b: Tensor,
    last: float | Tensor,
    shape: torch.Size,
    method: str = "auto",
) -> Tensor:
    """x_0 to x_{T-1} of x_t = a_t x_{t+1} + b_t with x_T = last, ``[T, *batch]`` = ``shape``.

    The arguments broadcast to the shape, and are brought to one dtype and device.
    """
    dtype = b.dtype
    for x in (a, last):  # a 0-d tensor does not widen the others, as everywhere in torch
        if isinstance(x, Tensor) and x.dim() and x.dtype != dtype:
            dtype = torch.promote_types(dtype, x.dtype)
    a, b, last = (
        _like(x, size, dtype, b.device) for x, size in ((a, shape), (b, shape), (last, shape[1:]))
    )
    return _scan(a, b, last, True, method)[:-1]


def _like(
    x: float | Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    if not isinstance(x, Tensor):
        return torch.full(shape, x, dtype=dtype, device=device)
    x = x.to(dtype=dtype, device=None if x.dim() else device)  # as torch, only numbers move
    return x if x.shape == shape else x.expand(shape)


def _scan(a: Tensor, b: Tensor, start: Tensor, reverse: bool, method: str) -> Tensor:
    """All T + 1 states of the recurrence, the start included.

    In reverse, x[T] = start and x[t] = a[t] x[t+1] + b[t]; else x[0] = start and
    x[t+1] = a[t] x[t] + b[t].

    A compiler differentiates the plain form by itself, and where no graph is made it is cheaper.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() or no_data()):
        return _states(a, b, start, reverse, method)
    return _Scan.apply(a, b, start, reverse, method)


class _Scan(torch.autograd.Function):
    """The recurrence, whose derivative is the same recurrence in the other direction.

    The adjoint l of x is l[t+1] = a[t] l[t] + grad[t+1] with l[0] = grad[0], mirrored for the
    forward recurrence: so one pass of the kernel gives every gradient, and derivatives of any order
    are recurrences again.
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor, start: Tensor, reverse: bool, method: str) -> Tensor:
        return _states(a, b, start, reverse, method)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, _, _, ctx.reverse, ctx.method = inputs
        ctx.save_for_backward(a, output)
        ctx.save_for_forward(a, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, x = ctx.saved_tensors
        if ctx.reverse:
            adjoint = _scan(a, grad[1:], grad[0], False, ctx.method)
            of_b, of_start, before = adjoint[:-1], adjoint[-1], x[1:]
        else:
            adjoint = _scan(a, grad[:-1], grad[-1], True, ctx.method)
            of_b, of_start, before = adjoint[1:], adjoint[0], x[:-1]
        of_a = of_b * before if ctx.needs_input_grad[0] else None
        return of_a, of_b, of_start, None, None

    @staticmethod
    def jvp(
        ctx: Any, of_a: Tensor | None, of_b: Tensor | None, of_start: Tensor | None, *_: None
    ) -> Tensor:
        a, x = ctx.saved_tensors
        before, start = (x[1:], x[-1]) if ctx.reverse else (x[:-1], x[0])
        of_b = torch.zeros_like(before) if of_b is None else of_b
        of_start = torch.zeros_like(start) if of_start is None else of_start
        change = of_b if of_a is None else of_a * before + of_b
        return _scan(a, change, of_start, ctx.reverse, ctx.method)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        a: Tensor,
        b: Tensor,
        start: Tensor,
        reverse: bool,
        method: str,
    ) -> tuple[Tensor, int]:
        def batched(x: Tensor, dim: int | None, at: int) -> Tensor:
            if dim is not None:
                return x.movedim(dim, at)
            return x.unsqueeze(at).expand(*x.shape[:at], info.batch_size, *x.shape[at:])

        a, b, start = (
            batched(x, d, at) for x, d, at in zip((a, b, start), in_dims, (1, 1, 0), strict=False)
        )
        return _scan(a, b, start, reverse, method), 1


def _states(a: Tensor, b: Tensor, start: Tensor, reverse: bool, method: str) -> Tensor:
    """As ``_scan``, by the algorithm that suits the shape, in plain differentiable operations."""
    steps = a.shape[0]
    if method == "auto" and _solvable(a, b, start):
        method = "solve"
    if method == "solve":
        return _substitute(a, b, start, reverse)
    if method == "auto":
        widest = min(HALVE_WIDTH * steps, HALVE_WIDEST)
        loop = steps < HALVE_FROM or start.numel() > widest
        method = "loop" if loop else "halve"
    if method == "loop":
        return torch.stack(_loop(a, b, start, reverse))
    x = _halve(a, b, start, reverse)
    return torch.cat([x, start[None]] if reverse else [start[None], x])


def _solvable(a: Tensor, b: Tensor, start: Tensor) -> bool:
    """Whether back substitution is fastest; it exists for two dtypes, and is measured on CPUs."""
    steps, width = a.shape[0], start.numel()
    fits = SOLVE_FROM <= steps and width <= SOLVE_WIDTH * steps
    fits = fits and steps**2 * width <= SOLVE_LARGEST
    plain = b.is_cpu and b.dtype in (torch.float32, torch.float64)
    return fits and plain and not torch.compiler.is_compiling()


def _substitute(a: Tensor, b: Tensor, start: Tensor, reverse: bool) -> Tensor:
    """All T + 1 states, as the solution of x_t - a_t x_{t+1} = b_t with x_T = start."""
    b = torch.cat([b, start[None]] if reverse else [start[None], b])
    beside = a.reshape(len(a), -1).t().neg()
    system = torch.diag_embed(beside, 1 if reverse else -1)  # [N, T+1, T+1]
    x = torch.linalg.solve_triangular(
        system, b.reshape(len(b), -1).t().unsqueeze(-1), upper=reverse, unitriangular=True
    )
    return x.squeeze(-1).t().reshape(b.shape)


def _loop(a: Tensor, b: Tensor, start: Tensor, reverse: bool) -> list[Tensor]:
    """All T + 1 states, one step after the other."""
    steps = list(zip(a.unbind(0), b.unbind(0), strict=True))
    x = [start]
    for a_t, b_t in reversed(steps) if reverse else steps:
        x.append(torch.addcmul(b_t, a_t, x[-1]))
    return x[::-1] if reverse else x


def _halve(a: Tensor, b: Tensor, start: Tensor, reverse: bool) -> Tensor:
    """The T states after the start, in about log2(T) rounds.

    Two steps in a row are one, x -> a_far (a_near x + b_near) + b_far with *near* the one taken
    first: the far states are a recurrence of half the length, and each near state follows from the
    far one before it.
    """
    steps = a.shape[0]
    if steps <= 4:
        x = _loop(a, b, start, reverse)
        return torch.stack(x[:-1] if reverse else x[1:])
    if steps % 2:  # the step taken last is added at the end
        if reverse:
            x = _halve(a[1:], b[1:], start, reverse)
            return torch.cat([torch.addcmul(b[:1], a[:1], x[:1]), x])
        x = _halve(a[:-1], b[:-1], start, reverse)
        return torch.cat([x, torch.addcmul(b[-1:], a[-1:], x[-1:])])
    first, second = (a[::2], b[::2]), (a[1::2], b[1::2])
    (a_far, b_far), (a_near, b_near) = (first, second) if reverse else (second, first)
    far = _halve(a_far * a_near, torch.addcmul(b_far, a_far, b_near), start, reverse)
    before = torch.cat([far[1:], start[None]] if reverse else [start[None], far[:-1]])
    near = torch.addcmul(b_near, a_near, before)
    return torch.stack([far, near] if reverse else [near, far], 1).flatten(0, 1)
