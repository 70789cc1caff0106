"""Rows of delayed chains: a reset and two steps, differentiated in rewards; their optima."""

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import envs, rng
from tests.contract.case import Case, D, draw


def walked(env: envs.Env, level: TensorDict, key: torch.Tensor, actions: torch.Tensor) -> Any:
    noise = env.noise(level, key, (3, 2))
    state = env.reset(level, noise)
    state, first = env.step(level, state, actions[0], noise)
    state, second = env.step(level, state, actions[1], noise)
    return state, first, second


def chain_args() -> tuple[Any, ...]:
    return levels(draw("reward", 3, low=0.1)), rng.key(3), rng.randint(rng.key(4), (2, 3, 2), 0, 2)


def levels(reward: torch.Tensor) -> TensorDict:
    length, right = torch.tensor([1, 2, 5]), torch.tensor([0, 1, -1])
    return envs.chain_level(length=length, right=right, reward=reward, noise=2 * reward)


def optima(reward: torch.Tensor) -> torch.Tensor:
    level = levels(reward)
    return envs.optimal_return(level, 4) + envs.optimal_reward_rate(level, 4)


def drawn(name: str, key: torch.Tensor) -> TensorDict:
    return envs.level_distribution(name, right="episode").sample(key)


ROWS = [
    Case("envs.delayed_chain", partial(walked, envs.delayed_chain()), chain_args),
    Case("envs.delayed_chain.distracted", partial(walked, envs.delayed_chain(5)), chain_args),
    Case("envs.chain_level", levels, lambda: (draw("reward", 3, low=0.1),)),
    Case("envs.optimal_return.chain", optima, lambda: (torch.tensor([0.5, 1.0, 2.0], dtype=D),)),
    Case(
        "envs.level_distribution.chain_short_noisy",
        partial(drawn, "chain_short_noisy"),
        lambda: (rng.key(2),),
        smooth=0,
    ),
]
