"""Rows of grid worlds with other actions and maps than those of ``cases``."""

from functools import partial
from typing import Any

import torch

from paramtree import envs, rng
from tests.contract.case import Case, draw


def stepped(name: str, n_actions: int, key: torch.Tensor) -> Any:
    world = envs.level_distribution(name, n_actions=n_actions)
    level = world.sample(key)
    noise = world.env.noise(level, key, (2, 2))
    action = rng.randint(rng.fold_in(key, 1), (2, 2), 0, n_actions)
    return world.env.step(level, world.env.reset(level, noise), action, noise)


def best(n_actions: int, reward: torch.Tensor, p_terminate: torch.Tensor) -> torch.Tensor:
    level = envs.grid_level(
        walls=torch.zeros(9, dtype=torch.bool),
        side=3,
        start=0,
        max_steps=3,
        reward=reward,
        p_terminate=p_terminate,
        p_respawn=0.5 * p_terminate,
        object_cell=torch.tensor([4, 5]),
        n_actions=n_actions,
    )
    return envs.optimal_return(level, 3)


def chances() -> tuple[torch.Tensor, torch.Tensor]:
    return draw("reward", 2), draw("p", 2, low=0.1, high=0.5)


ROWS = [
    *[
        Case(
            f"envs.grid_world.{name}_{n_actions}",
            partial(stepped, name, n_actions),
            lambda: (rng.key(2),),
            smooth=0,
        )
        for name, n_actions in (("mazes", 9), ("tabular", 18))
    ],
    Case(
        "envs.optimal_return.eighteen",
        partial(best, 18),
        chances,
        covers=("envs.optimal_return", "envs.grid_level"),
    ),
]
