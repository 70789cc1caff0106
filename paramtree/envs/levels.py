"""Distributions over levels, by name.

Four families. The worlds of the Learned Policy Gradient have a fixed map and fixed objects; a level
draws the cells of the agent's start and, unless they move, of the objects. GROOVE's distributions
draw the map and the objects as well, but for its mazes, whose maps are fixed. In all of these,
start and objects are distinct free cells, uniformly, whether they can be reached or not: walls may
cut some off. Delayed chains draw their length and which action is right. All levels of a
distribution have the same shapes, padded to its largest.

Sources: Oh et al. (2020) and Jackson et al. (2023), as in `gridworld`. The authors' code of GROOVE
settles its own distributions, the gaps in the walls of ``long_dense``, that ``rand_sparse`` has no
walls, and all lifetimes but those of chains, which live as long as tabular worlds here. ``longer``,
``rand_small`` and ``rand_sparse`` have the sizes and objects of the first paper, as its
reproductions give them (7 x 9 cells and seven objects, and 5 x 7 cells), where GROOVE has 9 x 9 and
five, and 7 x 7. A map that isn't square is a square one with walls.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng
from ..rng.keys import check_key
from .base import Env
from .chain import chain_level, delayed_chain
from .gridlevel import N_ACTIONS, grid_level, require_action_count
from .gridworld import grid_world, random_grid_world
from .mazes import MAZES


class LevelDistribution(NamedTuple):
    """A distribution over levels, and what its worlds have in common.

    Attributes:
        name: its name.
        env: the environment that the levels are for.
        sample: ``sample(key) -> level``; n keys ``[n, 2]`` give n stacked levels, each the one that
            its key alone gives.
        n_states: number of different indices that an agent can see, ``S * S * 2^k`` in a grid
            world, two for each moment in a chain; None where it sees an image.
        observation_shape: shape of the image, ``(1 + n_types, S * S)`` in a grid world, ``(bits,)``
            in a chain; ``()`` for an index.
        n_actions: number of actions.
        max_steps: steps of the longest episode on any level.
        lifetime: how many updates an agent lives, in GROOVE; two numbers bound a log-uniform draw.
    """

    name: str
    env: Env
    sample: Callable[[Tensor], TensorDict]
    n_states: int | None
    observation_shape: torch.Size
    n_actions: int
    max_steps: int
    lifetime: int | tuple[int, int]


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
    walls: int | tuple[tuple[str, ...], ...]  # how many of the largest grid's cells, or the maps
    lifetime: int | tuple[int, int]
    reward: tuple[float, float] = (-1.0, 1.0)  # the first one's sign is dropped
    moving: bool = False  # objects at random positions


class _Chain(NamedTuple):
    """A distribution over delayed chains; bounds are inclusive."""

    length: tuple[int, int]
    noise: float = 0.0
    n_distractors: int = 0
    lifetime: int = 2500


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
    "rand_tiny": _World(("...",) * 3, ((0, 1.0, 0.0, 1.0),) * 2, 50, 250, moving=True),
}
_MIXTURES = {"tabular": ("dense", "sparse", "long", "longer", "long_dense")}
_ALL = _Family((20, 750), (1, 5), (4, 10), 15, 1000)
_MAZES = _Family((25, 50), (3, 3), (13, 13), tuple(MAZES.values()), 2500, reward=(0.0, 1.0))
_FAMILIES = {
    "small": _Family((20, 100), (1, 3), (4, 6), 7, 250),
    "medium": _Family((100, 250), (2, 4), (6, 8), 10, 1000),
    "large": _Family((250, 750), (2, 5), (8, 10), 15, 2500),
    "all": _ALL,
    "all_shortlife": _ALL._replace(lifetime=250),
    "all_randlife": _ALL._replace(lifetime=(50, 250)),
    "all_vrandlife": _ALL._replace(lifetime=(10, 250)),
    "rand_all": _ALL._replace(lifetime=25000, moving=True),
    "mazes": _MAZES,
    **{name: _MAZES._replace(walls=(rows,)) for name, rows in MAZES.items()},
}
_CHAINS = {
    "chain_short": _Chain((5, 30)),
    "chain_short_noisy": _Chain((5, 30), noise=1.0),
    "chain_long": _Chain((5, 50)),
    "chain_long_noisy": _Chain((5, 50), noise=1.0),
    "chain_distraction": _Chain((5, 30), n_distractors=20),
}


def level_distribution(
    name: str, *, n_actions: int | None = None, right: str = "level"
) -> LevelDistribution:
    """Distribution over levels of that name.

    Tabular worlds of the Learned Policy Gradient: dense, sparse, long, longer, long_dense; tabular
    is one of these five, uniformly. With objects at random positions: rand_dense, rand_long,
    rand_long_dense, rand_small, rand_sparse, rand_very_dense, and GROOVE's rand_tiny.

    GROOVE's, tabular: small, medium, large, all, and the same levels for lives of other lengths,
    all_shortlife, all_randlife, all_vrandlife; rand_all has objects at random positions. Their
    episodes' lengths are log-uniform, rewards uniform in (-1, 1) with the first positive, the
    chance of ending log-uniform in (.01, 1), of reappearing in (.001, .1), numbers of objects and
    sides uniform; walls are drawn by index on the largest grid, so that a smaller one holds fewer.
    In its mazes the walls are fixed, and three objects have rewards uniform in (0, 1):
    sixteen_rooms, sixteen_rooms_2, labyrinth, labyrinth_flipped, labyrinth_2, standard_maze,
    standard_maze_2, standard_maze_3, small_corridor; mazes is one of these nine, uniformly.

    Delayed chains of the Learned Policy Gradient, of uniform length: chain_short (5 to 30 steps),
    chain_long (5 to 50), chain_short_noisy and chain_long_noisy with rewards of 1 or -1 on the way,
    and chain_distraction (5 to 30), which shows 20 random bits beside two useful ones.

    Args:
        name: one of these.
        n_actions: a grid world's number of actions, 5, 9 or 18, as in `grid_level`; when None, 5. A
            chain has 2.
        right: whether a chain's right action is drawn for each "level", as one that can only be
            found out in a lifetime, or for each "episode", as one that is shown when it starts.

    Returns:
        The distribution.

    Raises:
        ValueError: there is none of that name, or it has no such actions.
    """
    if right not in ("level", "episode"):
        raise ValueError(f"level_distribution: right is {right!r}, expected 'level' or 'episode'")
    if name in _CHAINS:
        if n_actions not in (None, 2):
            got = f"n_actions is {n_actions!r} and name {name!r}"
            raise ValueError(f"level_distribution: {got}, expected None: chains have two actions")
        return _of_chain(name, _CHAINS[name], right)
    if name not in _WORLDS and name not in _MIXTURES and name not in _FAMILIES:
        raise ValueError(f"level_distribution: {_unknown(name)}")
    if right != "level":
        got = f"right is {right!r} and name {name!r}"
        raise ValueError(f"level_distribution: {got}, expected 'level': only chains have a choice")
    n_actions = N_ACTIONS if n_actions is None else n_actions
    require_action_count("level_distribution", n_actions)
    if name in _FAMILIES:
        return _of_family(name, _FAMILIES[name], n_actions)
    return _of_worlds(name, [_WORLDS[part] for part in _MIXTURES.get(name, (name,))], n_actions)


def _unknown(name: str) -> str:
    known = [*_WORLDS, *_MIXTURES, *_FAMILIES, *_CHAINS]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
    return f"name is {name!r}, expected one of {', '.join(known)}; the nearest is {near!r}"


def _of_worlds(name: str, worlds: Sequence[_World], n_actions: int) -> LevelDistribution:
    """One of several worlds, all with objects that move or all without, or the only one."""
    sides = [max(len(world.map), len(world.map[0])) for world in worlds]
    size, k = max(sides), max(len(world.objects) for world in worlds)
    is_wall = [_cells(world.map, side, size) for world, side in zip(worlds, sides, strict=True)]
    nothing = (0, 0.0, 0.0, 0.0)
    objects = [(*world.objects, *[nothing] * (k - len(world.objects))) for world in worlds]
    types, *values = ([[row[i] for row in rows] for rows in objects] for i in range(4))
    moving = worlds[0].moving

    def sample(key: Tensor) -> TensorDict:
        check_key(f"{name}.sample", key)
        which = torch.zeros(key.shape[:-1], dtype=torch.int64, device=key.device)
        if len(worlds) > 1:
            which = rng.randint(rng.fold_in(key, "world"), which.shape, 0, len(worlds))

        def own(rows: Any) -> Tensor:
            return _rows(torch.tensor(rows, device=key.device), which)

        walls = own(is_wall)
        cell = _distinct(rng.fold_in(key, "cells"), ~walls, k + 1)
        reward, p_terminate, p_respawn = map(own, values)
        return grid_level(
            walls=walls,
            side=own(sides),
            start=cell[..., 0],
            max_steps=own([world.max_steps for world in worlds]),
            reward=reward,
            p_terminate=p_terminate,
            p_respawn=p_respawn,
            object_cell=None if moving else cell[..., 1:],
            object_type=own(types),
            n_objects=own([len(world.objects) for world in worlds]),
            n_actions=n_actions,
        )

    longest = max(world.max_steps for world in worlds)
    n_types = 1 + max(row[0] for world in worlds for row in world.objects) if moving else None
    return _of_grid(name, sample, size, k, n_types, n_actions, longest, worlds[0].lifetime)


def _of_family(name: str, family: _Family, n_actions: int) -> LevelDistribution:
    size, k, drawn = family.side[1], family.objects[1], family.walls
    cells = size * size

    def sample(key: Tensor) -> TensorDict:
        check_key(f"{name}.sample", key)
        batch = key.shape[:-1]
        names = ("steps", "objects", "side", "walls", "cells", "reward", "terminate", "respawn")
        keys = {name: rng.fold_in(key, name) for name in names}
        side = _uniform_int(keys["side"], batch, family.side)
        if isinstance(drawn, int):
            every = torch.ones((*batch, cells), dtype=torch.bool, device=key.device)
            walls = (~every).scatter(-1, _distinct(keys["walls"], every, drawn), True)
        else:
            maps = torch.tensor([_cells(rows, size, size) for rows in drawn], device=key.device)
            walls = _rows(maps, rng.randint(keys["walls"], batch, 0, len(drawn)))
        index = torch.arange(cells, device=key.device)
        free = ~walls & (index < side.unsqueeze(-1) ** 2)
        cell = _distinct(keys["cells"], free, k + 1)
        count = _uniform_int(keys["objects"], batch, family.objects)
        reward = rng.uniform(keys["reward"], (*batch, k), *family.reward)
        first = torch.arange(k, device=key.device) == 0
        return grid_level(
            walls=walls,
            side=side,
            start=cell[..., 0],
            max_steps=_log_uniform(keys["steps"], batch, family.steps).round().to(torch.int64),
            reward=torch.where(first, reward.abs(), reward),
            p_terminate=_log_uniform(keys["terminate"], (*batch, k), (0.01, 1.0)),
            p_respawn=_log_uniform(keys["respawn"], (*batch, k), (0.001, 0.1)),
            object_cell=None if family.moving else cell[..., 1:],
            n_objects=torch.minimum(count, free.sum(-1) - 1),  # a crowded map has room for fewer
            n_actions=n_actions,
        )

    n_types = k if family.moving else None
    return _of_grid(name, sample, size, k, n_types, n_actions, family.steps[1], family.lifetime)


def _of_grid(
    name: str,
    sample: Callable[[Tensor], TensorDict],
    size: int,
    k: int,
    n_types: int | None,
    n_actions: int,
    max_steps: int,
    lifetime: int | tuple[int, int],
) -> LevelDistribution:
    """Grid worlds, tabular where they have no types of objects."""
    return LevelDistribution(
        name=name,
        env=grid_world() if n_types is None else random_grid_world(n_types),
        sample=sample,
        n_states=size * size * 2**k if n_types is None else None,
        observation_shape=torch.Size(() if n_types is None else (1 + n_types, size * size)),
        n_actions=n_actions,
        max_steps=max_steps,
        lifetime=lifetime,
    )


def _of_chain(name: str, chain: _Chain, right: str) -> LevelDistribution:
    def sample(key: Tensor) -> TensorDict:
        check_key(f"{name}.sample", key)
        batch, shown = key.shape[:-1], torch.tensor(-1, device=key.device)
        one = rng.randint(rng.fold_in(key, "right"), batch, 0, 2)
        return chain_level(
            length=_uniform_int(rng.fold_in(key, "length"), batch, chain.length),
            right=one if right == "level" else shown,
            noise=chain.noise,
        )

    n, longest = chain.n_distractors, chain.length[1]
    return LevelDistribution(
        name=name,
        env=delayed_chain(n),
        sample=sample,
        n_states=None if n else 2 * (longest + 1),
        observation_shape=torch.Size((2 + n,) if n else ()),
        n_actions=2,
        max_steps=longest,
        lifetime=chain.lifetime,
    )


def _cells(rows: Sequence[str], side: int, size: int) -> list[bool]:
    """Whether each cell is a wall, on a map that is brought to ``side``, padded to ``size``."""
    padded = [row.ljust(side, "#") for row in rows] + ["#" * side] * (side - len(rows))
    return [cell == "#" for row in padded for cell in row] + [True] * (size**2 - side**2)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]``, which in compiled code can't be said of an index without axes."""
    rows = table.index_select(0, index.flatten())
    return rows.reshape((*index.shape, *table.shape[1:]))


def _distinct(key: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Distinct allowed cells in random order, ``[*L, count]``; others once they run out."""
    rank = torch.where(allowed, rng.uniform(key, allowed.shape), 1.0)
    return rank.argsort(dim=-1, stable=True)[..., :count]


def _uniform_int(key: Tensor, shape: Sequence[int], bounds: tuple[int, int]) -> Tensor:
    return rng.randint(key, tuple(shape), bounds[0], bounds[1] + 1)


def _log_uniform(key: Tensor, shape: Sequence[int], bounds: tuple[float, float]) -> Tensor:
    low, high = (math.log(bound) for bound in bounds)
    return rng.uniform(key, tuple(shape), low, high).exp().clamp(*bounds)
