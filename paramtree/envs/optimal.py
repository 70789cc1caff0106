"""The best that can be done in a world: in tabular grid worlds by dynamic programming.

A state of an episode is a cell c and the set s of objects that are there; with h steps to go, the
agent that lands on cell c takes the objects o(c, s) and has

    U_h(c, s) = r(o) + (1 - p(o)) E[V_{h-1}(c, s')],   V_h(c, s) = max_a U_h(land(c, a), s)

with V_0 = 0; where actions may leave objects alone, U_h is the larger of this and the same for
o = {}. See ``outcomes`` for the sets s' that follow. Chains have closed forms, in ``chain``.

Symbols: n levels, S side of the largest grid, k objects. Tables are ``[n, S * S, 2^k]`` float64.
"""

import torch
from tensordict import TensorDict
from torch import Tensor

from ..tree import require_tree
from .chain import best_return, is_chain
from .gridlevel import MOVES
from .outcomes import World, expected, largest, plain, require_tabular, worlds

_NEWTON_STEPS = 16  # where convergence can't be seen; more than were ever needed
_NUDGE = 1e-6  # of a price in units of the largest reward, for the slope of a piecewise linear f


def optimal_return(level: TensorDict, horizon: int) -> Tensor:
    """Best expected return of one episode, from its start with all objects there.

        max over policies of E[sum of r_t, t < min(horizon, max_steps, end of the episode)]

    Undiscounted; policies may depend on the time. Differentiable in a grid level's ``table``
    entries ``reward`` and ``p_terminate`` and its ``p_respawn``, and in a chain's ``reward``.

    Args:
        level: of a tabular grid world or a chain, of batch size ``[*L]``.
        horizon: steps after which nothing counts.

    Returns:
        float64 ``[*L]``.

    Raises:
        ValueError: the objects of the level are at random positions, or the horizon is negative.
        TypeError: the horizon isn't an int, or the level no tree.
    """
    _require("optimal_return", level, horizon)
    if is_chain(level):
        return best_return(level, horizon)[0]
    parts = []
    for world in worlds(level):
        steps = world.max_steps.clamp(max=horizon)
        free = torch.zeros_like(world.respawn[None, :, 0])
        parts.append(_best_returns(world, free, steps, largest(steps, horizon))[0])
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
        level: of a tabular grid world or a chain, of batch size ``[*L]``.
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
    if is_chain(level):
        best, length = best_return(level, horizon)
        return best / length
    parts = []
    for world in worlds(level):
        steps = world.max_steps if horizon is None else world.max_steps.clamp(max=horizon)
        rate, longest = torch.zeros_like(world.respawn[:, 0]), largest(steps, horizon)
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


def _best_returns(world: World, price: Tensor, steps: Tensor, longest: int) -> Tensor:
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
    moves = MOVES[len(world.landing)]
    may_leave = len(moves) < len(world.landing)
    for h in range(1, longest + 1):
        landed = torch.addcmul(gain, world.survival, expected(world, value))
        if may_leave:
            landed = torch.maximum(landed, value @ world.follow - price[..., None, None])
        landed = landed.flatten(1, 2)
        value = landed  # to stay
        for landing in world.landing[: len(moves) - 1].unbind(0):
            value = torch.maximum(value, landed.index_select(1, landing))
        value = value.reshape(gain.shape)
        best = torch.where(steps == h, value.flatten(2).gather(-1, start).squeeze(-1), best)
    return best


def _settled(step: Tensor, scale: Tensor) -> bool:
    """Whether a step of Newton's changed nothing, where that can be seen."""
    if torch.compiler.is_compiling():
        return False
    return bool((plain(step).abs() <= 1e-13 * plain(scale)).all())


def _require(fn: str, level: TensorDict, horizon: int, least: int = 0) -> None:
    require_tree(fn, "level", level)
    if not is_chain(level):
        require_tabular(fn, level)
    if not isinstance(horizon, int):
        raise TypeError(f"{fn}: horizon is {horizon!r}, expected an int")
    if horizon < least:
        raise ValueError(f"{fn}: horizon is {horizon}, expected at least {least}")
