"""Lifetimes: agents are born on a level, learn on it for so many updates, and make room for others.

Many agents of different ages live side by side. At the end of a lifetime an agent gets a new level
and fresh parameters, and the others go on. All that an agent is stands in one tree, so the agents
of a group are a tree of batch size ``[n]``:

    params, buffers, optimizer   the agent and its optimizer's state
    rule                         what the rule remembers of this life
    level, env                   its world and the workers' states [n, W]
    age                          updates lived, int64
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import rng, tree
from ..autodiff import vmap
from ..envs import Env
from ..model import Model
from ..optim import Transform
from ..rng.philox import is_plain
from .inner_loop import inner_loop
from .update_rule import UpdateRule


class Habitat(NamedTuple):
    """Agents of one kind and where they live: what their states have in common."""

    agent: Model
    env: Env
    sample: Callable[[Tensor], TensorDict]
    optimizer: Transform
    workers: int = 64
    lifetime: int = 250


def birth(
    habitat: Habitat, rule: UpdateRule, key: Tensor, level: TensorDict | None = None
) -> TensorDict:
    """A new agent on a level of its own.

    Args:
        habitat: the kind of agent.
        rule: the rule that will train it; its buffers begin with the life.
        key: key ``[2]``.
        level: the level, or None for a sample of the habitat's.

    Returns:
        The agent's state, of batch size ``[]``; ``vmap(partial(birth, habitat, rule))(keys)`` makes
        many.
    """
    if level is None:
        level = habitat.sample(rng.fold_in(key, "level"))
    params, buffers = habitat.agent.init(rng.fold_in(key, "agent"))
    _, memory = rule.init(rng.fold_in(key, "rule"))
    noise = habitat.env.noise(level, rng.fold_in(key, "env"), (habitat.workers,))
    state = {
        "params": params,
        "buffers": buffers,
        "optimizer": habitat.optimizer.init(params),
        "rule": memory,
        "level": level,
        "env": habitat.env.reset(level, noise),
        "age": torch.zeros((), dtype=torch.int64, device=key.device),
    }
    return tree.new(
        {name: tree.lock(v) if isinstance(v, TensorDict) else v for name, v in state.items()}
    )


def births(
    habitat: Habitat, rule: UpdateRule, key: Tensor, n: int, *, stagger: bool = False
) -> TensorDict:
    """Many new agents.

    Args:
        habitat: the kind of agents.
        rule: the rule that will train them.
        key: key ``[2]``; agent i comes from ``split(key, n)[i]``.
        n: how many.
        stagger: whether the first lives end early, agent i's by ``i / n`` of a lifetime, so that
            ages spread.

    Returns:
        The agents' states, of batch size ``[n]``.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"births: n is {n}, expected at least 1")
    agents = vmap(partial(birth, habitat, rule))(rng.split(key, n))
    # laid out as later states are, so that a compiled step is compiled once
    agents = tree.map(torch.Tensor.contiguous, agents)
    if not stagger:
        return agents
    ages = torch.arange(n, device=key.device) * habitat.lifetime // n
    return tree.replace(agents, {"age": ages})


def renew(agents: TensorDict, lifetime: int, born: Callable[[], TensorDict]) -> TensorDict:
    """Agents with new ones in place of those at the end of their lifetime.

    Args:
        agents: their states, of batch size ``[n]``.
        lifetime: updates in a life.
        born: gives n new agents; called only where some agent is at its end, but always in compiled
            code and under transforms, where nobody can look at ages.

    Returns:
        The states; whoever has lived fewer updates than a lifetime goes on as before.
    """
    over = agents["age"] >= lifetime
    return agents if is_plain(over) and not bool(over.any()) else tree.where(over, born(), agents)


def older(agents: TensorDict, updates: int) -> TensorDict:
    """The same agents with so many more updates behind them.

    Args:
        agents: their states.
        updates: how many.

    Returns:
        The states.
    """
    return tree.new({**tree.entries(agents), "age": agents["age"] + updates}, agents.batch_size)


def reward_curve(
    habitat: Habitat,
    rule: UpdateRule,
    rule_params: TensorDict,
    levels: TensorDict,
    key: Tensor,
    *,
    updates: int = 250,
    length: int = 20,
    dist_class: Any = Categorical,
    report: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Mean reward per step over the lives of agents that start from scratch: how good a rule is.

    Args:
        habitat: the kind of agents.
        rule: the rule to look at.
        rule_params: its parameters.
        levels: one level for each agent, of batch size ``[n]``.
        key: key ``[2]``: the same key gives the same levels the same noise under every rule.
        updates: length of a life.
        length: steps of each rollout.
        dist_class: distribution of the actions.
        report: called with the number of updates done and the last rewards ``[n]``; None in
            compiled code, which can't call back, and where the loop over the updates is unrolled.

    Returns:
        ``[n, updates]`` mean reward per step in each rollout, over workers and steps.

    Raises:
        ValueError: ``updates`` or ``length`` is below 1, or the levels have another batch size.
    """
    tree.require_tree("reward_curve", "levels", levels)
    if len(levels.batch_size) != 1:
        sizes = f"{list(levels.batch_size)}, expected [n]"
        raise ValueError(f"reward_curve: levels has batch size {sizes}")
    if updates < 1:
        raise ValueError(f"reward_curve: updates is {updates}, expected at least 1")
    n = levels.batch_size[0]
    born, lived = rng.fold_in(key, "birth"), rng.fold_in(key, "life")
    group = {"agents": (habitat.agent, habitat.env, levels)}
    options = {"updates": 1, "length": length, "dist_class": dist_class}
    with torch.no_grad():
        agents = vmap(partial(birth, habitat, rule))(rng.split(born, n), levels)
        states = tree.new({"agents": agents})
        rewards = []
        for k in range(updates):
            step = rng.fold_in(lived, k)
            states, trajectories = inner_loop(
                rule, group, habitat.optimizer, rule_params, states, step, **options
            )
            rewards.append(trajectories["agents"][0]["next", "reward"].reshape(n, -1).mean(1))
            if report is not None:
                report(k + 1, rewards[-1])
    return torch.stack(rewards, 1)
