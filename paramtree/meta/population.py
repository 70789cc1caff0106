"""Populations: agents of one kind that a rule is trained on, and how they come and go.

Symbols: n the number of agents.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ..autodiff import vmap
from ..autodiff.gradients import kind_of
from ..model import Model
from ..optim import Transform
from ..rng.philox import is_plain
from ._check import require_count
from .bandit import Bandit, bandit_draw, bandit_init, bandit_update
from .curriculum import Curriculum
from .lifetime import Habitat, births, renew
from .update_rule import UpdateRule


class Population(NamedTuple):
    """Agents of one kind that a rule is trained on.

    Attributes:
        habitat: what they have in common.
        n_tasks: how many live at a time.
        critic: model of the values that serve the meta-gradient.
        critic_optimizer: transform of its gradients.
        bandit: who chooses the hyper-parameters of a life, or None where there are none.
        curriculum: who chooses the level of a life, or None for samples of the habitat.
    """

    habitat: Habitat
    n_tasks: int
    critic: Model
    critic_optimizer: Transform
    bandit: Bandit | None = None
    curriculum: Curriculum | None = None


def extras(population: Population) -> list[str]:
    """Kinds of state that a group has beside its agents.

    Args:
        population: the group.

    Returns:
        ``"bandits"`` and ``"curricula"``, as far as it has them.
    """
    kinds = {"bandits": population.bandit, "curricula": population.curriculum}
    return [kind for kind, part in kinds.items() if part is not None]


def by_kind(groups: dict[str, dict[str, TensorDict]]) -> dict[str, TensorDict]:
    """States by kind, as a training keeps them.

    Args:
        groups: ``{group: {kind: tree}}``.

    Returns:
        ``{kind: {group: tree}}``.
    """
    kinds = {kind: None for group in groups.values() for kind in group}
    return {
        kind: tree.new({name: group[kind] for name, group in groups.items() if kind in group})
        for kind in kinds
    }


def first(population: Population, rule: UpdateRule, key: Tensor) -> dict[str, TensorDict]:
    """States of a group at the beginning, ages spread over a lifetime.

    Args:
        population: the group.
        rule: the rule that will train its agents.
        key: key ``[2]``.

    Returns:
        ``{kind: tree}``, with ``agents`` ``[n]`` among the kinds.
    """
    states, levels = {}, None
    if population.bandit is not None:
        states["bandits"] = _beside(key, bandit_init(population.bandit))
    if population.curriculum is not None:
        states["curricula"], levels = population.curriculum.init(
            rng.fold_in(key, "curriculum"), population.n_tasks
        )
    agents = _born(population, rule, states.get("bandits"), levels, key, stagger=True)
    return {"agents": agents, **states}


def _beside(x: Tensor, whole: TensorDict) -> TensorDict:
    """A tree on the device of a tensor."""
    return tree.map(lambda leaf: leaf.to(x.device), whole)


def _born(
    population: Population,
    rule: UpdateRule,
    bandit_state: TensorDict | None,
    levels: TensorDict | None,
    key: Tensor,
    rows: Tensor | None = None,
    *,
    stagger: bool = False,
) -> TensorDict:
    """New agents with new critics for some rows, on levels of their own if none are given."""
    n, hypers, extra = population.n_tasks, None, {}

    def some(x: Any) -> Any:
        if x is None or rows is None:
            return x
        return x[rows] if isinstance(x, Tensor) else tree.take(x, rows)

    if population.bandit is not None and bandit_state is not None:
        arm = some(bandit_draw(population.bandit, bandit_state, rng.fold_in(key, "arm"), n))
        hypers, extra = tree.take(_beside(arm, population.bandit.arms), arm), {"arm": arm}
    agents = births(
        population.habitat,
        rule,
        key,
        n,
        rows=rows,
        levels=some(levels),
        hypers=hypers,
        stagger=stagger,
    )

    def critic(key: Tensor) -> TensorDict:
        params, _ = population.critic.init(key)
        return tree.new({"params": params, "optimizer": population.critic_optimizer.init(params)})

    critics = vmap(critic)(some(rng.split(rng.fold_in(key, "critic"), n)))
    zero = torch.zeros(agents.batch_size, device=key.device)
    extra |= {"critic": critics, "earned": zero, "episodes": torch.zeros_like(zero)}
    return tree.new({**tree.entries(agents), **extra}, agents.batch_size)


def renewed(
    population: Population, rule: UpdateRule, states: dict[str, TensorDict], key: Tensor
) -> dict[str, TensorDict]:
    """States of a group with new agents in place of those at the end of their lives.

    Args:
        population: the group.
        rule: the rule that trains its agents.
        states: ``{kind: tree}``.
        key: key ``[2]``.

    Returns:
        The states; bandit and curriculum have learned from the lives that ended.
    """
    agents = states["agents"]
    over = agents["age"] >= agents["lifetime"]
    if is_plain(over) and not bool(over.any()):
        return states
    after, levels = dict(states), None
    if "bandits" in states:
        result = agents["earned"] / agents["episodes"].clamp(min=1)
        after["bandits"] = bandit_update(states["bandits"], agents["arm"], result, over)
    if population.curriculum is not None:
        after["curricula"], levels = population.curriculum.renew(
            states["curricula"], agents, over, rng.fold_in(key, "curriculum")
        )
    born = partial(_born, population, rule, after.get("bandits"), levels, key)
    return {**after, "agents": renew(agents, born)}


def finite_mean(x: Tensor, fine: Tensor) -> Tensor:
    """Mean over those whose numbers are finite.

    Args:
        x: ``[n]``.
        fine: bool ``[n]``.

    Returns:
        0-d.
    """
    return torch.where(fine, x, 0.0).sum() / fine.sum()


def require_training(
    fn: str, rule: Any, populations: Any, optimizer: Any, **counts: int | None
) -> None:
    """Refuse a training without rule, populations or optimizer, or with a size below 1.

    Args:
        fn: name of the function that was called.
        rule: the rule.
        populations: by group.
        optimizer: transform of the rule's gradients.
        counts: sizes by name; None is one too.

    Raises:
        ValueError: there is no population, or a size is below 1.
        TypeError: an argument is of another kind.
    """
    if not isinstance(rule, UpdateRule):
        raise TypeError(f"{fn}: rule is {kind_of(rule)}, expected an UpdateRule")
    if not isinstance(optimizer, Transform):
        raise TypeError(f"{fn}: optimizer is {kind_of(optimizer)}, expected a Transform")
    if not isinstance(populations, Mapping):
        got = kind_of(populations)
        raise TypeError(f"{fn}: populations is {got}, expected {{group: Population}}")
    if not populations:
        raise ValueError(f"{fn}: no populations given, expected {{group: Population}}")
    for name, population in populations.items():
        if not isinstance(population, Population):
            kind = type(population).__name__
            raise TypeError(f"{fn}: {name} is a {kind}, expected a Population")
    for name, count in counts.items():
        if count is not None:
            require_count(fn, name, count)
