"""Rows of optimizers that read more than gradients, or evaluate elsewhere than where they step."""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import optim, tree
from tests.contract.case import Case, D, draw, number, params


def loss(p: TensorDict) -> torch.Tensor:
    """Not quadratic, with a minimum."""
    return torch.stack([(x.cosh() + 0.1 * (2 * x).sin()).sum() for x in tree.leaves(p)]).sum()


def slope(p: TensorDict) -> TensorDict:
    """Its gradient."""
    return tree.map(lambda x: x.sinh() + 0.2 * (2 * x).cos(), p)


def walked(optimizer: optim.Transform, p: TensorDict, **extra: Any) -> tuple[TensorDict, ...]:
    state = optimizer.init(p)
    for _ in range(2):
        updates, state = optimizer.update(slope(p), state, p, **extra)
        p = optim.apply_updates(p, updates)
    return p, state


def walk_case(
    name: str,
    make: Callable[[torch.Tensor], optim.Transform],
    covers: tuple[str, ...] = (),
    **extra: Any,
) -> Case:
    """Two steps, differentiated in where they begin and the hyper-parameter."""

    def call(p: TensorDict, hyper: torch.Tensor) -> TensorDict:
        return walked(make(hyper[0]), p, **extra)[0]

    def args() -> tuple[Any, ...]:
        return params(), number()

    return Case(f"optim.{name}", call, args, covers=covers)


def evaluated(p: TensorDict, lr: torch.Tensor, b1: torch.Tensor) -> TensorDict:
    after, state = walked(optim.schedule_free(optim.sgd(lr), lr, b1), p)
    return optim.schedule_free_eval_params(state, after)


def zoomed(p: TensorDict, u: TensorDict) -> TensorDict:
    search = optim.scale_by_zoom_linesearch(4, curv_rtol=0.05)
    return search.update(u, search.init(p), p, value_fn=loss)[0]


def backtracked(p: TensorDict, u: TensorDict, factor: torch.Tensor) -> TensorDict:
    search = optim.scale_by_backtracking_linesearch(6, decrease_factor=factor)
    return search.update(u, search.init(p), p, value_fn=loss)[0]


def downhill(length: float) -> TensorDict:
    return tree.map(lambda g: -length * g, slope(params()))


ROWS = [
    walk_case("schedule_free_sgd", lambda h: optim.schedule_free_sgd(h, weight_decay=h)),
    walk_case("schedule_free_adamw", lambda h: optim.schedule_free_adamw(h, eps=0.1)),
    Case(
        "optim.schedule_free_eval_params",
        evaluated,
        lambda: (params(), draw("lr", low=0.1, high=0.2), draw("b1", low=0.5, high=0.9)),
        covers=("optim.schedule_free",),
    ),
    walk_case("sam", lambda h: optim.sam(optim.sgd(0.1), h, adaptive=True), grad_fn=slope),
    walk_case("lbfgs", lambda h: optim.lbfgs(h, 2), covers=("optim.scale_by_lbfgs",)),
    Case(
        "optim.scale_by_backtracking_linesearch",
        backtracked,
        lambda: (params(), downhill(20.0), torch.tensor(0.3, dtype=D)),
    ),
    Case("optim.scale_by_zoom_linesearch", zoomed, lambda: (params(), downhill(2.0))),
]
