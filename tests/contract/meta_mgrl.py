"""Rows of ``meta/mgrl``: hyper-parameters from eta, and a step of a training."""

from typing import Any

import torch
from tensordict import TensorDict

from paramtree import meta, nn, optim, rng, td_model, tree
from tests.contract.case import Case, draw
from tests.paramtree.meta.mgrl_problems import NUMBERS, double, training

NAMES = {"gamma": "sigmoid", "lr": "exp", "entropy_coeff": "softplus", "odd": "none"}
NET = td_model(nn.mlp(3, 4, 1, activation=torch.tanh), "observation", "gamma")
MINUTE = "compiles, in a minute: tests/paramtree/meta/test_mgrl.py holds it"
MADE = training("a2c", 1, eta_optimizer=optim.sgd(0.1))
TRACED = training("a2c", 1, eta_optimizer=optim.sgd(0.1), method="trace", exact=True)


def eta() -> TensorDict:
    return tree.new({name: draw(name) for name in NAMES})


def schedule() -> TensorDict:
    return tree.new({name: draw(name, 3) for name in NUMBERS})


def seen() -> TensorDict:
    return tree.new({"observation": draw("observation", 2, 5, 3)}, (2, 5))


def read(hyper: meta.Hyper, eta: TensorDict, td: TensorDict) -> tuple[TensorDict, ...]:
    return *hyper.apply(eta, td, 1), hyper.show(eta, td)


def stepped(made: meta.Training, state: TensorDict) -> Any:
    after, metrics = made.step(state)
    return after["eta"], after["agents", "params"], metrics


ROWS = [
    Case("meta.to_hyper", lambda e: meta.to_hyper(e, NAMES), lambda: (eta(),)),
    Case(
        "meta.to_eta",
        lambda h: meta.to_eta(h, NAMES),
        lambda: (meta.to_hyper(eta(), NAMES),),
        covers=("meta.Constraint",),
    ),
    Case(
        "meta.hyper_numbers",
        lambda e, td: read(meta.hyper_numbers(dict.fromkeys(NAMES, 0.5), NAMES), e, td),
        lambda: (eta(), seen()),
        covers=("meta.Hyper",),
    ),
    Case(
        "meta.hyper_schedule",
        lambda e, td: read(meta.hyper_schedule(NUMBERS, 3), e, td),
        lambda: (schedule(), seen()),
    ),
    Case(
        "meta.hyper_network",
        lambda e, td: read(meta.hyper_network(NET, {"gamma": "sigmoid"}), e, td),
        lambda: (double(NET.init(rng.key(3))[0]), seen()),
    ),
    Case(
        "meta.mgrl_training",
        lambda s: stepped(MADE, s),
        lambda: (double(MADE.init(rng.key(0))),),
        smooth=0,
        compiled=MINUTE,
    ),
    Case(
        "meta.mgrl_training.trace",
        lambda s: stepped(TRACED, s),
        lambda: (double(TRACED.init(rng.key(0))),),
        smooth=0,
        compiled=MINUTE,
    ),
]
