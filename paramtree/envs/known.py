"""Small processes whose answers are known: what discounts and traces should be, and why.

    horizon          one state and a reward a step; over H steps its return is H rewards
    delayed_choice   a small reward now, or a large one after d steps
    random_walk      a walk between two ends; what is done changes nothing, and values are known

Observations are one-hot, so that a linear layer is a table. Symbols: L the levels' batch size, W
the workers' on each level.
"""

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng
from ..tree import entries, new, require_tree
from .base import Env
from .gridlevel import readable
from .numbers import aligned, plain_level, require_step

_Real = float | Tensor
# of a level, place, time before, action and luck: reward, the place after, done, terminated
_Moved = tuple[Tensor, Tensor, Tensor, Tensor]
_Move = Callable[[dict[str, Tensor], Tensor, Tensor, Tensor, Tensor], _Moved]


def horizon() -> Env:
    """One state, where each step has a reward whatever is done.

        reward = mean + deviation n,    n ~ N(0, 1)

    Only the time limit H ends an episode, so values bootstrap there: with discount gamma the value
    is mean / (1 - gamma), and that is an episode's return, H mean, at gamma = 1 - 1 / H alone.

    Returns:
        The environment, for levels of ``horizon_level``. Actions: int64 ``[*L, *W]``, without
        effect. Observations: 1, float ``[*L, *W, 1]``.
    """

    def move(
        own: dict[str, Tensor], at: Tensor, time: Tensor, action: Tensor, luck: Tensor
    ) -> _Moved:
        done = time + 1 >= own["max_steps"]
        return own["mean"] + own["deviation"] * luck, at, done, torch.zeros_like(done)

    return _process("horizon", "mean", 1, 0, move, rng.normal)


def delayed_choice(longest: int = 8) -> Env:
    """A small reward now, or a large one after d steps.

    An episode's first action chooses: 0 for ``small``, at once, 1 for ``large``, d steps later.
    Then d steps follow in which nothing can be done, whatever the choice, and the episode
    terminates. With discount gamma the large one is worth gamma^d large: from gamma =
    (small / large)^(1 / d) on it's the better, below it the small one.

    Args:
        longest: the largest delay d of its levels, at least 1.

    Returns:
        The environment, for levels of ``delayed_choice_level``. Actions: 0 or 1, int64 ``[*L,
        *W]``. Observations: one-hot, for the choice, and for each step after it with each choice,
        float ``[*L, *W, 1 + 2 longest]``.

    Raises:
        ValueError: longest is below 1.
        TypeError: it isn't an int.
    """
    _require_size("delayed_choice", "longest", longest)

    def move(
        own: dict[str, Tensor], at: Tensor, time: Tensor, action: Tensor, luck: Tensor
    ) -> _Moved:
        first, done = time == 0, time >= own["delay"]
        chosen = torch.where(first, action.clamp(0, 1), (at - 1) % 2)
        zero = torch.zeros_like(own["small"])
        reward = torch.where(first & (chosen == 0), own["small"], zero)
        reward = reward + torch.where(done & (chosen == 1), own["large"], zero)
        return reward, (1 + 2 * time + chosen).clamp(max=2 * longest), done, done

    return _process("delayed_choice", "small", 1 + 2 * longest, 0, move, rng.uniform)


def random_walk(size: int = 19) -> Env:
    """A walk to the left and to the right by chance, between two ends where it terminates.

    It starts in the middle. The step over an end has the reward ``left`` or ``right``, all others
    have 0. What is done has no effect: it's a process to be predicted, see ``random_walk_values``.

    Args:
        size: number of states, at least 1.

    Returns:
        The environment, for levels of ``random_walk_level``. Actions: int64 ``[*L, *W]``.
        Observations: one-hot, float ``[*L, *W, size]``.

    Raises:
        ValueError: size is below 1.
        TypeError: it isn't an int.

    Source: Sutton & Barto (2018), examples 6.2 and 7.1.
    """
    _require_size("random_walk", "size", size)

    def move(
        own: dict[str, Tensor], at: Tensor, time: Tensor, action: Tensor, luck: Tensor
    ) -> _Moved:
        to_right = luck < own["chance"]
        after = at + 2 * to_right.long() - 1
        zero = torch.zeros_like(own["left"])
        reward = torch.where(after < 0, own["left"], zero)
        reward = reward + torch.where(after >= size, own["right"], zero)
        done = (after < 0) | (after >= size)
        return reward, after.clamp(0, size - 1), done, done

    return _process("random_walk", "left", size, size // 2, move, rng.uniform)


def random_walk_values(level: TensorDict, gamma: _Real = 1.0, size: int = 19) -> Tensor:
    """The true values of a random walk: the solution of V = r + gamma P V.

    Args:
        level: of ``random_walk_level``, of batch size ``[*L]``.
        gamma: discount, float or 0-d tensor.
        size: number of states n.

    Returns:
        Float64 ``[*L, n]``, differentiable in level and gamma.

    Raises:
        ValueError: the level is another's, or size is below 1.
        TypeError: the level is no tree, or size isn't an int.

    Source: Sutton & Barto (2018), section 3.5.
    """
    require_tree("random_walk_values", "level", level)
    _require_size("random_walk_values", "size", size)
    if "chance" not in entries(level):
        raise ValueError(
            "random_walk_values: the level has no chance, expected random_walk_level's"
        )
    names = ("left", "right", "chance")
    left, right, chance = [level[name].double().unsqueeze(-1) for name in names]  # [*L, 1]
    first, last = (torch.eye(size, dtype=torch.float64, device=chance.device)[i] for i in (0, -1))
    ahead = torch.eye(size, dtype=torch.float64, device=chance.device).roll(1, 1)
    ahead = ahead.tril(1).triu(1)  # [n, n], a step to the right
    reward = (1 - chance) * left * first + chance * right * last
    chance = chance.unsqueeze(-1)
    follow = chance * ahead + (1 - chance) * ahead.mT
    return torch.linalg.solve(torch.eye(size, device=chance.device) - gamma * follow, reward)


# ------------------------------------------------------------------------------------- levels


def horizon_level(
    *,
    mean: _Real = 1.0,
    deviation: _Real = 0.0,
    max_steps: int | Tensor = 20,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TensorDict:
    """Level of ``horizon``, or a batch of them.

    Args:
        mean: of a step's reward; a number, or a tensor that broadcasts with the others to the
            levels' batch size.
        deviation: of a step's reward, at least 0; likewise.
        max_steps: H, an episode's steps, int, at least 1; likewise.
        dtype: of the floats; default: that of the tensors given, float32 if there are none.
        device: default: that of the tensors given, torch's default device if there are none.

    Returns:
        Tree of batch size ``[*L]``, of entries ``[*L]``.

    Raises:
        ValueError: shapes don't broadcast, or a value is out of its range.
        TypeError: an argument is of another kind, or the dtypes of tensors differ.
    """
    values = {"mean": mean, "deviation": deviation}
    where = {"dtype": dtype, "device": device}
    return plain_level("horizon_level", values, max_steps, (), ("deviation",), **where)


def delayed_choice_level(
    *,
    small: _Real = 1.0,
    large: _Real = 2.0,
    delay: int | Tensor = 5,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TensorDict:
    """Level of ``delayed_choice``, or a batch of them.

    Args:
        small: reward at once; a number, or a tensor that broadcasts with the others to the levels'
            batch size.
        large: reward after d steps; likewise.
        delay: d, int, at least 1 and at most the environment's ``longest``; likewise.
        dtype: of the floats; default: that of the tensors given, float32 if there are none.
        device: default: that of the tensors given, torch's default device if there are none.

    Returns:
        Tree of batch size ``[*L]``, of entries ``[*L]``.

    Raises:
        ValueError: shapes don't broadcast, or delay is below 1.
        TypeError: an argument is of another kind, or the dtypes of tensors differ.
    """
    values, fn = {"small": small, "large": large}, "delayed_choice_level"
    try:
        made = entries(plain_level(fn, values, delay, (), (), dtype=dtype, device=device))
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("max_steps", "delay")) from None
    made["delay"] = made.pop("max_steps")
    return new(made, made["delay"].shape)


def random_walk_level(
    *,
    left: _Real = -1.0,
    right: _Real = 1.0,
    chance: _Real = 0.5,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TensorDict:
    """Level of ``random_walk``, or a batch of them; what is not given is example 7.1's.

    Args:
        left: reward of the step over the left end; a number, or a tensor that broadcasts with the
            others to the levels' batch size.
        right: reward of the step over the right end; likewise.
        chance: of a step to the right, in [0, 1]; likewise.
        dtype: of the floats; default: that of the tensors given, float32 if there are none.
        device: default: that of the tensors given, torch's default device if there are none.

    Returns:
        Tree of batch size ``[*L]``, of entries ``[*L]``.

    Raises:
        ValueError: shapes don't broadcast, or chance is out of its range.
        TypeError: an argument is of another kind, or the dtypes of tensors differ.

    Source: Sutton & Barto (2018), example 7.1.
    """
    values, fn = {"left": left, "right": right, "chance": chance}, "random_walk_level"
    level = plain_level(fn, values, 1, (), ("chance",), dtype=dtype, device=device)
    held = level["chance"].detach()
    if not held.is_meta and readable(held) and bool((held > 1).any()):
        raise ValueError(f"{fn}: chance holds {held.max().item()}, expected values at most 1")
    return new({name: level[name] for name in values}, level.batch_size)


# ---------------------------------------------------------------------------- what they share


def _process(
    fn: str, like: str, size: int, start: int, move: _Move, luck: Callable[..., Tensor]
) -> Env:
    """An environment whose states are places, and whose first one is ``start``."""

    def placed(at: Tensor, time: Tensor, is_init: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        seen = _one_hot(at, size, dtype)
        return {"place": at, "time": time, "is_init": is_init, "observation": seen}

    def reset(level: TensorDict, noise: TensorDict) -> TensorDict:
        at = torch.full_like(entries(noise)["luck"], start, dtype=torch.int64)
        time = torch.zeros_like(at)
        return new(placed(at, time, time == 0, entries(noise)["luck"].dtype), noise.batch_size)

    def step(
        level: TensorDict, state: TensorDict, action: Tensor, noise: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        batch = state.batch_size
        if action.dtype != torch.int64:
            raise TypeError(f"{fn}.step: action is {action.dtype}, expected torch.int64")
        require_step(f"{fn}.step", state, action, tuple(batch), noise)
        own, at, time = aligned(level, len(batch)), state["place"], state["time"]
        reward, after, done, terminated = move(own, at, time, action, noise["luck"])
        timestep = {"reward": reward, "done": done, "terminated": terminated}
        timestep["observation"] = _one_hot(after, size, reward.dtype)
        after, time = after.masked_fill(done, start), (time + 1).masked_fill(done, 0)
        return new(placed(after, time, done, reward.dtype), batch), new(timestep, batch)

    def noise(level: TensorDict, key: Tensor, shape: Sequence[int]) -> TensorDict:
        own, batch = entries(level), tuple(level.batch_size)
        if like not in own:
            raise ValueError(f"{fn}: the level has no {like}, expected one of {fn}_level")
        if tuple(shape[: len(batch)]) != batch:
            wanted = f"it to begin with {batch} (the level's batch size)"
            raise ValueError(f"{fn}.noise: shape is {tuple(shape)}, expected {wanted}")
        return new({"luck": luck(key, tuple(shape), dtype=own[like].dtype)}, shape)

    return Env(reset, step, noise)


def _one_hot(at: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return (at.unsqueeze(-1) == torch.arange(size, device=at.device)).to(dtype)


def _require_size(fn: str, name: str, size: int) -> None:
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"{fn}: {name} is {size!r}, expected an int")
    if size < 1:
        raise ValueError(f"{fn}: {name} is {size}, expected at least 1")
