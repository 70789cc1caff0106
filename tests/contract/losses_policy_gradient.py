"""Rows of ``losses/policy_gradient.py``."""

from losses import add_advantage
from tests.contract.case import Reducer, trajectory

DISCOUNTS = {"gamma": 0.9, "lmbda": 0.7}


def advantages(td, hyper):
    return add_advantage(td, hyper["gamma"], hyper["lmbda"])


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
        "a2c_loss",
        lambda: trajectory(2, 5),
        ("logits", "state_value"),
        {"entropy_coeff": 0.1, "critic_coeff": 0.3},
        DISCOUNTS,
        advantages,
        inductor=True,
    ),
]
