"""Rows of ``losses/policy_gradient.py`` and ``losses/regret.py``."""

import torch

import losses
from losses import add_action_advantage, add_advantage
from paramtree import tree
from tests.contract.case import Case, D, Reducer, draw, trajectory

DISCOUNTS = {"gamma": 0.9, "lmbda": 0.7}


def advantages(td, hyper):
    return add_advantage(td, hyper["gamma"], hyper["lmbda"])


def behaved(*size):
    """A trajectory with the value from before."""
    behavior = tree.new({"state_value": draw("old value", *size)}, size)
    return tree.new({**tree.entries(trajectory(*size)), "behavior": behavior}, size)


def valued(*size):
    """A trajectory with the values of all actions."""
    entries = tree.entries(trajectory(*size))
    return tree.new({**entries, "action_value": draw("action value", *size, 3)}, size)


def all_actions(name):
    return Reducer(
        name,
        lambda: valued(2, 5),
        ("logits", "action_value"),
        targets=lambda td, hyper: add_action_advantage(td),
    )


ROWS = [
    Reducer(
        "policy_gradient_loss",
        lambda: trajectory(2, 5),
        ("logits", "state_value"),
        {"entropy_coeff": 0.1},
        DISCOUNTS,
        advantages,
    ),
    Reducer(
        "reinforce_loss",
        lambda: behaved(2, 5),
        ("logits", "state_value"),
        {"critic_coeff": 0.3, "value_clip": 0.35},
        DISCOUNTS,
        advantages,
    ),
    Reducer(
        "a2c_loss",
        lambda: behaved(2, 5),
        ("logits", "state_value"),
        {"entropy_coeff": 0.1, "critic_coeff": 0.3, "value_clip": 0.35},
        DISCOUNTS,
        advantages,
        inductor=True,
    ),
    Reducer("entropy_loss", lambda: trajectory(2, 5), ("logits",), {"entropy_coeff": 0.7}),
    # its value does not show its derivatives, which are those of sampling
    Case(
        "losses.dice_loss",
        lambda td, gamma: losses.dice_loss(td, gamma=gamma)["loss_objective"],
        lambda: (trajectory(2, 5), torch.tensor(0.9, dtype=D)),
        smooth=0,
    ),
    Case("losses.magic_box", losses.magic_box, lambda: (draw("log_prob", 4),), smooth=0),
    all_actions("qpg_loss"),
    all_actions("rm_loss"),
    all_actions("rpg_loss"),
    Case(
        "losses.add_action_advantage",
        lambda td: tree.select(add_action_advantage(td), "action_advantage", "action_value_target"),
        lambda: (valued(2, 5),),
    ),
]
