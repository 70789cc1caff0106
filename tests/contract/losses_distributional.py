"""Rows of ``losses/distributional.py`` and ``losses/quantile.py``."""

import torch

from losses import add_categorical_target, add_quantile_q_target
from paramtree import rng, tree
from tests.contract.case import Case, D, Function, Reducer, draw, ends

SUPPORT = torch.tensor([-1.5, -0.7, 0.1, 0.9, 2.0], dtype=D)


def atoms(key, *shape, size=(2, 5)):
    following = {
        "reward": draw("reward", *size),
        **ends(*size),
        key: 2 * draw(f"next {key}", *size, *shape),
        "logits": draw("policy", *size, 3),
    }
    entries = {
        key: 2 * draw(key, *size, *shape),
        "action": rng.randint(rng.key(5), size, 0, 3),
        "next": tree.new(following, size),
    }
    return tree.new(entries, size)


def categorical(td, hyper):
    return add_categorical_target(td, SUPPORT, hyper["gamma"])


def quantiles(td, hyper):
    return add_quantile_q_target(td, hyper["gamma"], expected=True)


def target_of(estimator, *args, **options):
    return lambda td, gamma: tree.select(estimator(td, *args, gamma, **options), "value_target*")


ROWS = [
    Function(
        "categorical_projection",
        lambda: {
            "support_from": draw("from", 3, 4, low=-2.0, high=2.5),
            "probs": draw("probs", 3, 4).softmax(-1),
            "support_to": SUPPORT,
        },
    ),
    Function(
        "quantile_huber",
        lambda: {
            "quantiles": draw("theta", 5, 2, 3),
            "tau": draw("tau", 3, low=0.1, high=0.9),
            "target": draw("target", 5, 2, 4),
            "target_probs": draw("p", 5, 2, 4).softmax(-1),
        },
        {"kappa": 0.4},
    ),
    Case(
        "losses.add_categorical_target",
        target_of(add_categorical_target, SUPPORT),
        lambda: (atoms("action_value_logits", 3, 5), torch.tensor(0.9, dtype=D)),
    ),
    Case(
        "losses.add_quantile_q_target",
        target_of(add_quantile_q_target, expected=True),
        lambda: (atoms("action_value_quantiles", 3, 2), torch.tensor(0.9, dtype=D)),
    ),
    Reducer(
        "categorical_td_loss",
        lambda: atoms("state_value_logits", 5),
        ("state_value_logits",),
        {},
        {"gamma": 0.9},
        categorical,
        options={"support": SUPPORT},
    ),
    Reducer(
        "categorical_q_loss",
        lambda: atoms("action_value_logits", 3, 5),
        ("action_value_logits",),
        {},
        {"gamma": 0.9},
        categorical,
        options={"support": SUPPORT},
    ),
    Reducer(
        "quantile_q_loss",
        lambda: atoms("action_value_quantiles", 3, 2),
        ("action_value_quantiles",),
        {"kappa": 0.4},
        {"gamma": 0.9},
        quantiles,
        optional=("value_target_probs",),
    ),
]
