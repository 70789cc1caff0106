"""Rows of ``losses/module.py``."""

import losses
from paramtree import tree
from tests.contract.case import Case, advantaged, draw

ROWS = [
    Case(
        "losses.total",
        losses.total,
        lambda: (tree.new({"loss_a": draw("a"), "loss_b": draw("b")}),),
    ),
    Case(
        "losses.as_module",
        lambda td: losses.total(losses.as_module(losses.a2c_loss, entropy_coeff=0.1)(td)),
        lambda: (advantaged(2, 5),),
        compiled="a constructor: what it makes is held by the case that covers it",
        covers=("losses.LossModule",),
    ),
]
