"""Rows of catch and of the processes with known answers: a reset and some steps."""

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import envs, rng, tree
from tests.contract.case import Case, draw


def walked(env: envs.Env, key: str, level: TensorDict, luck: torch.Tensor, actions: Any) -> Any:
    """A first state, and what two actions lead to."""
    noise = tree.new({key: luck}, luck.shape)
    state = env.reset(level, noise)
    state, first = env.step(level, state, actions[0], noise)
    state, second = env.step(level, state, actions[1], noise)
    return state, first, second


def case(name: str, env: envs.Env, level: Any, key: str = "luck", high: int = 2) -> Case:
    def args() -> tuple[Any, ...]:
        made = tree.map(torch.clone, level(draw("level", 2, low=0.2)))
        return made, draw("luck", 2, 3, low=0.0), rng.randint(rng.key(3), (2, 2, 3), 0, high)

    return Case(f"envs.{name}", partial(walked, env, key), args)


def level_case(name: str, make: Any) -> Case:
    return Case(f"envs.{name}_level", make, lambda: (draw("x", 3, low=0.1),))


def noisy(env: envs.Env, level: TensorDict, key: torch.Tensor) -> TensorDict:
    return env.noise(level, key, (*level.batch_size, 3))


ROWS = [
    case("catch", envs.catch(3, 4), lambda x: envs.catch_level(caught=x), "reset", 3),
    case("horizon", envs.horizon(), lambda x: envs.horizon_level(deviation=x, max_steps=2)),
    case(
        "delayed_choice",
        envs.delayed_choice(2),
        lambda x: envs.delayed_choice_level(large=x, delay=1),
    ),
    case("random_walk", envs.random_walk(3), lambda x: envs.random_walk_level(left=x)),
    level_case("catch", lambda x: envs.catch_level(caught=x, missed=-2 * x)),
    level_case("horizon", lambda x: envs.horizon_level(mean=x, deviation=2 * x, max_steps=3)),
    level_case(
        "delayed_choice", lambda x: envs.delayed_choice_level(small=x, large=3 * x, delay=2)
    ),
    level_case("random_walk", lambda x: envs.random_walk_level(left=-x, right=2 * x, chance=x / 2)),
    Case(
        "envs.random_walk_values",
        lambda chance, gamma: envs.random_walk_values(
            envs.random_walk_level(chance=chance), gamma[0], 4
        ),
        lambda: (draw("chance", 2, low=0.2, high=0.8), draw("gamma", 1, low=0.5, high=0.9)),
    ),
    *[
        Case(
            f"envs.{name}.noise",
            partial(noisy, env),
            lambda level=level: (level(draw("level", 2, low=0.2)), rng.key(2)),
            smooth=0,
        )
        for name, env, level in (
            ("catch", envs.catch(3, 4), lambda x: envs.catch_level(caught=x)),
            ("horizon", envs.horizon(), lambda x: envs.horizon_level(mean=x)),
        )
    ],
]
