"""Rows of ``losses/distributions.py``."""

import torch

import losses
from tests.contract.case import Case, D, draw, trajectory

ROWS = [
    Case(
        "losses.distribution",
        lambda td: losses.distribution(td).log_prob(td["action"]),
        lambda: (trajectory(2, 5),),
    ),
    Case(
        "losses.independent_normal",
        lambda m, s: losses.independent_normal(m, s.exp()).log_prob(torch.ones(3, dtype=D)),
        lambda: (draw("m", 3), draw("s", 3)),
    ),
]
