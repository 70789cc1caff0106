"""How good a rule is, in three numbers for each level: at the end of a life, over it, and after it.

    final      mean reward per step over the last fifth of the updates
    lifetime   mean reward per step over all of them
    return     mean undiscounted return of an episode under the last policy, from a fresh start

The first is what an agent has come to, the second also counts how soon, and the third is without
the episodes that were on their way.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import rng, tree
from ..autodiff import vmap
from ._check import require_count
from .inner_loop import train_agent
from .lifetime import Habitat, birth
from .lives import episode_return
from .update_rule import UpdateRule


def lifetime_scores(
    habitat: Habitat,
    rule: UpdateRule,
    rule_params: TensorDict,
    levels: TensorDict,
    key: Tensor,
    *,
    horizon: int,
    updates: int = 250,
    length: int = 20,
    dist_class: Any = Categorical,
    hypers: TensorDict | None = None,
    report: Callable[[int, Tensor], None] | None = None,
) -> TensorDict:
    """Lives of agents that start from scratch, and what they come to.

    Args:
        habitat: the kind of agents.
        rule: the rule to look at.
        rule_params: its parameters.
        levels: one level for each agent, of batch size ``[n]``.
        key: key ``[2]``: the same key gives the same levels the same noise under every rule.
        horizon: steps of the longest episode, a distribution's ``max_steps``; 0 for no returns.
        updates: U, the length of a life.
        length: steps of each rollout.
        dist_class: distribution of the actions.
        hypers: hyper-parameters of each life, ``[n]`` as in ``birth``, or None for none.
        report: called with the number of updates done and the last rewards ``[n]``; None in
            compiled code, which can't call back, and where the loop over the updates is unrolled.

    Returns:
        ``rewards`` ``[n, U]``, mean reward per step in each rollout, over workers and steps; and
        ``final``, ``lifetime`` and, with a horizon, ``return``, ``[n]``.

    Raises:
        ValueError: ``updates`` or ``length`` is below 1, the horizon is negative, or the levels
            have another batch size or there are none.
        TypeError: one of these numbers isn't an int.
    """
    if not isinstance(horizon, int):
        raise TypeError(f"lifetime_scores: horizon is {horizon!r}, expected an int")
    if horizon < 0:
        raise ValueError(f"lifetime_scores: horizon is {horizon}, expected at least 0")
    agents, rewards = _lived(
        "lifetime_scores",
        habitat,
        rule,
        rule_params,
        levels,
        key,
        (updates, length, dist_class, hypers, report),
    )
    found = curve_scores(rewards)
    if not horizon:
        return found
    with torch.no_grad():
        play = partial(episode_return, habitat, horizon, dist_class)
        returns = vmap(play)(agents, rng.split(rng.fold_in(key, "last"), len(rewards)))
    return tree.new({**tree.entries(found), "return": returns}, found.batch_size)


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
    hypers: TensorDict | None = None,
    report: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Mean reward per step over the lives of agents that start from scratch.

    Args:
        habitat: as in ``lifetime_scores``, as are all arguments.
        rule: see there.
        rule_params: see there.
        levels: see there.
        key: see there.
        updates: see there.
        length: see there.
        dist_class: see there.
        hypers: see there.
        report: see there.

    Returns:
        ``[n, updates]``, the ``rewards`` of ``lifetime_scores``.

    Raises:
        ValueError: ``updates`` or ``length`` is below 1, or the levels have another batch size or
            there are none.
        TypeError: one of these numbers isn't an int.
    """
    options = (updates, length, dist_class, hypers, report)
    return _lived("reward_curve", habitat, rule, rule_params, levels, key, options)[1]


def _lived(
    fn: str,
    habitat: Habitat,
    rule: UpdateRule,
    rule_params: TensorDict,
    levels: TensorDict,
    key: Tensor,
    options: tuple[int, int, Any, TensorDict | None, Callable[[int, Tensor], None] | None],
) -> tuple[TensorDict, Tensor]:
    """Agents at the end of their lives, and their rewards ``[n, updates]``."""
    updates, length, dist_class, hypers, report = options
    tree.require_tree(fn, "levels", levels)
    if len(levels.batch_size) != 1 or not levels.batch_size[0]:
        sizes = f"{list(levels.batch_size)}, expected [n] with n of at least 1"
        raise ValueError(f"{fn}: levels has batch size {sizes}")
    for name, number in (("updates", updates), ("length", length)):
        require_count(fn, name, number)
    n = levels.batch_size[0]
    born, lived = rng.fold_in(key, "birth"), rng.fold_in(key, "life")
    newborn = partial(birth, habitat._replace(lifetime=updates), rule)
    one = partial(train_agent, rule, habitat.agent, habitat.env, habitat.optimizer, rule_params)
    one = partial(one, updates=1, length=length, dist_class=dist_class)
    with torch.no_grad():
        agents = vmap(newborn)(rng.split(born, n), level=levels, hyper=hypers)
        rewards = []
        for k in range(updates):
            keys = rng.split(rng.fold_in(rng.fold_in(lived, k), "agents"), n)
            agents, (td,) = vmap(one)(levels, agents, keys)
            rewards.append(td["next", "reward"].reshape(n, -1).mean(1))
            if report is not None:
                report(k + 1, rewards[-1])
    return agents, torch.stack(rewards, 1)


def curve_scores(rewards: Tensor) -> TensorDict:
    """Numbers of a life, from its rewards.

    Args:
        rewards: ``[n, U]`` mean reward per step in each update's rollout.

    Returns:
        ``rewards`` as it is, ``final``, the mean of the last fifth, and ``lifetime``, that of all,
        ``[n]``.
    """
    last = max(1, rewards.shape[1] // 5)
    means = {"final": rewards[:, -last:].mean(1), "lifetime": rewards.mean(1)}
    return tree.new({"rewards": rewards, **means}, (rewards.shape[0],))
