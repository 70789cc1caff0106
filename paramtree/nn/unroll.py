"""Unrolling a recurrent cell over time: fast kernels with every derivative.

A cell's unroll is one differentiable operation with two kernels. The forward kernel projects the
inputs of all steps at once, then goes through the steps in place, on one buffer for the gates; the
backward kernel goes back through them and makes the gradient of each weight matrix in one product
over all steps. What is kept between the two is the output, the gates and one more tensor.

The backward kernel is an operation of its own, whose derivative comes from the cell's plain loop,
so derivatives of any order are right. Under vmap, unmapped weights fold the mapped axis into the
batch, and mapped ones into the axis of stacked weights that all kernels have. Compiled code and
forward-mode differentiation take the plain loop.

Symbols: V stacked weights, T time, N batch, I inputs, H hidden, G gates times hidden.

    x [V, T, N, I] · reset bool [V, T, N] or None, True where the carry becomes zero before the step
    weights: weight_ih [V, G, I], weight_hh [V, G, H], bias_ih [V, G], bias_hh [V, G]
    carry: each [V, N, H] · out [V, T, N, H] · gates [V, T, N, G], after their activations
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.autograd import Function

from . import _check

_NARROW = 16  # inputs; a product with so few columns is slower than its transpose
_N_WEIGHTS = 4


class Cell(NamedTuple):
    """A recurrent cell, as the three functions that unroll it.

    Attributes:
        gates: how many blocks of H rows the weights have.
        carries: how many tensors are carried from step to step, the output first.
        loop: `(x, reset, *weights, *carry, reverse) -> (out, *last)` in plain differentiable
            operations; `last` are the final carries but the first, which is the last output.
        forward: the same on plain tensors, and returns `(out, *last, gates, extra)`.
        backward: `(reverse, needs, grads, x, reset, weights, carry, out, gates, extra)` to the
            gradients of x, weights and carry; `grads` are those of out and last, and `needs` says
            whether x and whether the weights want theirs (else None).
    """

    gates: int
    carries: int
    loop: Callable[..., tuple[Tensor, ...]]
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor | None, ...]]


def unroll(
    cell: Cell,
    x: Tensor,
    reset: Tensor | None,
    weights: Sequence[Tensor],
    carry: Sequence[Tensor],
    reverse: bool,
) -> tuple[Tensor, ...]:
    """Unrolls a cell, backwards in time with `reverse`; shapes as in the module's docstring.

    Returns:
        out [V, T, N, H] and the final carries but the first (which is the last output), [V, N, H].
    """
    if _check.autocasts(x):  # the kernels write into buffers of one dtype
        with torch.autocast(x.device.type, enabled=False):
            return unroll(cell, x, reset, weights, carry, reverse)
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0:
        return cell.loop(x, reset, *weights, *carry, reverse=reverse)
    if is_final((x, *weights, *carry)):
        return cell.forward(x, reset, *weights, *carry, reverse=reverse)[: cell.carries]
    return _Unroll.apply(cell, reverse, x, reset, *weights, *carry)[: cell.carries]


def is_final(tensors: Sequence[Tensor]) -> bool:
    """Whether nothing is to be differentiated or mapped: then the kernel alone will do."""
    if maybe_current_level() is not None:
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


class _Unroll(Function):
    """(out, *last, gates, extra) of x, weights and carry; gates and extra only to be kept."""

    @staticmethod
    def forward(
        cell: Cell, reverse: bool, x: Tensor, reset: Tensor | None, *tensors: Tensor
    ) -> Any:
        return cell.forward(x, reset, *tensors, reverse=reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        cell, reverse, *tensors = inputs
        ctx.cell, ctx.reverse = cell, reverse
        ctx.mark_non_differentiable(*output[-2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[0], *output[-2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        cell = ctx.cell
        x, reset, *tensors = ctx.saved_tensors
        carry, out = tensors[_N_WEIGHTS:-3], tensors[-3]
        likes = (out, *carry[1:])  # what grads have the shapes of
        grads = tuple(
            torch.zeros_like(like) if grad is None else grad
            for grad, like in zip(grads[: cell.carries], likes, strict=True)
        )
        needs = (ctx.needs_input_grad[2], any(ctx.needs_input_grad[4 : 4 + _N_WEIGHTS]))
        made = iter(_Backward.apply(cell, ctx.reverse, needs, reset, *grads, x, *tensors))
        wanted = (needs[0], False, *[needs[1]] * _N_WEIGHTS, *[True] * len(carry))
        return None, None, *[next(made) if want else None for want in wanted]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], cell: Cell, reverse: bool, *args: Any) -> Any:
        dims, size = in_dims[2:], info.batch_size
        shared = all(dim is None for dim in dims[2 : 2 + _N_WEIGHTS])
        # The axis that takes the mapped one: batch for x, reset and carry where weights are shared.
        axes = (2, 2, *[None] * _N_WEIGHTS, *[1] * cell.carries) if shared else (0,) * len(args)
        folded = [_fold(*each, size) for each in zip(args, dims, axes, strict=True)]
        axes = (2, *[1] * (cell.carries - 1), 2, 2) if shared else (0,) * (cell.carries + 2)
        return _unfold(_Unroll.apply(cell, reverse, *folded), axes, size)


class _Backward(Function):
    """The gradients that are needed of x, weights (all four) and carry, in this order."""

    @staticmethod
    def forward(
        cell: Cell, reverse: bool, needs: tuple[bool, bool], reset: Tensor | None, *tensors: Tensor
    ) -> Any:
        grads, x, weights, carry, kept = _sort(cell, tensors)
        made = cell.backward(reverse, needs, grads, x, reset, weights, carry, *kept)
        return tuple(grad for grad in made if grad is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, ctx.reverse, ctx.needs, *tensors = inputs
        ctx.save_for_backward(*tensors[:-3])  # out, gates and extra are functions of the others

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        cell = ctx.cell
        reset, *tensors = ctx.saved_tensors

        def first(*tensors: Tensor) -> tuple[Tensor, ...]:
            """The same gradients by way of the plain loop."""
            grads, x, weights, carry, _ = _sort(cell, tensors)

            def loop(*inputs: Tensor) -> tuple[Tensor, ...]:
                return cell.loop(inputs[0], reset, *inputs[1:], reverse=ctx.reverse)

            pull = torch.func.vjp(loop, x, *weights, *carry)[1]
            made = pull(grads)
            needs = (ctx.needs[0], *[ctx.needs[1]] * _N_WEIGHTS, *[True] * cell.carries)
            return tuple(grad for grad, need in zip(made, needs, strict=True) if need)

        pull = torch.func.vjp(first, *tensors)[1]
        return None, None, None, None, *pull(cotangents), None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], cell: Cell, reverse: bool, needs: Any, *args: Any
    ) -> Any:
        dims, size, n = in_dims[3:], info.batch_size, cell.carries
        _, _, weight_dims, _, _ = _sort(cell, dims[1:])
        shared = not needs[1] and all(dim is None for dim in weight_dims)
        batch = (2, 2, *[1] * (n - 1), 2, *[None] * _N_WEIGHTS, *[1] * n, 2, 2, 2)
        axes = batch if shared else (0,) * len(args)
        folded = [_fold(*each, size) for each in zip(args, dims, axes, strict=True)]
        outputs = _Backward.apply(cell, reverse, needs, *folded)
        axes = ((2,) * needs[0] + (1,) * n) if shared else (0,) * len(outputs)
        return _unfold(outputs, axes, size)


def _sort(cell: Cell, values: Sequence[Any]) -> tuple[Any, Any, Any, Any, Any]:
    """The tensors of the backward operation in groups: grads, x, weights, carry, what was kept."""
    n = cell.carries
    weights, carry = n + 1, n + 1 + _N_WEIGHTS
    return (
        tuple(values[:n]),
        values[n],
        tuple(values[weights:carry]),
        tuple(values[carry : carry + n]),
        tuple(values[carry + n :]),
    )


def _fold(tensor: Tensor | None, dim: int | None, axis: int | None, size: int) -> Tensor | None:
    """A tensor whose mapped dim, if any, is merged into the front of an axis of the others."""
    if tensor is None or axis is None:
        return tensor
    if dim is None:
        shape = (*tensor.shape[:axis], size, *tensor.shape[axis:])
        return tensor.unsqueeze(axis).expand(shape).flatten(axis, axis + 1)
    return tensor.movedim(dim, axis).flatten(axis, axis + 1)


def _unfold(outputs: tuple[Tensor, ...], axes: Sequence[int], size: int) -> Any:
    """The outputs with the mapped axis again by itself, and where it is."""
    pairs = zip(outputs, axes, strict=True)
    return tuple(out.unflatten(axis, (size, -1)) for out, axis in pairs), tuple(axes)


def steps(length: int, reverse: bool) -> range:
    """The order in which steps are processed."""
    return range(length - 1, -1, -1) if reverse else range(length)


def project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Input's part of the gates at all steps: [V, T, N, I] to [V, T, N, G]."""
    flat = torch.baddbmm(bias.unsqueeze(1), x.flatten(1, 2), weight.mT)
    return flat.unflatten(1, x.shape[1:3])


def cleared(carry: Tensor, reset: Tensor | None, t: int) -> Tensor:
    """The carry [V, N, H] that step t starts with: zero where it resets."""
    return carry if reset is None else carry.masked_fill(reset[:, t].unsqueeze(-1), 0.0)


def before(first: Tensor, after: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    """The carries that all steps start with, [V, T, N, H], from those they end with."""
    first = first.unsqueeze(1)
    parts = (after[:, 1:], first) if reverse else (first, after[:, :-1])
    carries = torch.cat(parts, 1)
    return carries if reset is None else carries.masked_fill_(reset.unsqueeze(-1), 0.0)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Sum of the outer products at all steps: [V, T, N, A] and [V, T, N, B] to [V, A, B]."""
    left, right = left.flatten(1, 2), right.flatten(1, 2)
    if right.shape[-1] < _NARROW:
        return torch.bmm(right.mT, left).mT.contiguous()
    return torch.bmm(left.mT, right)


def input_grad(gates_grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the inputs at all steps: [V, T, N, G] and [V, G, I] to [V, T, N, I]."""
    flat = gates_grad.flatten(1, 2)
    if weight.shape[-1] < _NARROW:
        made = torch.bmm(weight.mT, flat.mT).mT.contiguous()
    else:
        made = torch.bmm(flat, weight)
    return made.unflatten(1, gates_grad.shape[1:3])
