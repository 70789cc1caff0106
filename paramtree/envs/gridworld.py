"""Grid worlds of the Learned Policy Gradient, tabular or with objects at random positions.

An agent walks on a square grid and collects objects. Actions are up, down, left, right, stay; with
nine of them up-left, up-right, down-left, down-right come before stay; with eighteen these nine
collect nothing, and nine more are the same moves and collect. One step, in this order:

1. the agent moves, if the cell that it would move to is on the grid and no wall, else it stays
   where it is: a diagonal move is blocked by its target alone, and at the border it doesn't become
   a straight one. Every object that is there and lies on its new cell is collected, unless the
   action leaves it: their rewards add up, and so do their chances to end the episode (at most 1);
2. every object that was absent before the step reappears with its own chance, so that a collected
   object can't reappear in the same step;
3. the episode is over where it was ended, or after ``max_steps`` steps; the state then starts a new
   one, with the agent at ``start`` and all objects there.

Tabular worlds have objects at fixed cells, and the agent sees ``index = cell + S * S * sum_j 2^j
there_j`` and ``time``, the number of steps so far. In worlds with random positions objects are put
on distinct free cells at each reset, and one that reappears goes to a cell that is free of the
agent and of every object's last position; the agent sees ``image [1 + n_types, S * S]``, the
agent's cell and those of each type, and ``time``.

Symbols: L the levels' batch size, W the workers', S the side of the largest grid, k the number of
objects.

Source: Oh et al. (2020), Discovering reinforcement learning algorithms, and Jackson et al. (2023),
Discovering general reinforcement learning algorithms with adversarial environment design, whose
transitions these are, but for one slip of theirs: objects at random positions avoid walls here.
They have five actions; nine and eighteen are the first paper's, which leaves open how diagonal
moves meet walls (here as in its reproductions).
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng
from ..tree import entries, new
from .base import Env
from .gridlevel import MOVES, action_count, align, from_bits, to_bits


def grid_world() -> Env:
    """Tabular grid world, for levels with an ``object_cell``.

    Returns:
        The environment. Observations: ``index`` int64 in [0, S * S * 2^k), ``time`` int64.
    """
    return Env(_reset, _step, _noise)


def random_grid_world(n_types: int) -> Env:
    """Grid world whose objects go to random free cells, for levels without an ``object_cell``.

    Args:
        n_types: number of object types: the image has a channel for each, after the agent's.

    Returns:
        The environment. Observations: ``image`` float32 ``[1 + n_types, S * S]``, ``time`` int64.

    Raises:
        ValueError: ``n_types`` is below 1.
        TypeError: it isn't an int.
    """
    if not isinstance(n_types, int):
        kind = type(n_types).__name__
        raise TypeError(f"random_grid_world: n_types is a {kind}, expected an int")
    if n_types < 1:
        raise ValueError(f"random_grid_world: n_types is {n_types}, expected at least 1")

    def reset(level: TensorDict, noise: TensorDict) -> TensorDict:
        batch = noise.batch_size
        start = align(level["start"], len(level.batch_size), len(batch)).expand(batch)
        layout, there = _placed(level, noise["layout"])
        image, time = _image(level, n_types, start, there, layout), torch.zeros_like(start)
        first = torch.ones_like(start, dtype=torch.bool)
        return _moving_state(batch, image, time, first, start, there, layout)

    def step(
        level: TensorDict, state: TensorDict, action: Tensor, noise: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        n_actions = action_count(level)
        _require_step(n_actions, state, action, noise)
        batch, depth = state.batch_size, len(level.batch_size)
        table, before, layout = entries(level["table"]), state["objects"], state["object_cell"]
        cell = _lookup(table["landing"], depth, state["cell"] * n_actions + action)
        collected = _collected(n_actions, action, before & to_bits(layout == cell.unsqueeze(-1)))
        there = (before | noise["respawn"]) ^ collected
        layout, there = _moved(layout, cell, before, there, noise["candidates"])
        time = state["observation", "time"] + 1
        seen = new({"image": _image(level, n_types, cell, there, layout), "time": time}, batch)
        timestep = _timestep(level, table, seen, collected, noise["end"])
        done = timestep["done"]
        fresh_layout, fresh_there = _placed(level, noise["layout"])
        cell = torch.where(done, align(level["start"], depth, len(batch)), cell)
        there = torch.where(done, fresh_there, there)
        layout = torch.where(done.unsqueeze(-1), fresh_layout, layout)
        image, time = _image(level, n_types, cell, there, layout), time.masked_fill(done, 0)
        return _moving_state(batch, image, time, done, cell, there, layout), timestep

    return Env(reset, step, _moving_noise)


# ---- objects at fixed cells ----


def _reset(level: TensorDict, noise: TensorDict) -> TensorDict:
    batch, depth = noise.batch_size, len(level.batch_size)
    start = align(level["table", "start_index"], depth, len(batch)).expand(batch).clone()
    observation = new({"index": start, "time": torch.zeros_like(start)}, batch)
    first = torch.ones_like(start, dtype=torch.bool)
    return new({"observation": observation, "is_init": first}, batch)


def _step(
    level: TensorDict, state: TensorDict, action: Tensor, noise: TensorDict
) -> tuple[TensorDict, TensorDict]:
    n_actions = action_count(level)
    _require_step(n_actions, state, action, noise)
    batch, depth = state.batch_size, len(level.batch_size)
    table, observation, drawn = (
        entries(tree) for tree in (level["table"], state["observation"], noise)
    )
    index, cells = observation["index"], level["walls"].shape[-1]
    cell = _lookup(table["landing"], depth, torch.add(action, index % cells, alpha=n_actions))
    there = torch.div(index, cells, rounding_mode="floor")
    collected = _collected(n_actions, action, there & _lookup(table["objects_at"], depth, cell))
    there = (there | drawn["respawn"]) ^ collected
    index, time = torch.add(cell, there, alpha=cells), observation["time"] + 1
    seen = new({"index": index, "time": time}, batch)
    timestep = _timestep(level, table, seen, collected, drawn["end"])
    done = timestep["done"]
    start = align(table["start_index"], depth, len(batch))
    fresh = {"index": torch.where(done, start, index), "time": time.masked_fill(done, 0)}
    return new({"observation": new(fresh, batch), "is_init": done}, batch), timestep


def _noise(level: TensorDict, key: Tensor, shape: Sequence[int]) -> TensorDict:
    _require_kind("grid_world", level, fixed=True)
    return new(_chances("grid_world", level, key, shape), shape)


# ---- what both kinds share ----


def _chances(fn: str, level: TensorDict, key: Tensor, shape: Sequence[int]) -> dict[str, Tensor]:
    """Objects that would reappear, as bits, and a uniform that decides whether an episode ends."""
    batch, chance = level.batch_size, level["p_respawn"]
    if tuple(shape[: len(batch)]) != tuple(batch):
        wanted = f"it to begin with {tuple(batch)} (the level's batch size)"
        raise ValueError(f"{fn}.noise: shape is {tuple(shape)}, expected {wanted}")
    k = chance.shape[-1]
    uniform = rng.uniform(key, (*shape, k + 1))
    respawn = to_bits(uniform[..., :k] < align(chance, len(batch), len(shape)))
    return {"respawn": respawn, "end": uniform[..., k].clone()}


def _collected(n_actions: int, action: Tensor, objects: Tensor) -> Tensor:
    """Set of objects that an action takes, of those on the cell that it leads to."""
    moves = len(MOVES[n_actions])
    return objects if moves == n_actions else objects * (action >= moves)


def _timestep(
    level: TensorDict, table: dict[str, Any], seen: TensorDict, collected: Tensor, uniform: Tensor
) -> TensorDict:
    depth, ndim = len(level.batch_size), collected.ndim
    terminated = uniform < _lookup(table["p_terminate"], depth, collected)
    done = terminated | (seen["time"] >= align(level["max_steps"], depth, ndim))
    reward = _lookup(table["reward"], depth, collected)
    timestep = {"reward": reward, "done": done, "terminated": terminated, "observation": seen}
    return new(timestep, collected.shape)


def _lookup(table: Tensor, depth: int, index: Tensor) -> Tensor:
    """Entries of a table ``[*L, n]`` at ``index [*L, *W]``; depth is the number of axes of L."""
    if index.ndim == depth + 1:
        return table.gather(-1, index)
    rows = index.reshape(*index.shape[:depth], -1)
    return table.gather(-1, rows).reshape(index.shape)


# ---- objects at random cells ----


def _moving_noise(level: TensorDict, key: Tensor, shape: Sequence[int]) -> TensorDict:
    _require_kind("random_grid_world", level, fixed=False)
    chances = _chances("random_grid_world", level, rng.fold_in(key, "chances"), shape)
    depth, k, table = len(level.batch_size), level["p_respawn"].shape[-1], entries(level["table"])
    free, n_free = table["free"], align(table["n_free"], depth, len(shape))
    uniform = rng.uniform(rng.fold_in(key, "cells"), (*shape, 3 * k + 1))
    # a reset leaves out the start, the last of the free cells; of 2 k + 1 distinct cells at least
    # k are neither the agent's nor an object's
    layout = _distinct_cells(uniform[..., :k], free, n_free - 1, depth)
    candidates = _distinct_cells(uniform[..., k:], free, n_free, depth)
    return new({**chances, "layout": layout, "candidates": candidates}, shape)


def _distinct_cells(uniform: Tensor, free: Tensor, count: Tensor, depth: int) -> Tensor:
    """Distinct cells of the first ``count`` of ``free``, in random order; -1 where they run out.

    Pick i is the r-th cell of those that are left, r uniform in [0, count - i): r moves up by one
    for each earlier pick, in ascending order, that isn't above it.

    Args:
        uniform: ``[*L, *W, m]`` in [0, 1).
        free: int64 ``[*L, S * S]``.
        count: int64 ``[*L, *ones]``.
        depth: number of axes of L.

    Returns:
        int64 ``[*L, *W, m]``.
    """
    picks = uniform[..., :0].to(torch.int64)
    for i, value in enumerate(uniform.unbind(-1)):
        pick = (value * (count - i).clamp(min=0)).to(torch.int64)
        for earlier in picks.sort(-1).values.unbind(-1):
            pick = pick + (pick >= earlier)
        picks = torch.cat([picks, pick.unsqueeze(-1)], -1)
    short = torch.arange(picks.shape[-1], device=picks.device) >= count.unsqueeze(-1)
    return _lookup(free, depth, picks.masked_fill(short, 0)).masked_fill(short, -1)


def _placed(level: TensorDict, layout: Tensor) -> tuple[Tensor, Tensor]:
    """Cells of all objects at a reset, and those that are there: all that found a free cell."""
    full = align(level["table", "full"], len(level.batch_size), layout.ndim - 1)
    return layout.clamp(min=0), full & to_bits(layout >= 0)


def _moved(
    layout: Tensor, cell: Tensor, before: Tensor, there: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Cells of all objects after a step, and those that are there: what reappears has moved.

    Object j takes the j-th candidate on which neither the agent nor any object's last cell is;
    where there is none it stays away.
    """
    k = layout.shape[-1]
    taken = torch.cat([layout, cell.unsqueeze(-1)], -1)  # [*L, *W, k + 1]
    blocked = (candidates.unsqueeze(-1) == taken.unsqueeze(-2)).any(-1) | (candidates < 0)
    first = blocked.to(torch.int8).argsort(dim=-1, stable=True)[..., :k]  # [*L, *W, k]
    chosen, crowded = candidates.gather(-1, first), blocked.gather(-1, first)
    fresh = from_bits(there & ~before, k)
    layout = torch.where(fresh & ~crowded, chosen, layout)
    return layout, there & ~to_bits(fresh & crowded)


def _image(level: TensorDict, n_types: int, cell: Tensor, there: Tensor, layout: Tensor) -> Tensor:
    """Picture of the agent and of the objects that are there, ``[*L, *W, 1 + n_types, S * S]``."""
    cells, k = level["walls"].shape[-1], layout.shape[-1]
    channel = align(level["object_type"], len(level.batch_size), cell.ndim) + 1
    agent = cell.unsqueeze(-1)
    pixel = torch.cat([agent, layout + cells * channel], -1)  # [*L, *W, 1 + k]
    value = torch.cat([torch.ones_like(agent), from_bits(there, k)], -1).to(torch.float32)
    blank = torch.zeros((*cell.shape, (1 + n_types) * cells), device=cell.device)
    return blank.scatter_add(-1, pixel, value).unflatten(-1, (1 + n_types, cells))


def _moving_state(
    batch: Sequence[int],
    image: Tensor,
    time: Tensor,
    first: Tensor,
    cell: Tensor,
    there: Tensor,
    layout: Tensor,
) -> TensorDict:
    observation = new({"image": image, "time": time}, batch)
    position = {"cell": cell, "objects": there, "object_cell": layout}
    return new({"observation": observation, "is_init": first, **position}, batch)


# ---- checks ----


def _require_step(n_actions: int, state: TensorDict, action: Tensor, noise: TensorDict) -> None:
    if action.dtype != torch.int64:
        wanted = f"torch.int64 (0 to {n_actions - 1})"
        raise TypeError(f"grid_world.step: action is {action.dtype}, expected {wanted}")
    if action.shape != state.batch_size:
        got, wanted = tuple(action.shape), tuple(state.batch_size)
        raise ValueError(
            f"grid_world.step: action has shape {got}, expected {wanted} (the state's batch size)"
        )
    if noise.batch_size != state.batch_size:
        got, wanted = tuple(noise.batch_size), tuple(state.batch_size)
        raise ValueError(
            f"grid_world.step: noise has batch size {got}, expected {wanted} (the state's)"
        )


def _require_kind(fn: str, level: TensorDict, *, fixed: bool) -> None:
    if "walls" not in entries(level):
        raise ValueError(f"{fn}: the level has no walls, expected one of grid_level")
    has = "object_cell" in entries(level)
    if has and not fixed:
        raise ValueError(f"{fn}: the level has an object_cell, so it is one for grid_world")
    if fixed and not has:
        raise ValueError(f"{fn}: the level has no object_cell, so it is one for random_grid_world")
