"""Distributions over grid-world levels, by name.

Two families. The worlds of the Learned Policy Gradient have a fixed map and fixed objects; a level
draws the cells of the agent's start and, unless they move, of the objects. GROOVE's distributions
draw the map and the objects as well. In both, start and objects are distinct free cells, uniformly,
whether they can be reached or not: walls may cut some off. All levels of a distribution have the
same shapes, padded to its largest grid.

Sources: Oh et al. (2020) and Jackson et al. (2023), as in `gridworld`. The authors' code of GROOVE
settles its own distributions, the gaps in the walls of ``long_dense``, that ``rand_sparse`` has no
walls, and all lifetimes. ``longer``, ``rand_small`` and ``rand_sparse`` have the sizes and objects
of the first paper, as its reproductions give them (7 x 9 cells and seven objects, and 5 x 7 cells),
where GROOVE has 9 x 9 and five, and 7 x 7. A map that isn't square is a square one with walls.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng
from ..rng.keys import check_key
from .base import Env
from .gridlevel import N_ACTIONS, grid_level
from .gridworld import grid_world, random_grid_world


class LevelDistribution(NamedTuple):
    """A distribution over levels, and what its worlds have in common.

    Attributes:
        name: its name.
        env: the environment that the levels are for.
        sample: ``sample(key) -> level``; n keys ``[n, 2]`` give n stacked levels, each the one that
            its key alone gives.
        n_states: number of different indices that an agent can see, ``S * S * 2^k``; None where it
            sees an image.
        observation_shape: shape of the image, ``(1 + n_types, S * S)``; ``()`` for an index.
        n_actions: number of actions.
        max_steps: steps of the longest episode on any level.
        lifetime: how many updates an agent lives, in GROOVE.
    """

    name: str
    env: Env
    sample: Callable[[Tensor], TensorDict]
    n_states: int | None
    observation_shape: tuple[int, ...]
    n_actions: int
    max_steps: int
    lifetime: int


class _World(NamedTuple):
    """A world of the Learned Policy Gradient."""

    map: tuple[str, ...]  # rows from top to bottom, # a wall
    objects: tuple[tuple[int, float, float, float], ...]  # type, reward, chances to end, reappear
    max_steps: int
    lifetime: int
    moving: bool = False  # objects at random positions


class _Family(NamedTuple):
    """A distribution of GROOVE; bounds are inclusive."""

    steps: tuple[int, int]
    objects: tuple[int, int]
    side: tuple[int, int]
    n_walls: int  # among the cells of the largest grid
    lifetime: int


_DENSE = ((0, 1.0, 0.0, 0.05), (0, 1.0, 0.0, 0.05), (1, -1.0, 0.5, 0.1), (2, -1.0, 0.0, 0.5))
_LONG = ((0, 1.0, 0.0, 0.01), (0, 1.0, 0.0, 0.01), (1, -1.0, 0.5, 1.0), (1, -1.0, 0.5, 1.0))
_LONGER = ((0, 1.0, 0.1, 0.01),) * 2 + ((1, -1.0, 0.8, 1.0),) * 5
_LONG_DENSE = ((0, 1.0, 0.0, 0.005),) * 4
_SMALL = ((0, 1.0, 0.0, 0.05), (0, 1.0, 0.0, 0.05), (1, -1.0, 0.5, 0.1), (1, -1.0, 0.5, 0.1))
_SMALL_SPARSE = ((0, 1.0, 1.0, 1.0), (1, -1.0, 1.0, 1.0), (1, -1.0, 1.0, 1.0))

_OPEN_11 = ("." * 11,) * 11
_LONGER_MAP = (
    "....#....",
    ".........",
    "....#....",
    "...###...",
    "....#....",
    ".........",
    "....#....",
)
_LONG_DENSE_MAP = (
    "...........",
    ".....#.....",
    ".....#.....",
    ".....#.....",
    "##.#####.##",
    ".....#.....",
    ".....#.....",
    "...........",
    ".....#.....",
    ".....#.....",
    ".....#.....",
)
_SMALL_MAP = (".......", "..#....", ".......", "....#..", ".......")

_WORLDS = {
    "dense": _World(_OPEN_11, _DENSE, 500, 2500),
    "sparse": _World(("." * 13,) * 13, ((0, 1.0, 1.0, 0.0), (1, -1.0, 1.0, 0.0)), 50, 2500),
    "long": _World(_OPEN_11, _LONG, 1000, 2500),
    "longer": _World(_LONGER_MAP, _LONGER, 2000, 2500),
    "long_dense": _World(_LONG_DENSE_MAP, _LONG_DENSE, 2000, 2500),
    "rand_dense": _World(_OPEN_11, _DENSE, 500, 25000, moving=True),
    "rand_long": _World(_OPEN_11, _LONG, 1000, 25000, moving=True),
    "rand_long_dense": _World(_LONG_DENSE_MAP, _LONG_DENSE, 2000, 25000, moving=True),
    "rand_small": _World(_SMALL_MAP, _SMALL, 500, 25000, moving=True),
    "rand_sparse": _World(("." * 7,) * 5, _SMALL_SPARSE, 50, 25000, moving=True),
    "rand_very_dense": _World(_OPEN_11, ((0, 1.0, 0.0, 1.0),), 2000, 25000, moving=True),
}
_FAMILIES = {
    "small": _Family((20, 100), (1, 3), (4, 6), 7, 250),
    "medium": _Family((100, 250), (2, 4), (6, 8), 10, 1000),
    "large": _Family((250, 750), (2, 5), (8, 10), 15, 2500),
    "all": _Family((20, 750), (1, 5), (4, 10), 15, 1000),
    "all_shortlife": _Family((20, 750), (1, 5), (4, 10), 15, 250),
}


def level_distribution(name: str) -> LevelDistribution:
    """Distribution over levels of that name.

    Tabular worlds of the Learned Policy Gradient: dense, sparse, long, longer, long_dense. With
    objects at random positions: rand_dense, rand_long, rand_long_dense, rand_small, rand_sparse,
    rand_very_dense. GROOVE's, tabular: small, medium, large, all, all_shortlife. Their episodes'
    lengths are log-uniform, rewards uniform in (-1, 1) with the first positive, the chance of
    ending log-uniform in (.01, 1), of reappearing in (.001, .1), numbers of objects and sides
    uniform; walls are drawn by index on the largest grid, so that a smaller one holds fewer.

    Args:
        name: one of these.

    Returns:
        The distribution.

    Raises:
        ValueError: there is none of that name.
    """
    if name in _WORLDS:
        return _of_world(name, _WORLDS[name])
    if name in _FAMILIES:
        return _of_family(name, _FAMILIES[name])
    known = [*_WORLDS, *_FAMILIES]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"level_distribution: name is {name!r}, expected one of {', '.join(known)}; the nearest is "
        f"{near!r}"
    )


def _of_world(name: str, world: _World) -> LevelDistribution:
    size, k = max(len(world.map), len(world.map[0])), len(world.objects)
    padded = [row.ljust(size, "#") for row in world.map] + ["#" * size] * (size - len(world.map))
    is_wall = [cell == "#" for row in padded for cell in row]
    types, *values = zip(*world.objects, strict=True)

    def sample(key: Tensor) -> TensorDict:
        check_key(f"{name}.sample", key)
        walls = torch.tensor(is_wall, device=key.device).expand(*key.shape[:-1], size * size)
        cell = _distinct(rng.fold_in(key, "cells"), ~walls, k + 1)
        reward, p_terminate, p_respawn = (torch.tensor(v, device=key.device) for v in values)
        return grid_level(
            walls=walls,
            side=size,
            start=cell[..., 0],
            max_steps=world.max_steps,
            reward=reward,
            p_terminate=p_terminate,
            p_respawn=p_respawn,
            object_cell=None if world.moving else cell[..., 1:],
            object_type=torch.tensor(types, device=key.device),
        )

    n_types = max(types) + 1
    return LevelDistribution(
        name=name,
        env=random_grid_world(n_types) if world.moving else grid_world(),
        sample=sample,
        n_states=None if world.moving else size * size * 2**k,
        observation_shape=(1 + n_types, size * size) if world.moving else (),
        n_actions=N_ACTIONS,
        max_steps=world.max_steps,
        lifetime=world.lifetime,
    )


def _of_family(name: str, family: _Family) -> LevelDistribution:
    size, k = family.side[1], family.objects[1]
    cells = size * size

    def sample(key: Tensor) -> TensorDict:
        check_key(f"{name}.sample", key)
        batch = key.shape[:-1]
        names = ("steps", "objects", "side", "walls", "cells", "reward", "terminate", "respawn")
        keys = {name: rng.fold_in(key, name) for name in names}
        side = _uniform_int(keys["side"], batch, family.side)
        every = torch.ones((*batch, cells), dtype=torch.bool, device=key.device)
        blocked = _distinct(keys["walls"], every, family.n_walls)
        walls = (~every).scatter(-1, blocked, True)
        index = torch.arange(cells, device=key.device)
        free = ~walls & (index < side.unsqueeze(-1) ** 2)
        cell = _distinct(keys["cells"], free, k + 1)
        count = _uniform_int(keys["objects"], batch, family.objects)
        reward = rng.uniform(keys["reward"], (*batch, k), -1.0, 1.0)
        first = torch.arange(k, device=key.device) == 0
        return grid_level(
            walls=walls,
            side=side,
            start=cell[..., 0],
            max_steps=_log_uniform(keys["steps"], batch, family.steps).round().to(torch.int64),
            reward=torch.where(first, reward.abs(), reward),
            p_terminate=_log_uniform(keys["terminate"], (*batch, k), (0.01, 1.0)),
            p_respawn=_log_uniform(keys["respawn"], (*batch, k), (0.001, 0.1)),
            object_cell=cell[..., 1:],
            n_objects=torch.minimum(count, free.sum(-1) - 1),  # a crowded map has room for fewer
        )

    return LevelDistribution(
        name=name,
        env=grid_world(),
        sample=sample,
        n_states=cells * 2**k,
        observation_shape=(),
        n_actions=N_ACTIONS,
        max_steps=family.steps[1],
        lifetime=family.lifetime,
    )


def _distinct(key: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Distinct allowed cells in random order, ``[*L, count]``; others once they run out."""
    rank = torch.where(allowed, rng.uniform(key, allowed.shape), 1.0)
    return rank.argsort(dim=-1, stable=True)[..., :count]


def _uniform_int(key: Tensor, shape: Sequence[int], bounds: tuple[int, int]) -> Tensor:
    return rng.randint(key, tuple(shape), bounds[0], bounds[1] + 1)


def _log_uniform(key: Tensor, shape: Sequence[int], bounds: tuple[float, float]) -> Tensor:
    low, high = (math.log(bound) for bound in bounds)
    return rng.uniform(key, tuple(shape), low, high).exp().clamp(*bounds)
