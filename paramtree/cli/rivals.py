"""Hand-written rules by name, each with the agents that fit it, as opponents that do their best.

Constants are chosen for some worlds; on others they are those of the world that comes nearest.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from .. import meta, optim
from ..envs import LevelDistribution
from ..meta import Habitat, UpdateRule
from ..model import compose
from .options import A2C

_ACTOR_CRITIC = ("a2c", "ppo", "dpo", "reinforce", "vtrace")
_VALUES = ("q_lambda", "sarsa_lambda")
RIVALS = (*_ACTOR_CRITIC, *_VALUES)


class Constants(NamedTuple):
    """Hyper-parameters of a rule, by its keywords, and of its agents, by theirs."""

    rule: dict[str, Any]
    agents: dict[str, Any]


# For agents that are tables, on "small". A2C is tuned, by tests/benchmarks/tune_a2c.py. Others are
# not: those of actor-critics follow it; those of action values are the best of 17 settings on a few
# of the levels.
_SMALL: dict[str, Constants] = {
    "a2c": Constants(
        {"gamma": A2C.gamma, "lmbda": A2C.lmbda, "entropy_coeff": A2C.entropy_coeff},
        {"actor_rate": A2C.actor_rate, "critic_rate": A2C.critic_rate, "max_norm": A2C.clip},
    ),
    "ppo": Constants(
        {"gamma": 0.7, "lmbda": 0.95, "entropy_coeff": 0.1, "critic_coeff": 1.0},
        {"actor_rate": 40.0, "critic_rate": 4.0},
    ),
    "dpo": Constants(
        {"gamma": 0.7, "lmbda": 0.95, "entropy_coeff": 0.1, "critic_coeff": 1.0},
        {"actor_rate": 40.0, "critic_rate": 4.0},
    ),
    "reinforce": Constants(
        {"gamma": 0.7, "entropy_coeff": 0.27, "normalize": True, "bootstrap": True},
        {"actor_rate": 80.0, "critic_rate": 4.0},
    ),
    "vtrace": Constants(
        {"gamma": 0.7, "entropy_coeff": 0.27, "critic_coeff": 1.0, "normalize": True},
        {"actor_rate": 80.0, "critic_rate": 4.0},
    ),
    **{name: Constants({"gamma": 0.9, "lmbda": 0.8}, {"temperature": 0.01}) for name in _VALUES},
}
# For agents that are networks, with Adam: the papers' constants.
_NETWORKS: dict[str, Constants] = {
    **{name: Constants({}, {}) for name in _ACTOR_CRITIC},
    **{name: Constants({}, {"temperature": 0.1}) for name in _VALUES},
}
TUNED: dict[str, dict[str, Constants]] = {"small": _SMALL}

_MAKE: dict[str, Callable[..., UpdateRule]] = {
    name: getattr(meta, f"{name}_rule") for name in RIVALS
}


def constants_for(name: str, world: LevelDistribution) -> Constants:
    """Constants of a rule on a world.

    Args:
        name: the rule's.
        world: the levels' distribution.

    Returns:
        The constants.

    Raises:
        ValueError: there is no such rule.
    """
    if name not in RIVALS:
        raise ValueError(f"there is no rule {name!r}, expected one of {', '.join(RIVALS)}")
    usual = _SMALL if world.n_states is not None else _NETWORKS
    return TUNED.get(world.name, usual)[name]


def habitat_for(name: str, world: LevelDistribution, workers: int, **agents: Any) -> Habitat:
    """Agents for a rule on a world.

    Args:
        name: the rule's.
        world: the levels' distribution.
        workers: copies of the world in which each agent acts.
        **agents: what ``a2c_habitat`` takes, or for rules of action values ``critic_rate``,
            ``temperature`` and ``max_norm``.

    Returns:
        The agents.
    """
    if name in _VALUES:
        return _acting_by_values(world, workers, **agents)
    return meta.a2c_habitat(world, workers=workers, **agents)


def rival(
    name: str, world: LevelDistribution, workers: int, constants: Constants | None = None
) -> tuple[Habitat, UpdateRule]:
    """A hand-written rule, and its agents.

    Args:
        name: the rule's.
        world: the levels' distribution.
        workers: copies of the world in which each agent acts; where they can't be divided into
            its minibatches, the rule takes the rollout as a whole.
        constants: its hyper-parameters, or None for the world's.

    Returns:
        ``(habitat, rule)``.

    Raises:
        ValueError: there is no such rule.
    """
    chosen = constants_for(name, world) if constants is None else constants
    rule = _MAKE[name](**chosen.rule)
    if workers % rule.minibatches:
        rule = rule._replace(minibatches=1)
    return habitat_for(name, world, workers, **chosen.agents), rule


def _acting_by_values(
    world: LevelDistribution,
    workers: int,
    *,
    critic_rate: float | None = None,
    temperature: float = 0.1,
    max_norm: float = 0.5,
) -> Habitat:
    agent = compose(
        critic=meta.agent_model(world, world.n_actions, "action_value"),
        actor=meta.softmax_policy(temperature),
    )
    clip = optim.clip_by_global_norm(max_norm)
    if world.n_states is not None:
        # all states share the drift in time, which diverges at rates a few times larger
        optimizer = optim.chain(clip=clip, sgd=optim.sgd(critic_rate or 5.0))
    else:
        optimizer = optim.chain(clip=clip, adam=optim.adam(critic_rate or 1e-3))
    return Habitat(agent, world.env, world.sample, optimizer, workers, world.lifetime)
