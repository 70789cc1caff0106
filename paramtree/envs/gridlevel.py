"""Levels of a grid world: what world it is, as a tree, with the tables that make a step cheap.

Cell = row * g + column for a grid of side g, whatever the side S of the largest grid to which all
levels of one distribution are padded. Objects that are there are the bits of an integer, bit j
being object j.

Symbols: L the levels' batch size, S the side of the largest grid, k the number of objects, A the
number of actions.

Under ``"table"`` lies what follows from the other entries:

===============  ===================  ==========================================================
``landing``      ``[*L, S * S * A]``  cell after action a of A from cell c, at A c + a
``reward``       ``[*L, 2^k]``        sum of the rewards of each set of objects
``p_terminate``  ``[*L, 2^k]``        chance that collecting this set ends the episode
``full``         ``[*L]``             set of all objects that exist
``objects_at``   ``[*L, S * S]``      set of the objects on a cell (only with fixed positions)
``start_index``  ``[*L]``             first observation of an episode (only with fixed positions)
``free``         ``[*L, S * S]``      free cells, the start their last (only with random positions)
``n_free``       ``[*L]``             number of free cells (only with random positions)
===============  ===================  ==========================================================
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from ..tree import entries, new

N_ACTIONS = 5  # where no other number is asked for
_STRAIGHT = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_STAY = ((0, 0),)
MOVES = {  # rows and columns that an agent moves by, for each number of actions; staying is last
    5: _STRAIGHT + _STAY,
    9: _STRAIGHT + _DIAGONAL + _STAY,
    18: _STRAIGHT + _DIAGONAL + _STAY,  # without collecting, then the same with it
}
_MOST_OBJECTS = 12  # tables of 2^k entries


def grid_level(
    *,
    walls: Tensor,
    side: int | Tensor,
    start: int | Tensor,
    max_steps: int | Tensor,
    reward: Tensor,
    p_terminate: Tensor,
    p_respawn: Tensor,
    object_cell: Tensor | None = None,
    object_type: Tensor | None = None,
    n_objects: int | Tensor | None = None,
    n_actions: int = N_ACTIONS,
) -> TensorDict:
    """Level of a grid world, or a batch of them.

    To change a level make a new one: a level whose entries were replaced keeps its old tables.

    Args:
        walls: bool ``[*L, S * S]``, by cell of the level's own side; cells beyond it have no say.
        side: int64 ``[*L]``, or one for all, from 1 to S.
        start: int64 ``[*L]``, or one for all, the agent's first cell.
        max_steps: int64 ``[*L]``, or one for all, steps of the longest episode.
        reward: float ``[*L, k]`` or ``[k]``, for collecting each object.
        p_terminate: float, likewise, chance that collecting it ends the episode.
        p_respawn: float, likewise, chance per step to reappear.
        object_cell: int64, likewise; None where positions are random.
        object_type: int64, likewise, its channel in an image; when None, object j is of type j.
        n_objects: int64 ``[*L]``, or one for all: objects from this one on don't exist. When None,
            all k do.
        n_actions: 5 (up, down, left, right, stay), 9 (the four diagonals before stay), or 18: those
            nine leaving all objects alone, then the same nine collecting.

    Returns:
        Tree of batch size ``[*L]``.

    Raises:
        ValueError: a shape doesn't fit, or a value is out of range.
        TypeError: a dtype doesn't fit.
    """
    size, k = _sizes(walls, reward)
    require_action_count("grid_level", n_actions)
    batch, objects = walls.shape[:-1], torch.arange(k, device=walls.device)
    level: dict[str, Any] = {
        "walls": walls,
        "side": _integer("side", side, walls, batch),
        "start": _integer("start", start, walls, batch),
        "max_steps": _integer("max_steps", max_steps, walls, batch),
        "n_objects": _integer("n_objects", k if n_objects is None else n_objects, walls, batch),
        "reward": _real("reward", reward, (*batch, k)),
        "p_terminate": _real("p_terminate", p_terminate, (*batch, k)),
        "p_respawn": _real("p_respawn", p_respawn, (*batch, k)),
    }
    types = objects if object_type is None else object_type
    level["object_type"] = _integer("object_type", types, walls, (*batch, k))
    if object_cell is not None:
        level["object_cell"] = _integer("object_cell", object_cell, walls, (*batch, k))
    if readable(*level.values()):
        _require_values(level, size)
    exists = objects < level["n_objects"].unsqueeze(-1)  # [*L, k]
    level["p_respawn"] = level["p_respawn"] * exists  # what doesn't exist can't appear
    level["table"] = _tables(level, exists, n_actions)
    return new(level, batch)


def action_count(level: TensorDict) -> int:
    """Number of actions in a level's world."""
    own = entries(level)
    return entries(own["table"])["landing"].shape[-1] // own["walls"].shape[-1]


def require_action_count(fn: str, n_actions: int) -> None:
    """Refuse a number of actions that no grid world has."""
    if not isinstance(n_actions, int) or isinstance(n_actions, bool) or n_actions not in MOVES:
        wanted = "5, 9 (diagonals as well) or 18 (each of these without and with collecting)"
        raise ValueError(f"{fn}: n_actions is {n_actions!r}, expected {wanted}")


def to_bits(flags: Tensor) -> Tensor:
    """Integer ``[*b]`` whose bit j is ``flags[..., j]``, of bool ``[*b, k]``."""
    return (flags.to(torch.int64) << torch.arange(flags.shape[-1], device=flags.device)).sum(-1)


def from_bits(bits: Tensor, k: int) -> Tensor:
    """Bool ``[*b, k]`` of the lowest k bits of integers ``[*b]``: the inverse of ``to_bits``."""
    return (bits.unsqueeze(-1) >> torch.arange(k, device=bits.device)) & 1 == 1


def align(value: Tensor, depth: int, ndim: int) -> Tensor:
    """``[*L, *rest]`` as ``[*L, *ones, *rest]``, with ndim axes before the rest.

    Args:
        value: an entry of a level.
        depth: number of axes of L.
        ndim: number of axes of L and W.

    Returns:
        It, to broadcast over workers.
    """
    if depth in (0, ndim):
        return value
    shape = value.shape
    return value.reshape(*shape[:depth], *[1] * (ndim - depth), *shape[depth:])


def readable(*tensors: Tensor) -> bool:
    """Whether values can be looked at: not while compiling, nor where there are none.

    That is so under a transform of torch.func, and on the meta device.
    """
    if torch.compiler.is_compiling():
        return False
    return not any([is_functorch_wrapped_tensor(tensor) or tensor.is_meta for tensor in tensors])


def _tables(level: dict[str, Any], exists: Tensor, n_actions: int) -> TensorDict:
    batch, cells, k = exists.shape[:-1], level["walls"].shape[-1], exists.shape[-1]
    subsets = from_bits(torch.arange(2**k, device=exists.device), k)  # [2^k, k]
    table = {
        "landing": _landing(level["walls"], level["side"], n_actions),
        "reward": (subsets * level["reward"].unsqueeze(-2)).sum(-1),
        "p_terminate": (subsets * level["p_terminate"].unsqueeze(-2)).sum(-1).clamp(max=1.0),
        "full": to_bits(exists),
    }
    cell = torch.arange(cells, device=exists.device)
    if "object_cell" in level:
        on_cell = level["object_cell"].unsqueeze(-2) == cell.unsqueeze(-1)  # [*L, S * S, k]
        table["objects_at"] = to_bits(on_cell & exists.unsqueeze(-2))
        table["start_index"] = level["start"] + cells * table["full"]
        return new(table, batch)
    free = ~level["walls"] & (cell < level["side"].unsqueeze(-1) ** 2)
    is_start = cell == level["start"].unsqueeze(-1)
    rank = torch.where(free, is_start.to(torch.int8), 2)
    table["free"] = rank.argsort(dim=-1, stable=True)
    table["n_free"] = free.sum(-1)
    return new(table, batch)


def _landing(walls: Tensor, side: Tensor, n_actions: int) -> Tensor:
    """Cell after each action from each cell, ``[*L, S * S * A]``; cells beyond the grid stay."""
    cell = torch.arange(walls.shape[-1], device=walls.device)
    side = side.unsqueeze(-1)  # [*L, 1]
    row, column, inside = cell // side, cell % side, cell < side * side
    above, below, before, after = row > 0, row < side - 1, column > 0, column < side - 1
    room = {-1: (above, before), 0: (inside, inside), 1: (below, after)}
    targets = []
    for down, right in MOVES[n_actions]:
        free = inside & room[down][0] & room[right][1]
        targets.append(torch.where(free, cell + down * side + right, cell))
    targets *= n_actions // len(targets)
    target = torch.stack(targets, -1).flatten(-2)  # [*L, S * S * A]
    blocked = walls.gather(-1, target)
    return torch.where(blocked, cell.repeat_interleave(n_actions), target)


def _sizes(walls: Tensor, reward: Tensor) -> tuple[int, int]:
    """Side of the largest grid and number of objects, after a look at what says so."""
    if not isinstance(walls, Tensor) or walls.dtype != torch.bool:
        raise TypeError(f"grid_level: walls is {_kind(walls)}, expected a bool tensor")
    cells = walls.shape[-1] if walls.ndim else 0
    size = round(cells**0.5)
    if not cells or size * size != cells:
        got = f"walls has shape {tuple(walls.shape)}"
        raise ValueError(f"grid_level: {got}, expected [*L, S * S] with S the largest side")
    shape = tuple(reward.shape) if isinstance(reward, Tensor) else ()
    if not shape or not 1 <= shape[-1] <= _MOST_OBJECTS:
        got = f"of shape {shape}" if isinstance(reward, Tensor) else f"a {_kind(reward)}"
        wanted = f"a tensor [*L, k] with k from 1 to {_MOST_OBJECTS} objects"
        raise ValueError(f"grid_level: reward is {got}, expected {wanted}")
    return size, shape[-1]


def _integer(name: str, value: int | Tensor, walls: Tensor, shape: Sequence[int]) -> Tensor:
    if isinstance(value, int):
        return torch.full(tuple(shape), value, dtype=torch.int64, device=walls.device)
    if not isinstance(value, Tensor) or value.is_floating_point() or value.dtype == torch.bool:
        raise TypeError(f"grid_level: {name} is {_kind(value)}, expected integers")
    return _expanded(name, value, shape).to(torch.int64)


def _real(name: str, value: Tensor, shape: Sequence[int]) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"grid_level: {name} is {_kind(value)}, expected a float tensor")
    return _expanded(name, value, shape)


def _expanded(name: str, value: Tensor, shape: Sequence[int]) -> Tensor:
    pairs = zip(value.shape[::-1], shape[::-1], strict=False)
    if value.ndim > len(shape) or any(own not in (1, wanted) for own, wanted in pairs):
        wanted = f"one that broadcasts to {tuple(shape)} (from walls and reward)"
        raise ValueError(f"grid_level: {name} has shape {tuple(value.shape)}, expected {wanted}")
    return value.expand(tuple(shape))


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _require_values(level: dict[str, Any], size: int) -> None:
    side, count, walls = level["side"], level["n_objects"], level["walls"]
    k, last = level["reward"].shape[-1], level["side"] ** 2 - 1
    _require_range("side", side, 1, size, "S, from walls")
    _require_range("max_steps", level["max_steps"], 1, 2**31, "2^31")
    _require_range("n_objects", count, 0, k, "k, from reward")
    _require_range("p_terminate", level["p_terminate"], 0, 1, "1")
    _require_range("p_respawn", level["p_respawn"], 0, 1, "1")
    _require_range("start", level["start"], 0, last, "side * side - 1")
    _require_free("start", level["start"].unsqueeze(-1), walls)
    if "object_cell" in level:
        exists = torch.arange(k, device=side.device) < count.unsqueeze(-1)
        cell = torch.where(exists, level["object_cell"], level["start"].unsqueeze(-1))
        _require_range("object_cell", cell, 0, last.unsqueeze(-1), "side * side - 1")
        _require_free("object_cell", cell, walls)


def _require_range(name: str, value: Tensor, low: int, high: int | Tensor, source: str) -> None:
    bad = ~((value >= low) & (value <= high))
    if bad.any():
        got = f"{name} holds {value[bad][0].item()}"
        raise ValueError(f"grid_level: {got}, expected values from {low} to {source}")


def _require_free(name: str, cell: Tensor, walls: Tensor) -> None:
    on_wall = walls.gather(-1, cell)
    if on_wall.any():
        got = f"{name} holds {cell[on_wall][0].item()}, which is a wall"
        raise ValueError(f"grid_level: {got}, expected free cells")
