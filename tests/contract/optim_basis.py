"""The plain transforms, sgd and Adam, chains and partitions, and the step that does all at once."""

from typing import Any

import torch
from tensordict import TensorDict

from paramtree import optim, tree
from tests.contract.case import Case, D, grads, params, transform_case


def stepped(p: TensorDict, g: TensorDict, rate: torch.Tensor) -> Any:
    """Two steps, of which the second gives up what the first one made."""
    optimizer = optim.chain(clip=optim.clip_by_global_norm(1.0), adam=optim.adam(rate, eps=0.1))
    after, state = optim.step(optimizer, g, optimizer.init(p), p)
    return optim.step(optimizer, tree.map(torch.sin, g), state, after, donate=True)


def moved(p: TensorDict) -> TensorDict:
    """A tree that nobody else holds, for a new owner."""
    return tree.moved("moved", tree.map(torch.clone, p))


ROWS = [
    transform_case(
        "sgd",
        lambda h: optim.sgd(h, momentum=h, dampening=h, weight_decay=h),
        inductor=True,
        covers=(
            "optim.add_decayed_weights",
            "optim.apply_updates",
            "optim.scale_by_learning_rate",
            "optim.trace",
            "optim.Transform",
        ),
    ),
    transform_case(
        "adam",
        lambda h: optim.adam(h, eps=0.1),
        inductor=True,
        covers=("optim.scale_by_adam",),
    ),
    transform_case(
        "adamw",
        lambda h: optim.adamw(h, eps=0.1, weight_decay=0.1, amsgrad=True),
        covers=("optim.scale_by_amsgrad",),
    ),
    transform_case("ema", optim.ema),
    transform_case(
        "identity",
        lambda h: optim.chain(one=optim.identity(), two=optim.scale(h)),
        covers=("optim.scale",),
    ),
    transform_case(
        "scale_by_schedule",
        lambda h: optim.chain(
            up=optim.scale_by_schedule(optim.linear(h, 0.1, 5)),
            lr=optim.scale_by_learning_rate(optim.constant(h)),
        ),
        covers=("optim.linear", "optim.constant"),
    ),
    transform_case(
        "chain",
        lambda h: optim.chain(clip=optim.clip_by_global_norm(h), sgd=optim.sgd(h)),
        covers=("optim.clip_by_global_norm",),
    ),
    transform_case(
        "partition",
        lambda h: optim.partition({"policy.**": optim.sgd(h, 0.9), "meta": optim.set_to_zero()}),
        covers=("optim.set_to_zero",),
    ),
    transform_case(
        "stateless", lambda h: optim.stateless(lambda g, p: tree.map(lambda x: h * x, g))
    ),
    Case(
        "optim.step",
        stepped,
        lambda: (params(), grads(), torch.tensor(0.3, dtype=D)),
        covers=("tree.movable",),
    ),
    Case("tree.moved", moved, lambda: (params(),)),
]
