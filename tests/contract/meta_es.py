"""Rows of evolution strategies and of a temporally-aware rule, in ``paramtree.meta``."""

from typing import Any

import torch
from tensordict import TensorDict

from paramtree import meta, rng, tree
from paramtree.envs import level_distribution
from tests.contract.case import Case, D, draw, flags

WORLD = level_distribution("small")
NETWORK = meta.lpg_network(4, 5, n_embedding=3, lifetime_input=True)
POPULATION = meta.lpg_population(WORLD, 2, n_prediction=4, workers=2, lifetime=2)
RULE = meta.lpg_rule(NETWORK)
ES = meta.es_training(RULE, {"small": POPULATION}, length=3)
PES = meta.pes_training(RULE, {"small": POPULATION}, updates=1, length=3)
LIVES = "unrolls every update of the longest life, which nobody waits for"


def moved(hyper: Any, state: Any, k: Any) -> Any:
    return tree.new({"x": state["x"].sin() + hyper["w"]})


def cost(hyper: Any, state: Any) -> torch.Tensor:
    return state["x"].square().sum() + hyper["w"].prod()


def born(key: torch.Tensor) -> TensorDict:
    return tree.new({"x": rng.normal(key, (2,), dtype=D)})


def persistent(hyper: TensorDict, width: torch.Tensor) -> Any:
    pes = meta.pes(moved, cost, 4, born, window=1, particles=3, sigma=width[0], stagger=True)
    return pes.step(hyper, pes.init(hyper, rng.key(1)))


def numbers() -> tuple[TensorDict, torch.Tensor]:
    return tree.new({"w": draw("w", 2)}), torch.full((1,), 0.3, dtype=D)


def noise() -> TensorDict:
    return tree.new({"w": draw("noise", 3, 2)}, (3,))


def seen() -> TensorDict:
    size = (2, 5)
    entries = {
        "reward": draw("reward", *size),
        "done": flags("done", *size),
        "gamma": draw("gamma", *size, low=0.5, high=1.0),
        "action_prob": draw("action_prob", *size, low=0.1, high=0.9),
        "prediction": draw("prediction", *size, 4),
        "next": tree.new({"prediction": draw("next prediction", *size, 4)}, size),
    }
    return tree.new(entries, size)


def aware_params() -> TensorDict:
    leaves, structure = tree.flatten(NETWORK.init(rng.key(0))[0])
    return tree.unflatten(structure, [x.double() for x in leaves])


def life() -> TensorDict:
    return tree.new({"age": torch.tensor(3.0, dtype=D), "lifetime": torch.tensor(8.0, dtype=D)})


ROWS = [
    Case(
        "meta.perturbations",
        lambda key: [
            meta.perturbations(key, numbers()[0], 3, basis=basis)
            for basis in ("normal", "orthogonal")
        ],
        lambda: (rng.key(3),),
        smooth=0,
    ),
    Case(
        "meta.es_gradient",
        lambda up, down, e, width: meta.es_gradient(up, down, e, sigma=width[0]),
        lambda: (draw("up", 3), draw("down", 3), noise(), numbers()[1]),
    ),
    Case("meta.pes", persistent, numbers, covers=("meta.Persistent",)),
    Case(
        "meta.lpg_network with a lifetime",
        lambda p, b, td: NETWORK.apply(p, b, td),
        lambda: (aware_params(), life(), seen()),
    ),
    Case(
        "meta.es_training",
        lambda s: ES.step(s)[0]["rule"],
        lambda: (ES.init(rng.key(0)),),
        smooth=0,
        compiled=LIVES,
    ),
    Case(
        "meta.pes_training",
        lambda s: PES.step(s)[0]["rule"],
        lambda: (PES.init(rng.key(0)),),
        smooth=0,
        compiled="compiles, in half a minute, as meta.lpg_training does",
    ),
]
