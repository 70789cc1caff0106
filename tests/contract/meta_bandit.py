"""Rows of the bandit over the hyper-parameters of lives."""

from typing import Any

import torch

from paramtree import meta, rng, tree
from tests.contract.case import Case, draw

ARMS = tree.new({"optimizer": tree.new({"rate": torch.ones(3)}, (3,))}, (3,))
BANDIT = meta.Bandit(ARMS)


def state() -> Any:
    return tree.new({"results": draw("results", 3, 10), "trials": torch.tensor([0, 4, 12])})


def drawn(state: Any, key: torch.Tensor) -> torch.Tensor:
    return meta.bandit_draw(BANDIT, state, key, 5)


ROWS = [
    Case("meta.bandit_logits", lambda s: meta.bandit_logits(BANDIT, s), lambda: (state(),)),
    Case("meta.bandit_draw", drawn, lambda: (state(), rng.key(0)), smooth=0),
    Case(
        "meta.bandit_update",
        meta.bandit_update,
        lambda: (
            state(),
            torch.tensor([0, 2, 2, 1]),
            draw("result", 4),
            torch.tensor([True, True, False, True]),
        ),
        covers=("meta.Bandit", "meta.bandit_init"),
    ),
]
