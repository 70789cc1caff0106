"""Rows of torch.optim's optimizers beside SGD and Adam; one number feeds all hyper-parameters."""

from collections.abc import Callable

import torch

from paramtree import optim
from tests.contract.case import Case, transform_case


def alias(name: str, make: Callable[[torch.Tensor], optim.Transform]) -> Case:
    """An optimizer, and the transform that it is made of."""
    return transform_case(name, make, covers=(f"optim.scale_by_{name}",))


ROWS = [
    transform_case("scale_by_stddev", lambda h: optim.scale_by_stddev(h, eps=h, eps_in_root=True)),
    transform_case(
        "rmsprop",
        lambda h: optim.rmsprop(
            h, decay=h, eps=h, momentum=h, nesterov=True, weight_decay=h, maximize=True
        ),
        covers=("optim.scale_by_rms",),
    ),
    transform_case(
        "adagrad",
        lambda h: optim.adagrad(h, lr_decay=h, initial_accumulator=h, eps=h, weight_decay=h),
        covers=("optim.scale_by_rss",),
    ),
    alias("adadelta", lambda h: optim.adadelta(h, rho=h, eps=h, weight_decay=h)),
    alias("adamax", lambda h: optim.adamax(h, h, h, eps=h, weight_decay=h)),
    alias(
        "radam",
        lambda h: optim.radam(
            h, h, 1 - h / 100, eps=h, weight_decay=h, decoupled_weight_decay=True
        ),
    ),
    alias(
        "nadam",
        lambda h: optim.nadam(
            h, h, h, eps=h, momentum_decay=h, weight_decay=h, decoupled_weight_decay=True
        ),
    ),
    alias("rprop", lambda h: optim.rprop(h, h, 1 + h, step_max=h * 1.1, maximize=True)),
    transform_case("asgd", lambda h: optim.asgd(h, lambd=h, alpha=h, t0=h, weight_decay=h)),
]
