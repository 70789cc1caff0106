"""Rows of ``losses/actor_critic.py``."""

import torch
from tensordict import TensorDict

import losses
from paramtree import rng, tree
from tests.contract.case import Case, D, Function, Reducer, draw, ends

SIZE = (2, 5)


def critics(members: int = 3) -> TensorDict:
    """What deterministic actor-critics read, with rewards of up to three steps."""
    following = {
        "reward": draw("reward", *SIZE),
        **ends(*SIZE),
        "state_action_value": draw("next q", *SIZE, members),
    }
    entries = {
        "state_action_value": draw("q", *SIZE, members),
        "state_action_value_actor": draw("q of mu", *SIZE, members),
        "action_actor": draw("mu", *SIZE, 2),
        "action_gradient": draw("dq/da", *SIZE, 2),
        "steps_to_next_obs": rng.randint(rng.key(6), SIZE, 1, 4),
        "next": tree.new(following, SIZE),
    }
    return tree.new(entries, SIZE)


def critic() -> TensorDict:
    """The same of a single critic."""
    td = critics().clone().unlock_()
    for key in ("state_action_value", "state_action_value_actor", ("next", "state_action_value")):
        td.set(key, td.get(key)[..., 0])
    return td.lock_()


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def min_target(td, hyper):
    return losses.add_min_target(td, hyper["gamma"])


ROWS = [
    Reducer(
        "deterministic_policy_gradient_loss",
        critics,
        ("action_actor",),
        target_hyper={"dqda_clipping": 0.5},
        targets=lambda td, hyper: losses.add_action_target(td, hyper["dqda_clipping"]),
        optional=("action_target",),
    ),
    Reducer("ddpg_actor_loss", critic, ("state_action_value_actor",)),
    Reducer(
        "ddpg_critic_loss",
        critic,
        ("state_action_value",),
        target_hyper={"gamma": 0.9},
        targets=min_target,
    ),
    Reducer("td3_actor_loss", critics, ("state_action_value_actor",)),
    Reducer(
        "td3_critic_loss",
        critics,
        ("state_action_value",),
        target_hyper={"gamma": 0.9},
        targets=min_target,
        inductor=True,
    ),
    Function(
        "td3_target_action",
        lambda: {"action": draw("mu'", 6, 3), "noise": 4 * draw("noise", 6, 3)},
        {"low": -0.7, "high": 0.6, "sigma": 0.3, "noise_clip": 0.4},
    ),
    Case(
        "losses.add_min_target",
        lambda td, gamma: tree.select(losses.add_min_target(td, gamma), "value_target"),
        lambda: (critics(), number(0.9)),
    ),
    Case(
        "losses.add_action_target",
        lambda td, c: tree.select(losses.add_action_target(td, c), "action_target"),
        lambda: (critics(), number(0.5)),
    ),
]
