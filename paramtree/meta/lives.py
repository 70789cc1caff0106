"""Whole lives of agents, each under a rule of its own, and how they fared.

An agent's state is that of a population's: ``lifetime`` says what is in it.
"""

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ..autodiff import vmap
from ..envs import rollout
from ..rng.philox import is_plain
from .inner_loop import train_agent
from .lifetime import Habitat
from .update_rule import UpdateRule

_LAST = 5  # the end of a life is its last fifth


def updated(
    rule: UpdateRule,
    habitat: Habitat,
    params: TensorDict,
    agent: TensorDict,
    key: Tensor,
    *,
    length: int,
    dist_class: Any,
) -> tuple[TensorDict, Tensor]:
    """One agent after one more update.

    Args:
        rule: the rule.
        habitat: the kind of agent.
        params: the rule's parameters.
        agent: its state.
        key: key ``[2]``.
        length: steps of the rollout.
        dist_class: distribution of the actions.

    Returns:
        The agent, and the mean reward per step of the trajectory that it learned from.
    """
    after, (td,) = train_agent(
        rule,
        habitat.agent,
        habitat.env,
        habitat.optimizer,
        params,
        agent["level"],
        agent,
        key,
        updates=1,
        length=length,
        dist_class=dist_class,
    )
    played: Any = td["next"]
    workers = td.batch_size[0]
    more = {
        "age": agent["age"] + 1,
        "earned": agent["earned"] + played["reward"].sum() / workers,
        "episodes": agent["episodes"] + played["done"].sum() / workers,
    }
    return tree.new({**tree.entries(after), **more}), played["reward"].mean()


def final_share(age: Tensor, lifetime: Tensor) -> Tensor:
    """Weight of an update in the end of a life: they add up to 1 over the life.

    Args:
        age: updates before it.
        lifetime: updates of the life.

    Returns:
        The weight, float.
    """
    part = (lifetime // _LAST).clamp(min=1)
    return (age >= lifetime - part) / part


def lives(
    rule: UpdateRule,
    habitat: Habitat,
    params: TensorDict,
    agents: TensorDict,
    keys: Tensor,
    *,
    length: int,
    dist_class: Any,
) -> tuple[TensorDict, Tensor, Tensor]:
    """Agents from where they stand to the end of their lives, each under a rule of its own.

    Where values can be seen, those that live longest are in front, and whoever dies leaves the
    loop; else each stays to the end of the longest life, as it was at its own end.

    Args:
        rule: the rule.
        habitat: the kind of agents.
        params: the rule's parameters, ``[n]``.
        agents: their states, ``[n]``.
        keys: ``[n, 2]``; update k uses ``fold_in(key, k)``.
        length: steps of each rollout.
        dist_class: distribution of the actions.

    Returns:
        The agents, and ``[n]`` mean rewards per step: over the last fifth, and over all of a life.
    """
    n, lifetime = keys.shape[0], agents["lifetime"]
    zero = torch.zeros(n, device=keys.device)
    life = {"params": params, "agent": agents, "key": keys, "final": zero, "whole": zero}
    life, seen = tree.new(life, (n,)), is_plain(lifetime)
    bounds = habitat.lifetime
    longest = bounds if isinstance(bounds, int) else bounds[1]
    live = partial(updated, rule, habitat, length=length, dist_class=dist_class)

    def older(life: TensorDict) -> TensorDict:
        agent: Any = life["agent"]
        key = life["key"]
        age, lifetime = agent["age"], agent["lifetime"]
        after, reward = live(life["params"], agent, rng.fold_in(key, age))
        more = {
            "agent": after,
            "final": life["final"] + final_share(age, lifetime) * reward,
            "whole": life["whole"] + reward / lifetime,
        }
        after = tree.new({**tree.entries(life), **more})
        return after if seen else tree.where(age < lifetime, after, life)

    ended, order = [], None
    if seen:
        order = (lifetime - agents["age"]).argsort(descending=True, stable=True)
        life = tree.take(life, order)
        longest = int((lifetime - agents["age"]).max())
    for _ in range(longest):
        if seen:
            now: Any = life["agent"]
            alive = int((now["age"] < now["lifetime"]).sum())
            if alive < now.batch_size[0]:
                ended.append(tree.lock(life[alive:]))
                life = tree.lock(life[:alive])
        life = vmap(older)(life)
    if order is not None:
        life = tree.concat([life, *reversed(ended)]) if ended else life
        life = tree.take(life, order.argsort())
    return life["agent"], life["final"], life["whole"]


def episode_return(
    habitat: Habitat, horizon: int, dist_class: Any, agent: TensorDict, key: Tensor
) -> Tensor:
    """Mean undiscounted return of an agent's workers over one episode each, from its start.

    Args:
        habitat: the kind of agent.
        horizon: steps that are looked at; what an episode gives later doesn't count.
        dist_class: distribution of the actions.
        agent: its state.
        key: key ``[2]``.

    Returns:
        0-d.
    """
    key = rng.fold_in(key, "return")
    return first_returns(episodes(habitat, horizon, dist_class, agent, key, key)).mean()


def episodes(
    habitat: Habitat,
    length: int,
    dist_class: Any,
    agent: TensorDict,
    key: Tensor,
    moves: Tensor,
) -> TensorDict:
    """Trajectory of an agent's workers from the start of an episode, without a graph.

    Args:
        habitat: the kind of agent.
        length: T, its steps.
        dist_class: distribution of the actions.
        agent: its state.
        key: key ``[2]`` of the start.
        moves: key ``[2]`` of the steps.

    Returns:
        The trajectory ``[W, T]``.
    """
    env, level = habitat.env, agent["level"]
    noise = env.noise(level, rng.fold_in(key, "reset"), (habitat.workers,))
    start, acting = env.reset(level, noise), (agent["params"], agent["buffers"], level)
    return rollout(env, habitat.agent, *acting, start, moves, length, dist_class)[2]


def first_returns(td: TensorDict, gamma: float = 1.0) -> Tensor:
    """Return of each worker's first episode, as far as a trajectory goes.

    Args:
        td: trajectory ``[W, T]`` from the start of an episode.
        gamma: discount.

    Returns:
        ``[W]``.
    """
    reward, done = td["next", "reward"], td["next", "done"].long()
    going = (done.cumsum(-1) - done) == 0
    discount = gamma ** torch.arange(reward.shape[-1], device=reward.device)
    return (reward * going * discount.to(reward.dtype)).sum(-1)
