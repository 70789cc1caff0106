"""Rows of ``losses/meta.py``."""

from tests.contract.case import Reducer, advantaged, trajectory

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
]
