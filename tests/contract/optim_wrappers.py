"""Rows of the transforms around transforms, and of the slow copies of a tree."""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import optim, tree
from tests.contract.case import Case, D, grads, number, params


def wrapper(name: str, make: Callable[[torch.Tensor], optim.Transform]) -> Case:
    """Params and state after some updates, as functions of gradients, params and one number."""

    def call(p: TensorDict, g: TensorDict, hyper: torch.Tensor) -> tuple[TensorDict, TensorDict]:
        transform = make(hyper[0])
        state = transform.init(p)
        for step in range(2):
            value = g["meta", "w"].sum() * 0 + 1.0 + step
            updates, state = transform.update(g, state, p, value=value)
            p, g = optim.apply_updates(p, updates), tree.map(torch.sin, g)
        return p, state

    def args() -> tuple[Any, ...]:
        return params(), grads(), number()

    return Case(f"optim.{name}", call, args)


def injected(hyper: torch.Tensor) -> optim.Transform:
    return optim.inject_hyperparams(optim.adam)(hyper, b1=optim.linear(0.9, hyper, 4), eps=0.1)


ROWS = [
    wrapper("masked", lambda h: optim.masked(optim.sgd(h, 0.9), "**.w", "policy")),
    wrapper("freeze", lambda h: optim.chain(sgd=optim.sgd(h, 0.9), stay=optim.freeze("**.b"))),
    wrapper("selective_transform", lambda h: optim.selective_transform(optim.sgd(h, 0.9), "meta")),
    wrapper("apply_if_finite", lambda h: optim.apply_if_finite(optim.sgd(h, 0.9), 2)),
    wrapper("multi_steps", lambda h: optim.multi_steps(optim.sgd(h, 0.9), 2)),
    wrapper("apply_every", lambda h: optim.chain(sum=optim.apply_every(2), sgd=optim.sgd(h))),
    wrapper("inject_hyperparams", injected),
    wrapper("lookahead", lambda h: optim.lookahead(optim.sgd(h, 0.9), 2, h)),
    wrapper(
        "monitor",
        lambda h: optim.chain(
            sgd=optim.sgd(h), seen=optim.monitor({"u": tree.norm}, {"p": tree.norm})
        ),
    ),
    wrapper("reduce_on_plateau", lambda h: optim.reduce_on_plateau(h, patience=0, min_scale=0.01)),
    Case(
        "optim.incremental_update",
        optim.incremental_update,
        lambda: (params(), grads(), torch.tensor(0.3, dtype=D)),
    ),
    Case(
        "optim.periodic_update",
        lambda new, old, steps: optim.periodic_update(new, old, steps, 2),
        lambda: (params(), grads(), torch.tensor(4)),
    ),
]
