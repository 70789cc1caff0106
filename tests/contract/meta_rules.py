"""Rows of ``meta/rules``: an update of an agent, by what the rule is made of."""

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import optim, rng, tree
from paramtree.envs import level_distribution
from paramtree.meta import (
    a2c_habitat,
    a2c_rule,
    epsilon_greedy_policy,
    lifetime_scores,
    softmax_policy,
    update_agent,
)
from tests.contract.case import Case, draw, number, numbers
from tests.paramtree.meta.rule_problems import (
    ACTOR_CRITIC,
    LPO,
    RULES,
    agent_of,
    double,
    newborn,
    trajectory,
)

SGD = optim.sgd(0.3)
TD = trajectory()
WORLD = level_distribution("small")


def updated(name: str, hyper: TensorDict, params: TensorDict) -> TensorDict:
    rule, agent = RULES[name][0](**tree.entries(hyper))._replace(epochs=1), agent_of(name)
    state = tree.new({**tree.entries(newborn(agent, SGD, rule)), "params": params})
    none = tree.new({})
    return update_agent(rule, agent, SGD, none, state, TD, key=rng.key(5))[0]["params"]


def learned(drift: TensorDict, params: TensorDict) -> TensorDict:
    state = tree.new({**tree.entries(newborn(ACTOR_CRITIC, SGD, LPO)), "params": params})
    return update_agent(
        LPO._replace(epochs=1), ACTOR_CRITIC, SGD, drift, state, TD, key=rng.key(5)
    )[0]["params"]


def first(name: str) -> TensorDict:
    return double(agent_of(name).init(rng.key(3))[0])


def args(name: str) -> tuple[Any, ...]:
    return numbers(RULES[name][1]), first(name)


def acting(make: Any, hyper: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    none = tree.new({})
    return make(hyper[0])(none, none, tree.new({"action_value": value}, (2,)))["logits"]


def row(case: str, name: str, like: str | None = None) -> Case:
    """Row of a rule; one that is compiled as another is isn't compiled again, which takes long."""
    compiled = True if like is None else f"one graph as {like}'s, with another loss; tried once"
    return Case(f"meta.{case}", partial(updated, name), partial(args, name), compiled=compiled)


def scores(levels: TensorDict) -> TensorDict:
    habitat, rule = a2c_habitat(WORLD, workers=2), a2c_rule()
    run = {"horizon": 4, "updates": 2, "length": 3}
    return lifetime_scores(habitat, rule, tree.new({}), levels, rng.key(1), **run)


ROWS = [
    row("reinforce_rule", "reinforce", like="ppo_rule"),
    row("ppo_rule", "ppo"),
    row("dpo_rule", "dpo", like="ppo_rule"),
    row("vtrace_rule", "vtrace", like="ppo_rule"),
    row("td_lambda_rule", "td_lambda"),
    row("sarsa_lambda_rule", "sarsa_lambda", like="q_lambda_rule"),
    row("q_lambda_rule", "watkins"),
    Case(
        "meta.lpo_rule",
        learned,
        lambda: (double(LPO.init(rng.key(2))[0]), first("a2c")),
        covers=("meta.lpo_network",),
    ),
    Case(
        "meta.softmax_policy", partial(acting, softmax_policy), lambda: (number(), draw("q", 2, 3))
    ),
    Case(
        "meta.epsilon_greedy_policy",
        partial(acting, epsilon_greedy_policy),
        lambda: (number(), draw("q", 2, 3)),
    ),
    Case(
        "meta.lifetime_scores",
        scores,
        lambda: (WORLD.sample(rng.split(rng.key(1), 2)),),
        smooth=0,
        compiled="loops over updates and episodes: reward_curve's reason",
        covers=("meta.curve_scores",),
    ),
]
