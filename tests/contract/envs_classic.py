"""Rows of the classic worlds: a reset and two steps, differentiated in physics and noise."""

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import envs, rng, tree
from tests.contract.case import Case, D, draw


def walked(env: envs.Env, level: TensorDict, uniform: torch.Tensor, actions: Any) -> Any:
    """A first state, and what two actions lead to; the time limit cuts the second step."""
    noise = tree.new({"reset": uniform}, uniform.shape[:-1])
    state = env.reset(level, noise)
    state, first = env.step(level, state, actions[0], noise)
    state, second = env.step(level, state, actions[1], noise)
    return state, first, second


def cart_pole_args() -> tuple[Any, ...]:
    level = tree.map(torch.clone, envs.cart_pole_level(length=draw("l", 2, low=0.4), max_steps=2))
    return level, draw("u", 2, 3, 4, low=0.0), rng.randint(rng.key(3), (2, 2, 3), 0, 2)


def pendulum_args() -> tuple[Any, ...]:
    level = tree.map(torch.clone, envs.pendulum_level(length=draw("l", 2, low=0.4), max_steps=2))
    return level, draw("u", 2, 3, 2, low=0.0), draw("torque", 2, 2, 3, 1, high=3.0)


def noisy(env: envs.Env, level: TensorDict, key: torch.Tensor) -> TensorDict:
    return env.noise(level, key, (*level.batch_size, 3))


ROWS = [
    Case("envs.cart_pole", partial(walked, envs.cart_pole()), cart_pole_args),
    Case("envs.pendulum", partial(walked, envs.pendulum()), pendulum_args),
    Case(
        "envs.cart_pole_level",
        lambda x: envs.cart_pole_level(length=x, gravity=2 * x, high=x.mean(), max_steps=9),
        lambda: (draw("x", 3, low=0.1),),
    ),
    Case(
        "envs.pendulum_level",
        lambda x: envs.pendulum_level(length=x, gravity=2 * x, mass=x.mean(), max_steps=9),
        lambda: (draw("x", 3, low=0.1),),
    ),
    Case(
        "envs.cart_pole.noise",
        partial(noisy, envs.cart_pole("semi-implicit")),
        lambda: (envs.cart_pole_level(length=torch.ones(2, dtype=D)), rng.key(2)),
        smooth=0,
    ),
    Case(
        "envs.pendulum.noise",
        partial(noisy, envs.pendulum()),
        lambda: (envs.pendulum_level(length=torch.ones(2, dtype=D)), rng.key(2)),
        smooth=0,
    ),
]
