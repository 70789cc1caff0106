"""The plain transforms, sgd and Adam, chains and partitions, and the step that does all at once."""

from typing import Any

import torch
from tensordict import TensorDict

from paramtree import optim, tree
from tests.contract.case import Case, D, params, transform_case


def stepped(p: TensorDict, g: TensorDict, rate: torch.Tensor) -> Any:
    """Two steps, of which the second gives up what the first one made."""
    optimizer = optim.chain(clip=optim.clip_by_global_norm(1.0), adam=optim.adam(rate, eps=0.1))
    after, state = optim.step(optimizer, g, optimizer.init(p), p)
    return optim.step(optimizer, tree.map(torch.sin, g), state, after, donate=True)


def moved(p: TensorDict) -> TensorDict:
    """A tree that nobody else holds, for a new owner."""
    return tree.moved("moved", tree.map(torch.clone, p))


def slopes() -> TensorDict:
    return tree.map(lambda x: (3 * x).cos(), params())


ROWS = [
    transform_case(
        "sgd",
        lambda h: optim.sgd(h, momentum=0.9, nesterov=True, weight_decay=0.1),
        inductor=True,
        covers=("optim.apply_updates", "optim.Transform"),
    ),
    transform_case("adam", lambda h: optim.adam(h, eps=0.1), inductor=True),
    transform_case("adamw", lambda h: optim.adamw(h, eps=0.1, weight_decay=0.1)),
    transform_case("scale_by_adam", lambda h: optim.scale_by_adam(h, eps=0.1, nesterov=True)),
    transform_case("scale_by_amsgrad", lambda h: optim.scale_by_amsgrad(h, eps=0.1)),
    transform_case("trace", lambda h: optim.trace(h, dampening=0.2)),
    transform_case("ema", optim.ema),
    transform_case("add_decayed_weights", optim.add_decayed_weights),
    transform_case("clip_by_global_norm", optim.clip_by_global_norm),
    transform_case("scale", optim.scale),
    transform_case("scale_by_learning_rate", optim.scale_by_learning_rate),
    transform_case("identity", lambda h: optim.chain(one=optim.identity(), two=optim.sgd(h))),
    transform_case("set_to_zero", lambda h: optim.chain(a=optim.sgd(h), b=optim.set_to_zero())),
    transform_case(
        "scale_by_schedule",
        lambda h: optim.scale_by_schedule(optim.linear(h, 0.1, 5)),
        covers=("optim.linear",),
    ),
    transform_case("constant", lambda h: optim.sgd(optim.constant(h))),
    transform_case(
        "chain", lambda h: optim.chain(clip=optim.clip_by_global_norm(1.0), sgd=optim.sgd(h))
    ),
    transform_case(
        "partition",
        lambda h: optim.partition({"policy.**": optim.sgd(h), "meta": optim.adam(h, eps=0.1)}),
    ),
    transform_case(
        "stateless", lambda h: optim.stateless(lambda g, p: tree.map(lambda x: h * x, g))
    ),
    Case("optim.step", stepped, lambda: (params(), slopes(), torch.tensor(0.3, dtype=D))),
    Case("tree.moved", moved, lambda: (params(),)),
]
