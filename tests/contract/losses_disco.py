"""Rows of ``losses/disco.py``."""

import torch
from tensordict import TensorDict

from paramtree import tree
from tests.contract.case import D, Reducer, advantaged, draw

SUPPORT = torch.tensor([-1.0, -0.4, 0.13, 0.5, 1.2], dtype=D)


def outputs(*size: int) -> TensorDict:
    """A trajectory with the outputs of an agent and of the meta-network."""
    td = tree.entries(advantaged(*size))
    following = tree.new({**tree.entries(td["next"]), "logits": draw("next l", *size, 3)}, size)
    more = {
        "action_prediction": draw("z", *size, 3, 4),
        "auxiliary_logits": draw("p", *size, 3, 3),
        "action_value_logits": draw("q", *size, 3, 5),
        "policy_target_logits": draw("pi target", *size, 3),
        "prediction_target_logits": draw("y target", *size, 4),
        "action_prediction_target_logits": draw("z target", *size, 4),
        "target": tree.new({"logits": draw("held", *size, 3)}, size),
        "next": following,
    }
    return tree.new({**td, **more}, size)


ROWS = [
    Reducer(
        "disco_agent_loss",
        lambda: outputs(2, 5),
        ("logits", "prediction", "action_prediction", "auxiliary_logits", "action_value_logits"),
        {
            "policy_coeff": 0.9,
            "prediction_coeff": 0.8,
            "action_prediction_coeff": 0.7,
            "auxiliary_coeff": 0.6,
            "critic_coeff": 0.2,
        },
        options={"support": SUPPORT},
    ),
    Reducer(
        "disco_meta_loss",
        lambda: outputs(2, 5),
        ("logits", "prediction", "action_prediction"),
        {
            "policy_entropy_coeff": 0.3,
            "prediction_entropy_coeff": 0.2,
            "action_prediction_entropy_coeff": 0.1,
        },
    ),
    Reducer(
        "disco_regularizer_loss",
        lambda: outputs(2, 5),
        ("policy_target_logits", "prediction_target_logits", "action_prediction_target_logits"),
        {
            "policy_mean_coeff": 0.4,
            "prediction_mean_coeff": 0.3,
            "action_prediction_mean_coeff": 0.2,
            "target_kl_coeff": 0.1,
        },
        per_step=False,
    ),
]
