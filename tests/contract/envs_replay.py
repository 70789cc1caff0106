"""Rows of the replay buffer: what is added to a memory, and what is drawn from it."""

from typing import Any

import torch
from tensordict import TensorDict

from paramtree import envs, rng, tree
from tests.contract.case import Case, draw

REPLAY = envs.replay_buffer(5)


def steps() -> TensorDict:
    following = tree.new({"x": draw("next", 2, 4, 3)}, (2, 4))
    return tree.new({"x": draw("x", 2, 4, 3), "next": following}, (2, 4))


def remembered(td: TensorDict, key: torch.Tensor) -> Any:
    memory = REPLAY.add(REPLAY.init(td), td)
    return memory, REPLAY.sample(memory, key, 6)


ROWS = [
    Case(
        "envs.replay_buffer",
        remembered,
        lambda: (steps(), rng.key(1)),
        covers=("envs.ReplayBuffer",),
    ),
]
