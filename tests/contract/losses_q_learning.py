"""Rows of ``losses/q_learning.py``."""

from losses import add_q_target
from paramtree import rng, tree
from tests.contract.case import Function, Reducer, draw, ends, flags


def q_values(*size):
    following = {
        "reward": draw("reward", *size),
        **ends(*size),
        "action_value": draw("next q", *size, 3),
        "action_value_selector": draw("selector", *size, 3),
        "action_mask": ~flags("forbidden", *size, 3),
    }
    entries = {
        "action_value": draw("q", *size, 3),
        "action": rng.randint(rng.key(5), size, 0, 3),
        "steps_to_next_obs": rng.randint(rng.key(6), size, 1, 4),
        "next": tree.new(following, size),
    }
    return tree.new(entries, size)


def single(*size):
    return tree.exclude(q_values(*size), ("next", "action_value_selector"))


def targets(td, hyper):
    return add_q_target(td, hyper["gamma"])


def step(*more):
    def args():
        floats = {name: draw(name, 5, 2, 3) for name in ("action_value", "next_action_value")}
        rest = {
            "action": rng.randint(rng.key(5), (5, 2), 0, 3),
            "reward": draw("reward", 5, 2),
            "terminated": flags("end", 5, 2),
            "next_action_value_selector": draw("selector", 5, 2, 3),
            "next_action": rng.randint(rng.key(6), (5, 2), 0, 3),
            "next_probs": draw("probs", 5, 2, 3).softmax(-1),
        }
        wanted = ("action", "reward", "terminated", *more)
        return {**floats, **{name: rest[name] for name in wanted}}

    return args


ROWS = [
    Function("q_learning_error", step(), {"gamma": 0.9}),
    Function("double_q_learning_error", step("next_action_value_selector"), {"gamma": 0.9}),
    Function("sarsa_error", step("next_action"), {"gamma": 0.9}),
    Function("expected_sarsa_error", step("next_probs"), {"gamma": 0.9}),
    Function("persistent_q_error", step(), {"gamma": 0.9, "action_gap_scale": 0.3}),
    Reducer(
        "q_learning_loss",
        lambda: single(2, 5),
        ("action_value",),
        {},
        {"gamma": 0.9},
        targets,
    ),
    Reducer(
        "double_q_learning_loss",
        lambda: q_values(2, 5),
        ("action_value",),
        {},
        {"gamma": 0.9},
        targets,
    ),
]
