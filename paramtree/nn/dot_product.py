"""Scaled dot-product attention: torch's kernels where they pay, with every derivative.

These kernels never hold the matrix of weights, but have no second derivative, no forward mode and
no gradient of a bias. They serve where nothing is differentiated; and where the weights are many,
as one differentiable operation: its derivative is an operation of its own, which runs them again,
and whose derivative comes from the plain formula. Under vmap the mapped axis becomes a batch axis.
All else takes the formula, which is as fast for few weights, and compiled code too.

Symbols: H heads, T queries, S keys, each of d numbers.

    query [*batch, H, T, d] · key, value [*batch, H, S, d]
    allowed bool, broadcast to [*batch, H, T, S], True where a query sees a key, and each sees one
    bias float, likewise, added to the scores
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from . import _check
from .unroll import is_final

_MANY = 2**16  # weights of one head; from here on the kernels are as fast, though they run twice


def attend(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, bias: Tensor | None
) -> Tensor:
    """softmax(query keyᵀ / d^(1/2) + bias) value over the keys that are allowed."""
    plain = torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0
    if plain or bias is not None or _check.autocasts(query):
        return _formula(query, key, value, allowed, bias)
    if is_final((query, key, value)):
        return _fused(query, key, value, allowed)
    if query.shape[-2] * key.shape[-2] < _MANY:
        return _formula(query, key, value, allowed, bias)
    return _Attend.apply(query, key, value, allowed)


def weigh(query: Tensor, key: Tensor, allowed: Tensor | None, bias: Tensor | None) -> Tensor:
    """The weights [*batch, H, T, S] of the keys."""
    scores = query * query.shape[-1] ** -0.5 @ key.mT
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1)


def _formula(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, bias: Tensor | None
) -> Tensor:
    return weigh(query, key, allowed, bias).to(value.dtype) @ value


class _Attend(Function):
    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        return _fused(query, key, value, allowed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return *_Backward.apply(*grads, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return _Attend.apply(*_batched(args, in_dims, info.batch_size)), 0


class _Backward(Function):
    """Gradients of query, key and value for that of the output, which comes first."""

    @staticmethod
    def forward(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None
    ) -> Any:
        with torch.enable_grad():
            query, key, value = (x.detach().requires_grad_() for x in (query, key, value))
            out = _fused(query, key, value, allowed)
            return torch.autograd.grad(out, (query, key, value), grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        *tensors, allowed = ctx.saved_tensors

        def first(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                return _formula(query, key, value, allowed, None)

            return torch.func.vjp(formula, *inputs)[1](grad)

        return *torch.func.vjp(first, *tensors)[1](cotangents), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return _Backward.apply(*_batched(args, in_dims, info.batch_size)), (0, 0, 0)


def _fused(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    """The kernels of torch, which want one batch axis."""
    lead = query.shape[:-3]
    if len(lead) != 1:
        count = math.prod(lead)
        query, key, value = (x.reshape(count, *x.shape[-3:]) for x in (query, key, value))
        if allowed is not None and allowed.dim() > 3:
            allowed = allowed.expand(*lead, *allowed.shape[-3:])
            allowed = allowed.reshape(count, *allowed.shape[-3:])
    out = functional.scaled_dot_product_attention(query, key, value, allowed)
    return out if len(lead) == 1 else out.reshape(*lead, *out.shape[-3:])


def _batched(args: tuple[Any, ...], in_dims: tuple[int | None, ...], size: int) -> list[Any]:
    """Inputs with the mapped axis first; the last of them, allowed, may lack batch axes."""
    *tensors, allowed = args
    rows = [
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, in_dims, strict=False)
    ]
    if allowed is not None and in_dims[-1] is not None:
        allowed = allowed.movedim(in_dims[-1], 0)
        missing = rows[0].dim() - allowed.dim()
        allowed = allowed.reshape(size, *[1] * missing, *allowed.shape[1:])
    return [*rows, allowed]
