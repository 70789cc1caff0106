"""What may happen in tabular grid worlds, as tables: what dynamic programming goes through.

A state of an episode is a cell c and the set s of objects that are there. The agent that lands on
cell c takes the objects o(c, s), and the sets that follow are a product over objects, s' = s'_1 x
... x s'_k: one that is there stays, unless it was taken; one that isn't reappears with its own
chance. On most cells there is nothing to take, and an expectation over s' is a product with one
matrix; on the few with objects it takes one axis of two at a time.

Symbols: n levels, S side of the largest grid, k objects, A actions. Tables are ``[n, S * S, 2^k]``
float64.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from ..tree import entries, require_tree
from .gridlevel import action_count, from_bits

_CHUNK = 2**16  # states worked on at once: their tables stay in a core's cache


class World(NamedTuple):
    """Tables of some levels, brought to one batch axis."""

    reward: Tensor  # [n, S * S, 2^k], for landing on a cell
    survival: Tensor  # [n, S * S, 2^k], chance that this doesn't end the episode
    respawn: Tensor  # [n, k]
    follow: Tensor  # [n, 2^k, 2^k], chance of the set s (a column) after s' (a row), nothing taken
    stop: Tensor  # [n, k], cells of the objects
    taken: Tensor  # [n, k, k] bool, objects on those cells
    landing: Tensor  # [A, n * S * S], rows of a table [n * S * S, 2^k]
    start: Tensor  # [n], place in a row of S * S * 2^k
    max_steps: Tensor  # [n]


def worlds(level: TensorDict) -> Iterator[World]:
    """The levels in chunks."""
    table, depth = entries(level["table"]), len(level.batch_size)
    cells, k = level["walls"].shape[-1], level["p_respawn"].shape[-1]
    n_actions = action_count(level)
    flat = [
        value.reshape(-1, *value.shape[depth:])
        for value in (
            table["objects_at"],
            table["reward"].to(torch.float64),
            table["p_terminate"].to(torch.float64),
            level["p_respawn"].to(torch.float64),
            level["object_cell"].clamp(0, cells - 1),  # of no matter where one doesn't exist
            table["landing"],
            level["start"] * 2**k + table["full"],
            level["max_steps"],
        )
    ]
    size = max(1, _CHUNK // (cells * 2**k))
    for part in zip(*[value.split(size) for value in flat], strict=True):
        objects_at, reward, end, respawn, stop, landing, start, max_steps = part
        n, subset = len(start), torch.arange(2**k, device=start.device)
        collected = (objects_at.unsqueeze(-1) & subset).flatten(1)  # [n, S * S * 2^k]
        shape = (n, cells, 2**k)
        first_row = cells * torch.arange(n, device=start.device).view(n, 1, 1)
        yield World(
            reward=reward.gather(-1, collected).reshape(shape),
            survival=1.0 - end.gather(-1, collected).reshape(shape),
            respawn=respawn,
            follow=_followers(respawn),
            stop=stop,
            taken=from_bits(objects_at.gather(-1, stop), k),
            landing=(landing.reshape(n, cells, n_actions) + first_row).flatten(0, 1).mT,
            start=start,
            max_steps=max_steps,
        )


def _followers(respawn: Tensor) -> Tensor:
    """Chances ``[n, s', s]`` of the set s' after s, nothing taken: a product over objects."""
    chances = torch.ones_like(respawn[:, :1, None])
    for chance in respawn.unbind(-1):
        stay, zero = torch.ones_like(chance), torch.zeros_like(chance)
        one = torch.stack((1.0 - chance, zero, chance, stay), -1).unflatten(-1, (2, 2))
        chances = torch.einsum("nab,ncd->nacbd", one, chances).flatten(3).flatten(1, 2)
    return chances


def expected(world: World, value: Tensor) -> Tensor:
    """E[V(c, s')] after landing on c with the set s, for V ``[m, n, S * S, 2^k]``."""
    rows = world.stop[..., None].expand(*value.shape[:2], -1, value.shape[-1])
    special = value.gather(2, rows)  # [m, n, k, 2^k], the cells where something may be taken
    for j, chance in enumerate(world.respawn.unbind(-1)):
        absent, there = special.unflatten(-1, (-1, 2, 2**j)).unbind(-2)
        there_next = torch.where(world.taken[..., j, None, None], absent, there)
        absent_next = torch.lerp(absent, there, chance[:, None, None, None])
        special = torch.stack((absent_next, there_next), -2).flatten(-3)
    return (value @ world.follow).scatter(2, rows, special)


def largest(steps: Tensor, bound: int | None) -> int:
    """Largest of some numbers of steps, or, in compiled code, which can't see it, a bound."""
    if torch.compiler.is_compiling() and bound is not None:
        return bound
    return int(plain(steps).max()) if steps.numel() else 0


def plain(tensor: Tensor) -> Tensor:
    """Values of all examples of a batched tensor, to see when a loop is over."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor.detach()


def require_tabular(fn: str, level: TensorDict) -> None:
    """Refuse a level whose states are too many to go through."""
    require_tree(fn, "level", level)
    if "object_cell" not in entries(level):
        raise ValueError(
            f"{fn}: the level has no object_cell, as a chain's or one with objects at random "
            "positions; expected a tabular grid world's, whose states are few enough to go through"
        )
