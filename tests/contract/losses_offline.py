"""Rows of ``losses/offline.py`` and ``losses/cql.py``."""

import losses
from paramtree import rng, tree
from tests.contract.case import Case, Function, Reducer, draw, ends

SIZE = (2, 5)


def action(*size):
    return rng.randint(rng.key(5), size, 0, 3)


def actor():
    entries = {
        "state_action_value_actor": draw("q actor", *SIZE, 2),
        "action_actor": draw("mu", *SIZE, 3),
        "action": draw("action", *SIZE, 3),
    }
    return tree.new(entries, SIZE)


def implicit():
    following = {
        "reward": draw("reward", *SIZE),
        "state_value": draw("next value", *SIZE),
        **ends(*SIZE),
    }
    entries = {
        "logits": draw("logits", *SIZE, 3),
        "action": action(*SIZE),
        "state_value": draw("value", *SIZE),
        "state_action_value": draw("q", *SIZE, 2),
        "state_action_value_target": draw("q target", *SIZE, 2),
        "next": tree.new(following, SIZE),
    }
    return tree.new(entries, SIZE)


def weighted():
    entries = {
        "logits": draw("logits", *SIZE, 3),
        "action": action(*SIZE),
        "advantage": draw("advantage", *SIZE),
    }
    return tree.new(entries, SIZE)


def conservative():
    entries = {
        "state_action_value": draw("q", *SIZE, 2),
        "action_value_samples": draw("samples", *SIZE, 2, 4),
        "action_log_density_samples": draw("density", *SIZE, 4),
    }
    return tree.new(entries, SIZE)


def discrete():
    return tree.new({"action_value": draw("q", *SIZE, 3), "action": action(*SIZE)}, SIZE)


ROWS = [
    Function(
        "advantage_weight",
        lambda: {"advantage": draw("advantage", 2, 5)},
        {"temperature": 3.0, "max_weight": 5.0},
    ),
    Function(
        "cql_penalty",
        lambda: {
            "state_action_value": draw("q", 2, 5),
            "action_value_samples": draw("samples", 2, 5, 4),
            "log_density": draw("density", 2, 5, 4),
        },
        {"temperature": 0.7},
    ),
    Function(
        "discrete_cql_penalty",
        lambda: {"action_value": draw("q", 2, 5, 3), "action": action(2, 5)},
    ),
    Case(
        "losses.add_iql_advantage",
        lambda td: tree.select(losses.add_iql_advantage(td), "advantage", "value_target"),
        lambda: (implicit(),),
    ),
    Reducer(
        "td3_bc_actor_loss",
        actor,
        ("state_action_value_actor", "action_actor"),
        {"alpha": 2.0, "value_scale": 0.8},
    ),
    Reducer(
        "awr_loss",
        weighted,
        ("logits",),
        {"temperature": 3.0, "max_weight": 5.0},
    ),
    Reducer(
        "iql_value_loss",
        implicit,
        ("state_value",),
        {"expectile": 0.8},
        targets=lambda td, hyper: losses.add_iql_advantage(td),
    ),
    Reducer(
        "iql_critic_loss",
        implicit,
        ("state_action_value", "state_value"),
        target_hyper={"gamma": 0.9},
        targets=lambda td, hyper: losses.add_advantage(td, hyper["gamma"], 0.0),
    ),
    Reducer(
        "cql_loss",
        conservative,
        ("state_action_value", "action_value_samples"),
        {"min_q_weight": 2.0, "temperature": 0.7},
        optional=("action_log_density_samples",),
    ),
    Reducer(
        "cql_alpha_prime_loss",
        conservative,
        ("state_action_value", "action_value_samples"),
        {"alpha_prime": 0.6, "threshold": 0.3, "min_q_weight": 2.0, "temperature": 0.7},
        optional=("action_log_density_samples",),
    ),
    Reducer("discrete_cql_loss", discrete, ("action_value",), {"min_q_weight": 2.0}),
]
