"""Catch: a ball falls down a board, and a paddle at its foot is to be where it lands.

The ball starts in a random column of the top row and falls a row a step; the paddle starts in the
middle and moves at most a column a step. Where the ball reaches the last row the episode
terminates. Every episode has rows - 1 steps, and on a board of at most 2 rows - 1 columns each ball
can be caught: the best policy's return is the level's ``caught``.

Symbols: L the levels' batch size, W the workers' on each level.
"""

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng
from ..tree import entries, new
from .base import Env
from .numbers import aligned, plain_level, require_step

N_ACTIONS = 3  # to the left, stay, to the right


def catch(rows: int = 10, columns: int = 5) -> Env:
    """Paddle that is to catch a falling ball.

    Args:
        rows: height of the board, at least 2.
        columns: width of the board, at least 1.

    Returns:
        The environment, for levels of ``catch_level``. Actions: 0 to the left, 1 stay, 2 to the
        right, int64 ``[*L, *W]``. Observations: the board, 1 where the ball or the paddle is and 0
        elsewhere, float ``[*L, *W, rows, columns]``.

    Raises:
        ValueError: a size is too small.
        TypeError: a size isn't an int.

    Source: Osband et al. (2020), "Behaviour suite for reinforcement learning", Catch.
    """
    for name, size, least in (("rows", rows, 2), ("columns", columns, 1)):
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"catch: {name} is {size!r}, expected an int")
        if size < least:
            raise ValueError(f"catch: {name} is {size}, expected at least {least}")

    def seen(ball: Tensor, row: Tensor, paddle: Tensor, dtype: torch.dtype) -> Tensor:
        places = torch.arange(rows * columns, device=ball.device)
        at = (row * columns + ball).unsqueeze(-1) == places
        below = (paddle + (rows - 1) * columns).unsqueeze(-1) == places
        return (at | below).to(dtype).unflatten(-1, (rows, columns))

    def started(uniform: Tensor) -> dict[str, Tensor]:
        ball = (uniform * columns).long().clamp(max=columns - 1)
        return {"ball": ball, "paddle": torch.full_like(ball, columns // 2)}

    def reset(level: TensorDict, noise: TensorDict) -> TensorDict:
        uniform = entries(noise)["reset"]
        place = started(uniform)
        time = torch.zeros_like(place["ball"])
        observation = seen(place["ball"], time, place["paddle"], uniform.dtype)
        state = {**place, "observation": observation, "is_init": time == 0, "time": time}
        return new(state, noise.batch_size)

    def step(
        level: TensorDict, state: TensorDict, action: Tensor, noise: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        batch = state.batch_size
        if action.dtype != torch.int64:
            raise TypeError(f"catch.step: action is {action.dtype}, expected torch.int64 (0 to 2)")
        require_step("catch.step", state, action, tuple(batch), noise)
        own, ball, time = aligned(level, len(batch)), state["ball"], state["time"] + 1
        paddle = (state["paddle"] + action - 1).clamp(0, columns - 1)
        done = time >= rows - 1
        prize = torch.where(paddle == ball, own["caught"], own["missed"])
        reward = torch.where(done, prize, torch.zeros_like(prize))
        after = seen(ball, time, paddle, reward.dtype)
        timestep = {"reward": reward, "done": done, "terminated": done, "observation": after}
        fresh, time = started(noise["reset"]), time.masked_fill(done, 0)
        ball = torch.where(done, fresh["ball"], ball)
        paddle = torch.where(done, fresh["paddle"], paddle)
        following = {"ball": ball, "paddle": paddle, "is_init": done, "time": time}
        following["observation"] = seen(ball, time, paddle, reward.dtype)
        return new(following, batch), new(timestep, batch)

    def noise(level: TensorDict, key: Tensor, shape: Sequence[int]) -> TensorDict:
        own, batch = entries(level), tuple(level.batch_size)
        if tuple(shape[: len(batch)]) != batch:
            wanted = f"it to begin with {batch} (the level's batch size)"
            raise ValueError(f"catch.noise: shape is {tuple(shape)}, expected {wanted}")
        return new({"reset": rng.uniform(key, tuple(shape), dtype=own["caught"].dtype)}, shape)

    return Env(reset, step, noise)


def catch_level(
    *,
    caught: float | Tensor = 1.0,
    missed: float | Tensor = -1.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TensorDict:
    """Level of ``catch``, or a batch of them.

    Args:
        caught: reward of a ball that is caught; a number, or a tensor that broadcasts with the
            other to the levels' batch size.
        missed: reward of one that isn't; likewise.
        dtype: of the floats; default: that of the tensors given, float32 if there are none.
        device: default: that of the tensors given, torch's default device if there are none.

    Returns:
        Tree of batch size ``[*L]``, of entries ``[*L]``.

    Raises:
        ValueError: shapes don't broadcast.
        TypeError: an argument is of another kind, or the dtypes of tensors differ.
    """
    rewards = {"caught": caught, "missed": missed}
    level = plain_level("catch_level", rewards, 1, (), (), dtype=dtype, device=device)
    return new({name: level[name] for name in rewards}, level.batch_size)
