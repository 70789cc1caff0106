"""Results without a graph, whose derivatives are found by computing them again when asked for."""

from typing import Any

import torch
from torch import Tensor

from ..autodiff.levels import transformed
from ..tree import flatten, unflatten
from .loop import Differentiated, is_float


def on_demand(fn: Differentiated, again: Differentiated) -> Differentiated:
    """``fn`` on detached values, with a graph of ``again`` that is built when it's asked for."""

    def lean(hyper: Any, state: Any) -> tuple[Any, Any]:
        leaves, structure = flatten((hyper, state))
        # no graph can be had later: in compiled code and torch.func, and without grad mode
        at_once = transformed() or not torch.is_grad_enabled()
        if at_once or not any([x.requires_grad for x in leaves]):
            return fn(hyper, state)
        out = fn(*unflatten(structure, [x.detach() for x in leaves]))
        results, rest = flatten(out)
        if any([x.requires_grad for x in results]):  # step or outer closes over an outer graph
            return again(hyper, state)

        def rerun(*inputs: Tensor) -> list[Tensor]:
            return flatten(again(*unflatten(structure, inputs)))[0]

        return unflatten(rest, _Again.apply(rerun, results, *leaves))

    return lean


class _Again(torch.autograd.Function):
    """Results that are there already, whose derivative is found by computing them again."""

    @staticmethod
    def forward(ctx: Any, rerun: Any, results: list[Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.rerun = rerun
        ctx.save_for_backward(*leaves)
        ctx.set_materialize_grads(False)
        fixed = [x.view_as(x) for x in results]
        ctx.mark_non_differentiable(*[x for x in fixed if not is_float(x)])
        return tuple(fixed)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        further = torch.is_grad_enabled()
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            inputs = [
                x if not asked else x.view_as(x) if further else x.detach().requires_grad_()
                for x, asked in zip(ctx.saved_tensors, wanted, strict=True)
            ]
            pairs = [
                (x, g)
                for x, g in zip(ctx.rerun(*inputs), cotangents, strict=True)
                if g is not None and x.requires_grad
            ]
            chosen = [x for x, asked in zip(inputs, wanted, strict=True) if asked]
            if not pairs:
                return None, None, *[None for _ in wanted]
            outputs, given = zip(*pairs, strict=True)
            options = {"create_graph": further, "allow_unused": True}
            found = iter(torch.autograd.grad(outputs, chosen, given, **options))
        return None, None, *[next(found) if asked else None for asked in wanted]
