"""Rows of ``losses/ppo.py``."""

import torch
from torch.distributions import Categorical

from losses import add_advantage, independent_normal, joint, ppo_clip_loss, total
from paramtree import tree
from tests.contract.case import Case, D, Function, Reducer, draw, trajectory

DISCOUNTS = {"gamma": 0.9, "lmbda": 0.7}
COMMON = {"critic_coeff": 0.3, "entropy_coeff": 0.1, "value_clip": 0.3}


def advantages(td, hyper):
    return add_advantage(td, hyper["gamma"], hyper["lmbda"])


def proximal(*size):
    """A trajectory with what the policy that drew it said; its ratios spread to both sides of 1."""
    td = trajectory(*size)
    chosen = td["logits"].log_softmax(-1).gather(-1, td["action"].unsqueeze(-1)).squeeze(-1)
    behavior = tree.new(
        {
            "logits": td["logits"] + draw("old logits", *size, 3),
            "state_value": td["state_value"] + 0.7 * draw("old value", *size),
        },
        size,
    )
    more = {"action_log_prob": chosen + 1.2 * draw("behavior", *size), "behavior": behavior}
    return tree.new({**tree.entries(td), **more}, size)


def row(name, hyper, **more):
    learned = ("logits", "state_value")
    return Reducer(
        name, lambda: proximal(2, 5), learned, {**COMMON, **hyper}, DISCOUNTS, advantages, **more
    )


def two_heads(*size):
    """A nested action, with what the policy that drew it said of each head beside it."""
    steer = {"loc": draw("loc", *size, 2), "scale": draw("scale", *size, 2, low=0.5)}
    action = {
        "steer": draw("steer", *size, 2),
        "steer_log_prob": draw("of steer", *size, 2),
        "gear": proximal(*size)["action"],
        "gear_log_prob": draw("of gear", *size),
    }
    heads = {
        "steer": tree.new(steer, size),
        "gear": tree.new({"logits": draw("gear", *size, 3)}, size),
    }
    entries = {name: draw(name, *size) for name in ("advantage", "value_target", "state_value")}
    nested = {"params": tree.new(heads, size), "action": tree.new(action, size)}
    return tree.new({**entries, **nested}, size)


ROWS = [
    row("ppo_loss", {}),
    row("ppo_clip_loss", {"eps_low": 0.15, "eps_high": 0.3}, options={"eps": 0.2}, inductor=True),
    row("ppo_kl_penalty_loss", {"kl_coeff": 0.7}),
    row("discovered_policy_loss", {"alpha": 1.5, "beta": 0.6}),
    row("mirror_loss", {}, options={"drift": lambda x, a: (x.expm1() - x) * (1 + a.square())}),
    Case(
        "losses.ppo_clip_loss of two heads",
        lambda td: total(
            ppo_clip_loss(td, joint(steer=independent_normal, gear=Categorical), eps=0.3)
        ),
        lambda: (two_heads(2, 5),),
    ),
    Function(
        "kl_coeff_update",
        lambda: {"kl": torch.tensor([0.001, 0.009, 0.1], dtype=D)},
        {"kl_coeff": 0.5, "target": 0.01, "increment": 2.0, "decrement": 0.5, "tolerance": 1.5},
    ),
]
