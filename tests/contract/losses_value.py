"""Rows of ``losses/value.py`` and ``losses/distances.py``."""

from losses import add_advantage
from paramtree import tree
from tests.contract.case import Function, Reducer, advantaged, draw, flags, trajectory

DISCOUNTS = {"gamma": 0.9, "lmbda": 0.7}


def advantages(td, hyper):
    return add_advantage(td, hyper["gamma"], hyper["lmbda"])


def behaved(*size):
    td = trajectory(*size)
    behavior = tree.new({"state_value": draw("old value", *size)}, size)
    return tree.new({**tree.entries(td), "behavior": behavior}, size)


def pair(*size):
    return {"prediction": 2 * draw("a", *size), "target": draw("b", *size)}


ROWS = [
    Function("squared_error", lambda: pair(3)),
    Function("absolute_error", lambda: pair(3)),
    Function("half_squared_error", lambda: pair(3)),
    Function("huber", lambda: {"x": 2 * draw("x", 6)}, {"delta": 0.6}),
    Function("huber_error", lambda: pair(6), {"delta": 0.6}),
    Function("expectile_error", lambda: pair(5, 2), {"expectile": 0.8}),
    Function("clip_gradient", lambda: {"x": draw("x", 4)}, {"low": -20.0, "high": 20.0}),
    Function(
        "td_error",
        lambda: {
            **{name: draw(name, 5, 2) for name in ("value", "reward", "next_value")},
            "terminated": flags("end", 5, 2),
        },
        {"gamma": 0.9},
    ),
    Function(
        "clipped_error",
        lambda: {name: draw(name, 5, 2) for name in ("value", "old_value", "target")},
        {"value_clip": 0.3},
    ),
    Function("explained_variance", lambda: {**pair(5, 2), "mask": ~flags("mask", 5, 2)}),
    Reducer(
        "value_loss",
        lambda: trajectory(2, 5),
        ("state_value",),
        {"critic_coeff": 0.3},
        DISCOUNTS,
        advantages,
    ),
    Reducer(
        "clipped_value_loss",
        lambda: behaved(2, 5),
        ("state_value",),
        {"critic_coeff": 0.3, "value_clip": 0.35},
        DISCOUNTS,
        advantages,
    ),
    Reducer(
        "expectile_loss",
        lambda: advantaged(2, 5),
        ("state_value",),
        {"expectile": 0.8},
    ),
]
