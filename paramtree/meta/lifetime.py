"""Lifetimes: agents are born on a level, learn on it for so many updates, and make room for others.

Many agents of different ages live side by side. At the end of a lifetime an agent gets a new level
and fresh parameters, and the others go on. All that an agent is stands in one tree, so the agents
of a group are a tree of batch size ``[n]``:

    params, buffers, optimizer   the agent and its optimizer's state
    hyper                        hyper-parameters of this life, where the habitat leaves some open
    rule                         what the rule remembers of this life
    level, env                   its world and the workers' states [n, W]
    age, lifetime                updates lived, and to live, int64
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ..autodiff import vmap
from ..envs import Env
from ..model import Model
from ..optim import Transform
from ..rng.philox import is_plain
from ._check import require_count
from .update_rule import UpdateRule


class Habitat(NamedTuple):
    """Agents of one kind and where they live: what their states have in common.

    Attributes:
        agent: their model.
        env: their world.
        sample: gives a level of a key.
        optimizer: transform of their gradients, or a function that makes it of
            ``hyper["optimizer"]``, where each life has rates of its own.
        workers: copies of the world in which each agent acts.
        lifetime: updates in a life, or the bounds of a log-uniform draw at birth.
    """

    agent: Model
    env: Env
    sample: Callable[[Tensor], TensorDict]
    optimizer: Transform | Callable[[TensorDict], Transform]
    workers: int = 64
    lifetime: int | tuple[int, int] = 250


def birth(
    habitat: Habitat,
    rule: UpdateRule,
    key: Tensor,
    level: TensorDict | None = None,
    hyper: TensorDict | None = None,
) -> TensorDict:
    """A new agent on a level of its own.

    Args:
        habitat: the kind of agent.
        rule: the rule that will train it; its buffers begin with the life, and if they have a
            ``lifetime``, that of the agent is written there.
        key: key ``[2]``.
        level: the level, or None for a sample of the habitat's.
        hyper: hyper-parameters of this life: ``optimizer``, what the habitat's optimizer is made
            of, and ``loss``, keywords of the rule's loss; or None for none.

    Returns:
        The agent's state, of batch size ``[]``; ``vmap(partial(birth, habitat, rule))(keys)`` makes
        many.

    Raises:
        ValueError: the habitat's optimizer is a function, and no ``hyper`` is given; or its
            lifetime is below 1 or its bounds are in the wrong order.
        TypeError: its lifetime isn't an int or two.
    """
    if level is None:
        level = habitat.sample(rng.fold_in(key, "level"))
    params, buffers = habitat.agent.init(rng.fold_in(key, "agent"))
    _, memory = rule.init(rng.fold_in(key, "rule"))
    lifetime = _lifetime(habitat.lifetime, rng.fold_in(key, "lifetime"))
    if "lifetime" in memory.keys():
        memory = tree.replace(memory, {"lifetime": lifetime.to(memory["lifetime"].dtype)})
    noise = habitat.env.noise(level, rng.fold_in(key, "env"), (habitat.workers,))
    state = {
        "params": params,
        "buffers": buffers,
        "optimizer": _optimizer(habitat, hyper).init(params),
        "rule": memory,
        "level": level,
        "env": habitat.env.reset(level, noise),
        "age": torch.zeros_like(lifetime),
        "lifetime": lifetime,
    }
    if hyper is not None:
        state["hyper"] = hyper
    return tree.new(
        {name: tree.lock(v) if isinstance(v, TensorDict) else v for name, v in state.items()}
    )


def _optimizer(habitat: Habitat, hyper: TensorDict | None) -> Transform:
    if isinstance(habitat.optimizer, Transform):
        return habitat.optimizer
    if hyper is None:
        raise ValueError("birth: hyper is None, expected a tree (the habitat's optimizer takes it)")
    return habitat.optimizer(hyper["optimizer"])


def _lifetime(bounds: int | tuple[int, int], key: Tensor) -> Tensor:
    both = bounds if isinstance(bounds, tuple | list) else (bounds, bounds)
    for bound in both:
        require_count("birth", "lifetime", bound)
    if len(both) != 2 or both[0] > both[1]:
        raise ValueError(f"birth: lifetime is {bounds}, expected (low, high)")
    low, high = both
    if isinstance(bounds, int):
        return torch.full((), bounds, dtype=torch.int64, device=key.device)
    drawn = rng.uniform(key, (), math.log(low), math.log(high + 1)).exp().to(torch.int64)
    return drawn.clamp(low, high)


def births(
    habitat: Habitat,
    rule: UpdateRule,
    key: Tensor,
    n: int,
    *,
    rows: Tensor | None = None,
    levels: TensorDict | None = None,
    hypers: TensorDict | None = None,
    stagger: bool = False,
) -> TensorDict:
    """Many new agents.

    Args:
        habitat: the kind of agents.
        rule: the rule that will train them.
        key: key ``[2]``; agent i comes from ``split(key, n)[i]``.
        n: how many.
        rows: which of them to make, int64 ``[m]``, or None for all n; the batch sizes below are
            ``[m]`` then.
        levels: one level for each, of batch size ``[n]``, or None for samples of the habitat's.
        hypers: hyper-parameters of each life, of batch size ``[n]``, or None for none.
        stagger: whether the first lives end early, agent i's by ``i / n`` of a lifetime, so that
            ages spread.

    Returns:
        The agents' states, of batch size ``[n]``.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"births: n is {n}, expected at least 1")
    born = partial(birth, habitat, rule)
    keys = rng.split(key, n)
    agents = vmap(born)(keys if rows is None else keys[rows], level=levels, hyper=hypers)
    # laid out as later states are, so that a compiled step is compiled once
    agents = tree.map(torch.Tensor.contiguous, agents)
    if not stagger:
        return agents
    place = torch.arange(n, device=key.device) if rows is None else rows
    ages = place * agents["lifetime"] // n
    told = tree.entries(agents["rule"]).get("age")  # what a rule knows that knows of ages
    known = {} if told is None else {"rule.age": ages.to(told.dtype)}
    return tree.replace(agents, {"age": ages, **known})


def renew(agents: TensorDict, born: Callable[[Tensor], TensorDict]) -> TensorDict:
    """Agents with new ones in place of those at the end of their lifetime.

    Args:
        agents: their states, of batch size ``[n]``.
        born: ``born(rows) -> agents``, new ones for some rows, int64 ``[m]``, as ``births`` makes
            them; called only where some agent is at its end. In compiled code and under transforms,
            where nobody can look at ages, it's called for all rows.

    Returns:
        The states; whoever has lived fewer updates than a lifetime goes on as before.
    """
    over = agents["age"] >= agents["lifetime"]
    if not is_plain(over):
        return tree.where(over, born(torch.arange(len(over), device=over.device)), agents)
    rows = over.nonzero().squeeze(1)
    if not len(rows):
        return agents
    return tree.map(lambda x, new: x.index_copy(0, rows, new), agents, born(rows))


def older(agents: TensorDict, updates: int) -> TensorDict:
    """The same agents with so many more updates behind them.

    Args:
        agents: their states.
        updates: how many.

    Returns:
        The states.
    """
    return tree.new({**tree.entries(agents), "age": agents["age"] + updates}, agents.batch_size)
