# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportOptionalOperand=false
"""A td that soft actor-critics read, and their critics."""

import pytest
import torch

from losses import (
    add_expected_soft_target,
    add_soft_target,
    add_truncated_quantile_target,
    crossq_critic_loss,
    discrete_sac_critic_loss,
    redq_critic_loss,
    sac_critic_loss,
    tqc_critic_loss,
)
from tests.losses.test_actor_critic import steps as hard_steps

D = torch.float64
GAMMA, ALPHA, ENTROPY = 0.9, 0.3, -1.5


def number(x):
    return torch.tensor(x, dtype=D)


def steps(members=3, actions=4, quantiles=5, seed=0):
    """A td ``[2, 4]`` with all that soft actor-critics read."""
    td = hard_steps(members, seed=seed)
    draw = torch.Generator().manual_seed(seed + 1)

    def normal(*more):
        return torch.randn(2, 4, *more, generator=draw, dtype=D)

    td["action"] = torch.randint(actions, (2, 4), generator=draw)
    td["state_action_quantiles_actor"] = normal(members, quantiles)
    td["state_value"] = normal()
    for key in ("action_log_prob_actor",):
        td[key], td["next", key] = normal(), normal()
    td["logits"], td["next", "logits"] = normal(actions), normal(actions)
    td["action_value"] = normal(members, actions)
    td["next", "action_value"] = normal(members, actions)
    td["state_action_quantiles"] = normal(members, quantiles)
    td["next", "state_action_quantiles"] = normal(members, quantiles)
    return td


def changed(td, **entries):
    """A copy with other entries; next_x stands for ("next", x)."""
    out = td.clone()
    for key, value in entries.items():
        out.set(("next", key[5:]) if key.startswith("next_") else key, value)
    return out


CRITICS = {
    "sac": (
        sac_critic_loss,
        add_soft_target,
        {},
        ("state_action_value", "next_state_action_value", "next_action_log_prob_actor"),
    ),
    "crossq": (
        crossq_critic_loss,
        add_soft_target,
        {},
        ("state_action_value", "next_state_action_value", "next_action_log_prob_actor"),
    ),
    "redq": (
        redq_critic_loss,
        add_soft_target,
        {"subset": torch.tensor([2, 0])},
        ("state_action_value", "next_state_action_value", "next_action_log_prob_actor"),
    ),
    "discrete": (
        discrete_sac_critic_loss,
        add_expected_soft_target,
        {},
        ("action_value", "next_action_value", "next_logits"),
    ),
    "tqc": (
        tqc_critic_loss,
        add_truncated_quantile_target,
        {"drop": 1},
        ("state_action_quantiles", "next_state_action_quantiles", "next_action_log_prob_actor"),
    ),
}
every_critic = pytest.mark.parametrize("name", CRITICS)


def entry(td, key):
    return td.get(("next", key[5:]) if key.startswith("next_") else key)
