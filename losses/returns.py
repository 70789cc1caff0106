"""Returns and advantages: one equation, one function, all through one kernel.

The kernel is the linear recurrence backward in time

    x_t = a_t x_{t+1} + b_t,    x_T = last,

and each return is a choice of a and b. Time comes first: tensors are ``[T, *batch]``, flags are
bool.

* ``reward[t]``       r_t, what the action taken in state t earned
* ``value[t]``        V(s_t)
* ``next_value[t]``   V(s_{t+1}) of the state that really followed, before any reset
* ``done[t]``         the episode ended with this step, for whatever reason: cuts the trace
* ``terminated[t]``   nothing follows this step, by the task's own rules: cuts the bootstrap
* ``gamma``, ``lmbda``  float, or a tensor that broadcasts to ``[T, *batch]``

A truncation is ``done`` without ``terminated``: the return stops there and bootstraps on
``next_value``. So the result over a concatenation of episodes is the concatenation of the results.
The ``next_value`` of a terminated step is without influence and without gradient, whatever number
stands there, NaN included.

Nothing here is detached: every result is differentiable in every float argument, any number of
times, under ``torch.func`` and inside ``torch.compile``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._check import check_broadcast, check_float, check_real, check_steps, time_first

# Measured forward and backward on a CPU: a step of the loop costs a fixed few microseconds, so
# halving wins from 16 steps on, until a step holds about 25 T numbers and the extra memory traffic
# of halving is what counts.
_HALVE_FROM = 16
_HALVE_WIDTH = 25


def reverse_linear(a: float | Tensor, b: Tensor, last: float | Tensor) -> Tensor:
    """Linear recurrence backward in time: x_t = a_t x_{t+1} + b_t, with x_T = last.

    Args:
        a: ``[T, *batch]`` float, or what broadcasts with ``b``.
        b: ``[T, *batch]`` float, or what broadcasts with ``a``.
        last: ``[*batch]`` float, or what broadcasts to it: the value after the last step.

    Returns:
        x_0 to x_{T-1}, ``[T, *batch]``, differentiable in every argument.

    Raises:
        ValueError: the shapes do not broadcast, or there is no time axis.
        TypeError: an argument is not floating-point.

    Example:
        >>> reverse_linear(0.5, torch.ones(3), 0.0)
        tensor([1.7500, 1.5000, 1.0000])
    """
    name = "reverse_linear"
    check_float(name, "b", b)
    check_real(name, "a", a)
    check_real(name, "last", last)
    shape = b.shape
    if isinstance(a, Tensor) and a.shape != shape:
        try:
            shape = torch.broadcast_shapes(a.shape, shape)
        except RuntimeError:
            raise ValueError(
                f"{name}: a has shape {tuple(a.shape)}, expected one that broadcasts with "
                f"{time_first(b.shape)} (from b)"
            ) from None
    if not shape or shape[0] == 0:
        raise ValueError(
            f"{name}: b has shape {tuple(b.shape)}, expected [T, *batch] with T of at least 1"
        )
    check_broadcast(name, "last", last, shape[1:], "b", f"[*batch] = {tuple(shape[1:])}")
    return _reverse_linear(a, b, last, shape)


def lambda_returns(
    reward: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    lmbda: float | Tensor,
) -> Tensor:
    """Lambda-returns: what follows a step, by the values found on the way, mixed geometrically.

        G_t = r_t + gamma_t (1 - terminated_t) [(1 - lambda'_t) V(s_{t+1}) + lambda'_t G_{t+1}],

    with lambda'_t = lambda_t, but 0 where done and at the last step.

    Args:
        reward: ``[T, *batch]`` float.
        next_value: ``[T, *batch]`` float.
        done: ``[T, *batch]`` bool; cuts the trace.
        terminated: ``[T, *batch]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[T, *batch]``.
        lmbda: decay of the trace, in [0, 1]; likewise.

    Returns:
        ``[T, *batch]``, differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the reward's, or a float is out of its range.
        TypeError: a flag is not bool, or another tensor not floating-point.

    Source: Sutton & Barto (2018), section 12.8.
    """
    shape = _check(
        "lambda_returns",
        {"reward": reward, "next_value": next_value},
        {"done": done, "terminated": terminated},
        {"gamma": gamma, "lmbda": lmbda},
    )
    return _lambda_returns(reward, next_value, done, terminated, gamma, lmbda, shape)


def discounted_returns(
    reward: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    next_value: Tensor | None = None,
) -> Tensor:
    """Discounted returns: the rewards that follow a step, to the end of its episode.

        G_t = r_t + gamma_t (1 - terminated_t) (V(s_{t+1}) if done_t or t = T - 1 else G_{t+1}).

    Args:
        reward: ``[T, *batch]`` float.
        done: ``[T, *batch]`` bool; ends the sum.
        terminated: ``[T, *batch]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[T, *batch]``.
        next_value: ``[T, *batch]`` float, what truncated episodes and the last step bootstrap on; 0
            if not given (the "reward to go").

    Returns:
        ``[T, *batch]``, differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the reward's, or gamma is a float out of its range.
        TypeError: a flag is not bool, or another tensor not floating-point.

    Source: Sutton & Barto (2018), section 3.3.
    """
    floats = {"reward": reward} | ({} if next_value is None else {"next_value": next_value})
    flags = {"done": done, "terminated": terminated}
    shape = _check("discounted_returns", floats, flags, {"gamma": gamma})
    after = torch.zeros_like(reward) if next_value is None else next_value
    return _lambda_returns(reward, after, done, terminated, gamma, 1.0, shape)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    lmbda: float | Tensor,
) -> Tensor:
    """Generalized advantage estimates: one-step errors of the value, summed along a decaying trace.

        delta_t = r_t + gamma_t (1 - terminated_t) V(s_{t+1}) - V(s_t)
        A_t = delta_t + gamma_t lambda_t (1 - terminated_t) (1 - done_t) A_{t+1},    A_T = 0.

    ``gae + value`` is the lambda-return wherever ``next_value[t] == value[t + 1]``.

    Args:
        reward: ``[T, *batch]`` float.
        value: ``[T, *batch]`` float.
        next_value: ``[T, *batch]`` float.
        done: ``[T, *batch]`` bool; cuts the trace.
        terminated: ``[T, *batch]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[T, *batch]``.
        lmbda: decay of the trace, in [0, 1]; likewise.

    Returns:
        ``[T, *batch]``, differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the reward's, or a float is out of its range.
        TypeError: a flag is not bool, or another tensor not floating-point.

    Source: Schulman et al. (2016), "High-dimensional continuous control using generalized advantage
    estimation", equation 16.
    """
    shape = _check(
        "gae",
        {"reward": reward, "value": value, "next_value": next_value},
        {"done": done, "terminated": terminated},
        {"gamma": gamma, "lmbda": lmbda},
    )
    bootstrap, trace = _discounts(done, terminated, gamma, lmbda, reward.dtype)
    delta = reward + bootstrap * next_value.masked_fill(terminated, 0.0) - value
    return _reverse_linear(bootstrap * trace, delta, 0.0, shape)


def _lambda_returns(
    reward: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    lmbda: float | Tensor,
    shape: torch.Size,
) -> Tensor:
    bootstrap, trace = _discounts(done, terminated, gamma, lmbda, reward.dtype)
    next_value = next_value.masked_fill(terminated, 0.0)
    target = reward + bootstrap * (1 - trace) * next_value
    return _reverse_linear(bootstrap * trace, target, next_value[-1], shape)


def _discounts(
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    lmbda: float | Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The factors gamma (1 - terminated) and lambda (1 - done), ``[T, *batch]``."""
    return gamma * terminated.logical_not().to(dtype), lmbda * done.logical_not().to(dtype)


def _check(
    function: str,
    floats: dict[str, Tensor],
    flags: dict[str, Tensor],
    discounts: dict[str, float | Tensor],
) -> torch.Size:
    shape = check_steps(function, floats, flags)
    for name, value in discounts.items():
        check_real(function, name, value, 0.0, 1.0)
        check_broadcast(function, name, value, shape, next(iter(floats)), time_first(shape))
    return shape


# ---- the kernel


def _reverse_linear(
    a: float | Tensor, b: Tensor, last: float | Tensor, shape: torch.Size
) -> Tensor:
    """Brings the arguments to one dtype, device and shape, and solves."""
    dtype = b.dtype
    for x in (a, last):  # a 0-d tensor does not widen the others, as everywhere in torch
        if isinstance(x, Tensor) and x.dim() and x.dtype != dtype:
            dtype = torch.promote_types(dtype, x.dtype)
    a, b, last = (
        _like(x, size, dtype, b.device) for x, size in ((a, shape), (b, shape), (last, shape[1:]))
    )
    return _scan(a, b, last, True)[:-1]


def _like(
    x: float | Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    if not isinstance(x, Tensor):
        return torch.full(shape, x, dtype=dtype, device=device)
    x = x.to(dtype=dtype, device=None if x.dim() else device)  # as torch, only numbers move
    return x if x.shape == shape else x.expand(shape)


def _scan(a: Tensor, b: Tensor, start: Tensor, reverse: bool) -> Tensor:
    """All T + 1 states of the recurrence, the start included.

    In reverse, x[T] = start and x[t] = a[t] x[t+1] + b[t]; else x[0] = start and
    x[t+1] = a[t] x[t] + b[t].

    A compiler differentiates the plain form by itself.
    """
    if torch.compiler.is_compiling():
        return _solve(a, b, start, reverse)
    return _Scan.apply(a, b, start, reverse)


class _Scan(torch.autograd.Function):
    """The recurrence, whose derivative is the same recurrence in the other direction.

    The adjoint l of x is l[t+1] = a[t] l[t] + grad[t+1] with l[0] = grad[0], mirrored for the
    forward recurrence: so one pass of the kernel gives every gradient, and derivatives of any order
    are recurrences again.
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor, start: Tensor, reverse: bool) -> Tensor:
        return _solve(a, b, start, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, _, _, ctx.reverse = inputs
        ctx.save_for_backward(a, output)
        ctx.save_for_forward(a, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, x = ctx.saved_tensors
        if ctx.reverse:
            adjoint = _scan(a, grad[1:], grad[0], False)
            of_b, of_start, before = adjoint[:-1], adjoint[-1], x[1:]
        else:
            adjoint = _scan(a, grad[:-1], grad[-1], True)
            of_b, of_start, before = adjoint[1:], adjoint[0], x[:-1]
        of_a = of_b * before if ctx.needs_input_grad[0] else None
        return of_a, of_b, of_start, None

    @staticmethod
    def jvp(
        ctx: Any, of_a: Tensor | None, of_b: Tensor | None, of_start: Tensor | None, _: None
    ) -> Tensor:
        a, x = ctx.saved_tensors
        before, start = (x[1:], x[-1]) if ctx.reverse else (x[:-1], x[0])
        of_b = torch.zeros_like(before) if of_b is None else of_b
        of_start = torch.zeros_like(start) if of_start is None else of_start
        return _scan(a, of_b if of_a is None else of_a * before + of_b, of_start, ctx.reverse)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        a: Tensor,
        b: Tensor,
        start: Tensor,
        reverse: bool,
    ) -> tuple[Tensor, int]:
        def batched(x: Tensor, dim: int | None, at: int) -> Tensor:
            if dim is not None:
                return x.movedim(dim, at)
            return x.unsqueeze(at).expand(*x.shape[:at], info.batch_size, *x.shape[at:])

        a, b, start = (
            batched(x, d, at) for x, d, at in zip((a, b, start), in_dims, (1, 1, 0), strict=False)
        )
        return _scan(a, b, start, reverse), 1


def _solve(a: Tensor, b: Tensor, start: Tensor, reverse: bool) -> Tensor:
    """As ``_scan``, by the algorithm that suits the shape, in plain differentiable operations."""
    steps = a.shape[0]
    if steps < _HALVE_FROM or start.numel() > _HALVE_WIDTH * steps:
        return torch.stack(_loop(a, b, start, reverse))
    x = _halve(a, b, start, reverse)
    return torch.cat([x, start[None]] if reverse else [start[None], x])


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
