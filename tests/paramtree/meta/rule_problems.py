"""Trajectories in float64, agents that are linear in what they see, and rules by name."""

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import nn, optim, rng, tree
from paramtree.meta import (
    UpdateRule,
    a2c_rule,
    dpo_rule,
    lpo_network,
    lpo_rule,
    ppo_rule,
    q_lambda_rule,
    reinforce_rule,
    sarsa_lambda_rule,
    softmax_policy,
    td_lambda_rule,
    vtrace_rule,
)
from paramtree.model import compose, td_model

D = torch.float64
WORKERS, STEPS, ACTIONS = 4, 5, 3

ACTOR_CRITIC = compose(
    actor=td_model(nn.linear(3, ACTIONS), "observation", "logits"),
    critic=td_model(nn.linear(3, 1), "observation", "state_value"),
)
Q_AGENT = compose(
    critic=td_model(nn.linear(3, ACTIONS), "observation", "action_value"),
    actor=softmax_policy(0.7),
)

# each with numbers at which it is differentiable
COEFFS = {"entropy_coeff": 0.1, "critic_coeff": 0.7}
DISCOUNTS = {"gamma": 0.9, "lmbda": 0.8}
PARTS = {"epochs": 2, "minibatches": 2}
RULES: dict[str, tuple[Any, dict[str, float]]] = {
    "a2c": (a2c_rule, {**DISCOUNTS, **COEFFS}),
    "reinforce": (reinforce_rule, {"gamma": 0.9, **COEFFS}),
    "reinforce_plain": (partial(reinforce_rule, baseline=False), {"gamma": 0.9}),
    "reinforce_bootstrap": (
        partial(reinforce_rule, baseline=False, bootstrap=True, normalize=True),
        {"gamma": 0.9, **COEFFS},
    ),
    "ppo": (
        partial(ppo_rule, **PARTS),
        {**DISCOUNTS, **COEFFS, "clip_epsilon": 0.15, "value_clip": 0.1},
    ),
    "dpo": (partial(dpo_rule, **PARTS), {**DISCOUNTS, **COEFFS, "alpha": 1.5, "beta": 0.6}),
    "vtrace": (
        vtrace_rule,
        {**DISCOUNTS, **COEFFS, "rho_clip": 1.1, "c_clip": 0.9, "pg_rho_clip": 1.2},
    ),
    "td_lambda": (td_lambda_rule, {**DISCOUNTS, "critic_coeff": 0.7}),
    "sarsa_lambda": (sarsa_lambda_rule, DISCOUNTS),
    "expected_sarsa": (partial(sarsa_lambda_rule, expected=True), DISCOUNTS),
    "q_lambda": (q_lambda_rule, DISCOUNTS),
    "watkins": (partial(q_lambda_rule, trace="watkins"), DISCOUNTS),
}
LPO = lpo_rule(lpo_network(6), 0.9, 0.8, value_clip=0.3, **PARTS)


def agent_of(name: str) -> Any:
    return (
        Q_AGENT
        if name in ("sarsa_lambda", "expected_sarsa", "q_lambda", "watkins")
        else (ACTOR_CRITIC)
    )


def draw(name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
    return rng.uniform(rng.fold_in(rng.key(21), name), shape, low, high, dtype=D)


def double(nest: Any) -> Any:
    leaves, structure = tree.flatten(nest)
    return tree.unflatten(structure, [x.double() if x.is_floating_point() else x for x in leaves])


def trajectory(name: str = "", size: tuple[int, ...] = (WORKERS, STEPS)) -> TensorDict:
    """What somebody did, at random: episodes that end for good, and some that are cut."""
    key = rng.fold_in(rng.key(22), name)
    terminated = rng.bernoulli(rng.fold_in(key, "end"), 0.2, size)
    done = terminated | rng.bernoulli(rng.fold_in(key, "cut"), 0.15, size)
    following = {
        "observation": draw(f"next {name}", *size, 3),
        "reward": draw(f"reward {name}", *size),
        "done": done,
        "terminated": terminated,
    }
    entries = {
        "observation": draw(f"seen {name}", *size, 3),
        "action": rng.randint(rng.fold_in(key, "action"), size, 0, ACTIONS),
        "action_log_prob": draw(f"chance {name}", *size, low=-1.4, high=-0.7),
        "next": tree.new(following, size),
    }
    return tree.new(entries, size)


def newborn(agent: Any, optimizer: optim.Transform, rule: UpdateRule) -> TensorDict:
    params, buffers = agent.init(rng.key(3))
    params = double(params)
    memory = rule.init(rng.key(4))[1]
    state = {"params": params, "buffers": buffers, "optimizer": optimizer.init(params)}
    return tree.new({**state, "rule": memory})
