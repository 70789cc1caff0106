"""Row of the value of a policy in a tabular grid world."""

import torch

from paramtree import envs, rng
from tests.contract.case import Case, draw

WORLD = envs.level_distribution("small")


def value(logits: torch.Tensor, drift: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    level = WORLD.sample(rng.key(1))
    index = level["table", "start_index"].expand(3)
    time = torch.arange(3)
    return envs.policy_value(level, logits, gamma[0], index, time, drift=drift, horizon=4)


ROWS = [
    Case(
        "envs.policy_value",
        value,
        lambda: (draw("logits", 6 * 6 * 2**3, 5), draw("drift", 5), draw("gamma", 1, low=0.5)),
    ),
]
