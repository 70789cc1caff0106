"""Rows of ``losses/returns.py`` and ``losses/estimators.py``."""

import torch

import losses
from paramtree import tree
from tests.contract.case import Case, D, Function, draw, ends, trajectory

DISCOUNTS = {"gamma": 0.9, "lmbda": 0.7}


def steps(*names: str) -> dict[str, torch.Tensor]:
    return {name: draw(name, 5, 2) for name in names}


ROWS = [
    Function(
        "reverse_linear",
        lambda: {**steps("a", "b"), "last": draw("last", 2)},
        inductor=True,
    ),
    Function("lambda_returns", lambda: {**steps("reward", "next_value"), **ends(5, 2)}, DISCOUNTS),
    Function(
        "gae",
        lambda: {**steps("reward", "value", "next_value"), **ends(5, 2)},
        DISCOUNTS,
        inductor=True,
    ),
    Function(
        "discounted_returns",
        lambda: {**steps("reward", "next_value"), **ends(5, 2)},
        {"gamma": 0.9},
    ),
    Case(
        "losses.add_advantage",
        lambda td, g, lam: tree.select(
            losses.add_advantage(td, g, lam, normalize=True), "advantage", "value_target"
        ),
        lambda: (trajectory(2, 5), torch.tensor(0.9, dtype=D), torch.tensor(0.7, dtype=D)),
    ),
]
