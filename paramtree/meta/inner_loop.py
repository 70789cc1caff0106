"""The inner loop: agents act and are updated by a rule, and the whole is differentiable.

Everything is written for one task; the task axis is made by ``vmap`` where the loop is called.
Tasks of one architecture are stacked, tasks of different ones are groups with names, and they share
nothing but the rule.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import rng, tree
from ..autodiff import detach, vmap
from ..envs import Env, rollout
from ..model import Model
from .update_rule import OptimizerOf, UpdateRule, update_agent


def train_agent(
    rule: UpdateRule,
    agent: Model,
    env: Env,
    optimizer: OptimizerOf,
    rule_params: TensorDict,
    level: TensorDict,
    state: TensorDict,
    key: Tensor,
    *,
    updates: int = 5,
    length: int = 20,
    dist_class: Any = Categorical,
    hyper: TensorDict | None = None,
) -> tuple[TensorDict, list[TensorDict]]:
    """Rollouts and updates of one agent, in turn.

    Args:
        rule: the update rule.
        agent: the agent's model.
        env: its world.
        optimizer: transform of its gradients, or a function that makes it of ``state["hyper",
            "optimizer"]``.
        rule_params: the rule's parameters.
        level: the level, of batch size ``[]``.
        state: ``params``, ``buffers``, ``optimizer``, ``rule`` (its buffers) and ``env`` (the
            workers' states, of batch size ``[W]``); ``hyper``, as in ``birth``, is read if it's
            there; other entries come back as they are.
        key: key ``[2]``; update k uses ``fold_in(key, k)``.
        updates: K, the number of updates.
        length: T, the steps of each rollout.
        dist_class: distribution of the actions.
        hyper: hyper-parameters of the rule's loss by name.

    Returns:
        ``(state, trajectories)``: the agent after K updates, with a graph that leads to
        ``rule_params``, ``hyper`` and the first parameters, and K trajectories ``[W, T]`` with the
        agent's outputs and what the rule added.

    Raises:
        ValueError: ``updates`` or ``length`` is below 1, or the state lacks an entry.
    """
    for name, number in (("updates", updates), ("length", length)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(
                f"train_agent: {name} is {number!r}, expected a whole number of at least 1"
            )
    tree.require_tree("train_agent", "state", state)
    missing = [
        name
        for name in ("params", "buffers", "optimizer", "rule", "env")
        if name not in state.keys()
    ]
    if missing:
        raise ValueError(
            f"train_agent: state has no {', '.join(missing)}; "
            f"its entries are {', '.join(map(str, state.keys()))}"
        )
    trajectories = []
    for k in range(updates):
        acting = detach(state["params"])
        env_state, buffers, td = rollout(
            env,
            agent,
            acting,
            state["buffers"],
            level,
            state["env"],
            rng.fold_in(key, k),
            length,
            dist_class,
        )
        lived = {**tree.entries(state), "env": env_state, "buffers": buffers}
        order = rng.fold_in(rng.fold_in(key, k), "update")
        state, td = update_agent(
            rule, agent, optimizer, rule_params, tree.new(lived), td, hyper, order
        )
        trajectories.append(td)
    return state, trajectories


def inner_loop(
    rule: UpdateRule,
    groups: Mapping[str, tuple[Model, Env, TensorDict]],
    optimizers: OptimizerOf | Mapping[str, OptimizerOf],
    rule_params: TensorDict,
    states: TensorDict,
    key: Tensor,
    *,
    updates: int = 5,
    length: int = 20,
    dist_class: Any = Categorical,
    hyper: TensorDict | None = None,
) -> tuple[TensorDict, dict[str, list[TensorDict]]]:
    """Rollouts and updates of many agents, in groups that differ in architecture or world.

    Args:
        rule: the update rule that all agents share.
        groups: ``{group: (agent, env, levels)}``, levels of batch size ``[n]``.
        optimizers: transform of the agents' gradients, or one for each group.
        rule_params: the rule's parameters, shared.
        states: for each group a tree of batch size ``[n]`` as in ``train_agent``.
        key: key ``[2]``; task i of a group uses ``split(fold_in(key, group), n)[i]``.
        updates: as in ``train_agent``.
        length: as in ``train_agent``.
        dist_class: as in ``train_agent``.
        hyper: as in ``train_agent``, shared where its batch size is ``[]``.

    Returns:
        ``(states, trajectories)`` by group, with the task axis in front.

    Raises:
        ValueError: names or batch sizes of groups and states differ, or as in ``train_agent``.
        TypeError: a group isn't a triple, or its levels or states aren't trees.
    """
    _require_groups(groups, states, optimizers)
    after, trajectories = {}, {}
    for name, (agent, env, levels) in groups.items():
        optimizer = optimizers[name] if isinstance(optimizers, Mapping) else optimizers
        options = {"updates": updates, "length": length, "dist_class": dist_class}
        one = partial(train_agent, rule, agent, env, optimizer, rule_params, **options)
        keys = rng.split(rng.fold_in(key, name), levels.batch_size[0])
        after[name], trajectories[name] = vmap(one)(levels, states[name], keys, hyper=hyper)
    return tree.new(after), trajectories


def _require_groups(groups: Mapping[str, Any], states: TensorDict, optimizers: Any) -> None:
    if not groups:
        raise ValueError("inner_loop: no groups given, expected {group: (agent, env, levels)}")
    tree.require_tree("inner_loop", "states", states)
    others: Sequence[tuple[str, Any]] = [("states", states)]
    if isinstance(optimizers, Mapping):
        others = [*others, ("optimizers", optimizers)]
    for argument, value in others:
        if sorted(value.keys()) != sorted(groups):
            names, wanted = (
                ", ".join(sorted(map(str, value.keys()))) or "none",
                ", ".join(sorted(groups)),
            )
            raise ValueError(
                f"inner_loop: {argument} has the names {names}, expected {wanted} (from groups)"
            )
    for name, group in groups.items():
        if not (isinstance(group, tuple) and len(group) == 3):
            raise TypeError(
                f"inner_loop: group {name} is a {type(group).__name__}, "
                "expected (agent, env, levels)"
            )
        levels = group[2]
        tree.require_tree("inner_loop", f"the levels of {name}", levels)
        tree.require_tree("inner_loop", f"the state of {name}", states.get(name))
        if len(levels.batch_size) != 1:
            sizes = f"{list(levels.batch_size)}, expected [n_tasks]"
            raise ValueError(f"inner_loop: the levels of {name} have batch size {sizes}")
        size = states.get(name).batch_size
        if size != levels.batch_size:
            sizes = f"{list(size)}, expected {list(levels.batch_size)} (from its levels)"
            raise ValueError(f"inner_loop: the states of {name} have batch size {sizes}")
