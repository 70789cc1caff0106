"""Learned Policy Gradient as a pure meta-step, at the smallest sizes that have all of it."""

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

import losses
from paramtree import envs, meta, optim, rng, tree, value_and_grad, vmap

WORLD = envs.level_distribution("small")
RULE = meta.lpg_rule(meta.lpg_network(n_prediction=3, n_hidden=4))
GROUP = "small"


def population(n_tasks: int, **options: Any) -> meta.Population:
    return meta.lpg_population(WORLD, n_tasks, n_prediction=3, workers=2, **options)


HABITAT = population(1).habitat
OPTIMIZER = optim.adam(1e-2)


def start(key: Tensor, n_tasks: int = 2) -> TensorDict:
    """The rule, its optimizer's state, and agents at the beginning of their lives."""
    rule = doubled(RULE.init(rng.fold_in(key, "rule"))[0])
    agents = doubled(meta.births(HABITAT, RULE, key, n_tasks))
    return tree.new({"rule": rule, "optimizer": OPTIMIZER.init(rule), "agents": agents})


def step(state: TensorDict, key: Tensor) -> tuple[TensorDict, Tensor]:
    """K updates of all agents by the rule, one more rollout, and a step of Adam on the rule."""

    def objective(rule: TensorDict) -> tuple[Tensor, TensorDict]:
        groups = {GROUP: (HABITAT.agent, HABITAT.env, state["agents", "level"])}
        lives = tree.new({GROUP: state["agents"]})
        lives, seen = meta.inner_loop(
            RULE, groups, HABITAT.optimizer, rule, lives, key, updates=2, length=2
        )
        keys = rng.split(rng.fold_in(key, "validation"), state["agents"].batch_size[0])
        held = [losses.total(losses.lpg_regularizer_loss(td)) for td in seen[GROUP]]
        value = vmap(_judged)(lives[GROUP], keys).mean() + torch.stack(held).mean()
        return value, meta.older(lives[GROUP], 2)

    (value, agents), slope = value_and_grad(objective, has_aux=True)(state["rule"])
    updates, memory = OPTIMIZER.update(slope, state["optimizer"], state["rule"])
    rule = optim.apply_updates(state["rule"], updates)
    return tree.new({"rule": rule, "optimizer": memory, "agents": agents}), value


def _judged(life: TensorDict, key: Tensor) -> Tensor:
    """What one agent's next trajectory says of the rule that made it."""
    act = partial(envs.rollout, HABITAT.env, HABITAT.agent)
    seen = act(life["params"], life["buffers"], life["level"], life["env"], key, 2)[2]
    flags = (seen["next", name].mT for name in ("reward", "done", "terminated"))
    advantage = losses.discounted_returns(*flags, 0.9).mT - 0.5  # most rewards are 0
    seen = tree.replace(seen, {"advantage": advantage})
    out = HABITAT.agent(life["params"], life["buffers"], seen)
    return losses.total(losses.policy_gradient_loss(out))


def doubled(nest: TensorDict) -> TensorDict:
    return tree.map(lambda x: x.double() if x.is_floating_point() else x, nest)
