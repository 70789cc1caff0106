"""Rows of ``losses/meta.py``."""

from losses import add_advantage
from paramtree import tree
from tests.contract.case import Reducer, advantaged, draw, trajectory

REGULARIZERS = {
    "policy_entropy_coeff": 0.3,
    "prediction_entropy_coeff": 0.2,
    "pi_hat_coeff": 0.1,
    "y_hat_coeff": 0.1,
}

ROWS = [
    Reducer(
        "lpg_agent_loss",
        lambda: trajectory(2, 5),
        ("logits", "prediction"),
        {"prediction_coeff": 0.3, "eps": 0.01},
        inductor=True,
    ),
    Reducer(
        "lpg_regularizer_loss",
        lambda: trajectory(2, 5),
        ("logits", "prediction"),
        REGULARIZERS,
    ),
    Reducer(
        "lpg_meta_loss",
        lambda: advantaged(2, 5),
        ("logits", "prediction"),
        REGULARIZERS,
    ),
    Reducer(
        "lpg_value_loss",
        lambda: tree.replace(advantaged(2, 5), {"prediction_embedding": draw("embedding", 2, 5)}),
        ("prediction_embedding",),
        {"value_coeff": 0.3, "eps": 0.01},
        per_step=False,
    ),
    Reducer(
        "mgrl_outer_loss",
        lambda: trajectory(2, 5),
        ("logits", "state_value"),
        {"critic_coeff": 0.3, "entropy_coeff": 0.1},
        {"reference_gamma": 0.9, "reference_lmbda": 0.7},
        lambda td, h: add_advantage(td, h["reference_gamma"], h["reference_lmbda"]),
    ),
]
