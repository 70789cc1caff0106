"""Attention step by step, and as a fused kernel that can be differentiated twice."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def steps(
    inputs: Sequence[Tensor], options: Sequence[Any], dropped: Callable[[Tensor], Tensor]
) -> Tensor:
    """Attention: softmax(q k^T scale + mask) v.

    Args:
        inputs: query, key, value and, if there is one, the mask, as
            ``torch.nn.functional.scaled_dot_product_attention`` takes them.
        options: its is_causal, scale and enable_gqa.
        dropped: dropout of the weights.

    Returns:
        What it gives.
    """
    query, key, value = inputs[:3]
    mask = inputs[3] if len(inputs) > 3 else None
    causal, scale, grouped = options
    if grouped:
        key, value = [x.repeat_interleave(query.size(-3) // x.size(-3), -3) for x in (key, value)]
    scores = query @ key.mT * (query.size(-1) ** -0.5 if scale is None else scale)  # [*, L, S]
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    return dropped(torch.softmax(scores, -1)) @ value


class Attention(torch.autograd.Function):
    """The fused kernel and its own gradient, or the steps' where that is differentiated again."""

    @staticmethod
    def forward(ctx: Any, func: Any, options: Any, *inputs: Tensor) -> Tensor:  # pyright: ignore
        """Runs the kernel on leaves of its own, and keeps their graph."""
        causal, scale, grouped = options
        with torch.enable_grad():
            own = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
            out = func(*own, is_causal=causal, scale=scale, enable_gqa=grouped)
        ctx.save_for_backward(*inputs)
        ctx.options, ctx.own, ctx.out = options, own, out
        return out.detach()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient in the inputs."""
        again = torch.is_grad_enabled()
        inputs, out = (ctx.saved_tensors, None) if again else (ctx.own, ctx.out)
        if out is None:
            out = steps(inputs, ctx.options, lambda weights: weights)
        wanted, slope = [x for x in inputs if x.requires_grad], slope.to(out.dtype)
        found = iter(torch.autograd.grad(out, wanted, slope, retain_graph=True, create_graph=again))
        return None, None, *[next(found) if x.requires_grad else None for x in inputs]
