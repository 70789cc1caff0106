"""Rows of the curricula: levels for new agents, and what old ones were worth."""

from typing import Any

import torch
from tensordict import TensorDict

from paramtree import envs, meta, rng, tree
from tests.contract.case import Case, draw

WORLD = envs.level_distribution("small")
POPULATION = meta.lpg_population(WORLD, 2, n_prediction=4, workers=2, lifetime=3)
HABITAT, CRITIC = POPULATION.habitat, POPULATION.critic
RULE = meta.lpg_rule(meta.lpg_network(4, 5, n_embedding=3))
REGRET = meta.algorithmic_regret(
    HABITAT, meta.a2c_habitat(WORLD, workers=2, lifetime=1), horizon=3, length=2
)
MINUTE = "compiles, in half a minute, as the update of an agent does"


def point(key: torch.Tensor) -> TensorDict:
    """A level that is nothing but a number: a grid world's takes long to compile."""
    return tree.new({"x": rng.uniform(key, (), dtype=torch.float64)})


REPLAY = meta.prioritized_level_replay(point, meta.random_score(), size=6)
UNIFORM = meta.uniform_curriculum(point)


def old() -> TensorDict:
    agents = meta.births(HABITAT, RULE, rng.key(1), 2)
    params, _ = CRITIC.init(rng.key(2))
    critic = tree.stack([tree.new({"params": params})] * 2)
    entries = {**tree.entries(agents), "critic": critic, "lifetime": torch.ones(2).long()}
    return tree.new(entries, (2,))


def replayed(state: TensorDict, agents: TensorDict, over: torch.Tensor, key: torch.Tensor) -> Any:
    return REPLAY.renew(state, agents, over, key)


def seen() -> tuple[Any, ...]:
    state, _ = REPLAY.init(rng.key(0), 2)
    state = tree.replace(state, {"new": state["active"], "score": draw("score", 6).float()})
    agents = tree.new({"level": tree.new({"x": draw("x", 2)}, (2,))}, (2,))
    return state, agents, torch.tensor([True, False]), rng.key(3)


def scored(score: Any) -> Any:
    return lambda agents, key: score(agents, rng.split(key, 2))


ROWS = [
    Case(
        "meta.replay_chances",
        lambda score, age: meta.replay_chances(score, age, age > 1, prioritization="proportional"),
        lambda: (draw("score", 5, low=0.2), torch.arange(5)),
    ),
    Case(
        "meta.prioritized_level_replay",
        replayed,
        seen,
        smooth=0,
        covers=("meta.Curriculum", "meta.random_score"),
    ),
    Case(
        "meta.uniform_curriculum",
        lambda agents, over, key: UNIFORM.renew(tree.new({}), agents, over, key)[1],
        lambda: seen()[1:],
        smooth=0,
    ),
    Case(
        "meta.algorithmic_regret",
        scored(REGRET),
        lambda: (old(), rng.key(1)),
        smooth=0,
        compiled=MINUTE,
    ),
    *[
        Case(
            f"meta.{make.__name__}",
            scored(make(HABITAT, CRITIC, length=3)),
            lambda: (old(), rng.key(1)),
            smooth=0,
            compiled=MINUTE,
        )
        for make in (meta.positive_value_loss, meta.l1_value_loss, meta.max_monte_carlo)
    ],
]
