"""The best that can be done in a tabular grid world, by dynamic programming.

A state of an episode is a cell c and the set s of objects that are there; with h steps to go, the
agent that lands on cell c takes the objects o(c, s) and has

    U_h(c, s) = r(o) + (1 - p(o)) E[V_{h-1}(c, s')],   V_h(c, s) = max_a U_h(land(c, a), s)

with V_0 = 0. The sets that follow are a product over objects, s' = s'_1 x ... x s'_k: one that is
there stays, unless it was taken; one that isn't reappears with its own chance. On most cells there
is nothing to take, and the expectation is a product with one matrix; on the few with objects it
takes one axis of two at a time.

Symbols: n levels, S side of the largest grid, k objects. Tables are ``[n, S * S, 2^k]`` float64.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from ..tree import entries, require_tree
from .gridlevel import N_ACTIONS, from_bits

_CHUNK = 2**16  # states worked on at once: their tables stay in a core's cache
_NEWTON_STEPS = 16  # where convergence can't be seen; more than were ever needed
_NUDGE = 1e-6  # of a price in units of the largest reward, for the slope of a piecewise linear f


def optimal_return(level: TensorDict, horizon: int) -> Tensor:
    """Best expected return of one episode, from its start with all objects there.

        max over policies of E[sum of r_t, t < min(horizon, max_steps, end of the episode)]

    Undiscounted; policies may depend on the time. Differentiable in the level's ``table`` entries
    ``reward`` and ``p_terminate``, and in ``p_respawn``.

    Args:
        level: tabular level of batch size ``[*L]``.
        horizon: steps after which nothing counts.

    Returns:
        float64 ``[*L]``.

    Raises:
        ValueError: the objects of the level are at random positions, or the horizon is negative.
        TypeError: the horizon isn't an int, or the level no tree.
    """
    _require("optimal_return", level, horizon)
    parts = []
    for world in _worlds(level):
        steps = world.max_steps.clamp(max=horizon)
        free = torch.zeros_like(world.respawn[None, :, 0])
        parts.append(_best_returns(world, free, steps, _largest(steps, horizon))[0])
    return torch.cat(parts).reshape(level.batch_size)


def optimal_reward_rate(level: TensorDict, horizon: int | None = None) -> Tensor:
    """Best reward per step of the stream of episodes, one after the other on the same level.

    Each episode ends where the world ends it, or after ``max_steps`` steps, and costs its steps.
    The rate is the ρ at which f(ρ), the best return of an episode with rewards r - ρ, is zero; with
    R the return and N the length of an episode it is the largest E[R] / E[N]. f is convex and
    piecewise linear, its slope -E[N] under the policy that is best for ρ, and Newton's steps

        ρ' = ρ + f(ρ) / E[N]

    end after finitely many, seldom more than six (Dinkelbach's method). Differentiable as
    `optimal_return` is.

    Args:
        level: tabular level of batch size ``[*L]``.
        horizon: steps after which an episode is over, where ``max_steps`` is no smaller; it must be
            given when compiling, since ``max_steps`` can't be read then.

    Returns:
        float64 ``[*L]``.

    Raises:
        ValueError: the objects of the level are at random positions, the horizon is below 1, or it
            is missing.
        TypeError: the horizon isn't an int, or the level no tree.
    """
    _require("optimal_reward_rate", level, 1 if horizon is None else horizon, least=1)
    if horizon is None and torch.compiler.is_compiling():
        raise ValueError("optimal_reward_rate: horizon is None, expected an int when compiling")
    parts = []
    for world in _worlds(level):
        steps = world.max_steps if horizon is None else world.max_steps.clamp(max=horizon)
        rate, longest = torch.zeros_like(world.respawn[:, 0]), _largest(steps, horizon)
        scale = world.reward.detach().abs().flatten(1).amax(1).clamp(min=1e-30)
        for _ in range(_NEWTON_STEPS):
            price = torch.stack((rate, rate + _NUDGE * scale)).detach()
            best, nudged = _best_returns(world, price, steps, longest)
            step = best * _NUDGE * scale / (best - nudged)
            rate = price[0] + step
            if _settled(step, scale):
                break
        parts.append(rate)
    return torch.cat(parts).reshape(level.batch_size)


class _World(NamedTuple):
    """Tables of some levels, brought to one batch axis."""

    reward: Tensor  # [n, S * S, 2^k], for landing on a cell
    survival: Tensor  # [n, S * S, 2^k], chance that this doesn't end the episode
    respawn: Tensor  # [n, k]
    follow: Tensor  # [n, 2^k, 2^k], chance of the set s (a column) after s' (a row), nothing taken
    stop: Tensor  # [n, k], cells of the objects
    taken: Tensor  # [n, k, k] bool, objects on those cells
    landing: Tensor  # [5, n * S * S], rows of a table [n * S * S, 2^k]
    start: Tensor  # [n], place in a row of S * S * 2^k
    max_steps: Tensor  # [n]


def _worlds(level: TensorDict) -> Iterator[_World]:
    """The levels in chunks."""
    table, depth = entries(level["table"]), len(level.batch_size)
    cells, k = level["walls"].shape[-1], level["p_respawn"].shape[-1]
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
        yield _World(
            reward=reward.gather(-1, collected).reshape(shape),
            survival=1.0 - end.gather(-1, collected).reshape(shape),
            respawn=respawn,
            follow=_followers(respawn),
            stop=stop,
            taken=from_bits(objects_at.gather(-1, stop), k),
            landing=(landing.reshape(n, cells, N_ACTIONS) + first_row).flatten(0, 1).mT,
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


def _best_returns(world: _World, price: Tensor, steps: Tensor, longest: int) -> Tensor:
    """Best expected returns of episodes of ``steps`` steps, a price taken off each reward.

    Args:
        world: tables of n levels.
        price: ``[m, n]``.
        steps: int64 ``[n]``.
        longest: their maximum, or more.

    Returns:
        ``[m, n]``.
    """
    gain = world.reward - price[..., None, None]  # [m, n, S * S, 2^k]
    value, best = torch.zeros_like(gain), torch.zeros_like(price)
    start = world.start.expand(price.shape).unsqueeze(-1)
    for h in range(1, longest + 1):
        landed = torch.addcmul(gain, world.survival, _expected(world, value)).flatten(1, 2)
        value = landed  # to stay
        for landing in world.landing[:-1].unbind(0):
            value = torch.maximum(value, landed.index_select(1, landing))
        value = value.reshape(gain.shape)
        best = torch.where(steps == h, value.flatten(2).gather(-1, start).squeeze(-1), best)
    return best


def _expected(world: _World, value: Tensor) -> Tensor:
    """E[V(c, s')] after landing on c with the set s, for V ``[m, n, S * S, 2^k]``."""
    rows = world.stop[..., None].expand(*value.shape[:2], -1, value.shape[-1])
    special = value.gather(2, rows)  # [m, n, k, 2^k], the cells where something may be taken
    for j, chance in enumerate(world.respawn.unbind(-1)):
        absent, there = special.unflatten(-1, (-1, 2, 2**j)).unbind(-2)
        there_next = torch.where(world.taken[..., j, None, None], absent, there)
        absent_next = torch.lerp(absent, there, chance[:, None, None, None])
        special = torch.stack((absent_next, there_next), -2).flatten(-3)
    return (value @ world.follow).scatter(2, rows, special)


def _settled(step: Tensor, scale: Tensor) -> bool:
    """Whether a step of Newton's changed nothing, where that can be seen."""
    if torch.compiler.is_compiling():
        return False
    return bool((_plain(step).abs() <= 1e-13 * _plain(scale)).all())


def _largest(steps: Tensor, bound: int | None) -> int:
    if torch.compiler.is_compiling() and bound is not None:
        return bound
    return int(_plain(steps).max()) if steps.numel() else 0


def _plain(tensor: Tensor) -> Tensor:
    """Values of all examples of a batched tensor, to see when a loop is over."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor.detach()


def _require(fn: str, level: TensorDict, horizon: int, least: int = 0) -> None:
    require_tree(fn, "level", level)
    if not isinstance(horizon, int):
        raise TypeError(f"{fn}: horizon is {horizon!r}, expected an int")
    if horizon < least:
        raise ValueError(f"{fn}: horizon is {horizon}, expected at least {least}")
    if "object_cell" not in entries(level):
        raise ValueError(
            f"{fn}: the level has no object_cell, so its objects are at random positions; expected "
            "a tabular level, whose states are few enough to go through"
        )
