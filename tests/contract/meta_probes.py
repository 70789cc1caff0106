"""Rows of the probes: what a rule does, in numbers."""

from functools import partial

from tensordict import TensorDict

from paramtree import envs, meta, rng, tree
from tests.contract.case import Case, draw

WORLD = envs.level_distribution("small")
HABITAT = meta.lpg_population(WORLD, 2, n_prediction=4, workers=2, lifetime=3).habitat
RULE = meta.lpg_rule(meta.lpg_network(4, 5, n_embedding=3))
PARAMS = RULE.init(rng.key(2))[0]
HOST = "reads how long the longest episode is, for the dynamic programming; for pictures"
PROBE = partial(meta.probe_agents, RULE, PARAMS, HABITAT)


def some() -> TensorDict:
    return meta.births(HABITAT, RULE, rng.key(1), 2)


ROWS = [
    Case(
        "meta.probe_agents",
        lambda levels, key: tree.select(PROBE(levels, key, ages=(0, 1), length=2), "params.**"),
        lambda: (WORLD.sample(rng.split(rng.key(1), 2)), rng.key(3)),
        smooth=0,
        compiled="compiles, in half a minute, as the update of an agent does",
    ),
    Case(
        "meta.probe_trajectories",
        lambda a, key: meta.probe_trajectories(RULE, PARAMS, HABITAT, a, key, length=3)["return"],
        lambda: (some(), rng.key(3)),
        smooth=0,
        compiled=HOST,
    ),
    Case(
        "meta.probe_states",
        lambda agents: meta.probe_states(HABITAT, agents, gammas=(0.5,)),
        lambda: (some(),),
        smooth=0,
        compiled=HOST,
    ),
    Case(
        "meta.linear_reading",
        lambda y, v, w: meta.linear_reading(y, v, w, ridge=0.1),
        lambda: (draw("y", 2, 5, 3), draw("v", 2, 5, 2), draw("w", 2, 5, low=0.2)),
    ),
]
