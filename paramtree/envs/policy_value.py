"""What a policy is worth in a tabular grid world, by dynamic programming.

In the words of ``outcomes``, with h steps to go until the time limit and the policy pi_h(a|c, s)

    U_h(c, s) = r(o) + gamma (1 - p(o)) E[V_{h-1}(c, s')]
    V_h(c, s) = sum_a pi_h(a|c, s) U_h(land(c, a), s)

with V_0 = 0. A policy is a table of logits that drift in time, which is what tabular agents have:

    pi(a|s, t) = softmax_a(logits[s, a] + t drift[a])

Symbols: L the levels' batch size, N what is asked for, S side of the largest grid, k objects,
A actions. One that leaves objects alone has U_h(c, s) = gamma E[V_{h-1}(c, s')], nothing taken.
"""

import torch
from tensordict import TensorDict
from torch import Tensor

from .gridlevel import MOVES, action_count, readable
from .outcomes import World, expected, largest, require_tabular, worlds


def policy_value(
    level: TensorDict,
    logits: Tensor,
    gamma: float | Tensor,
    index: Tensor,
    time: Tensor,
    *,
    drift: Tensor | None = None,
    horizon: int | None = None,
) -> Tensor:
    """Expected discounted return of the rest of an episode, from any state at any time.

        V(s, t) = E[sum of gamma^i r_{t+i}, i >= 0, until the episode ends or max_steps is reached]

    Differentiable in ``logits``, ``drift``, ``gamma`` and in the level's ``table`` entries
    ``reward`` and ``p_terminate`` and its ``p_respawn``; other steps' tables are kept for that, so
    not for long episodes. ``vmap(lambda g: policy_value(..., g, ...))(gammas)`` makes the policy's
    probabilities once for all discounts.

    Args:
        level: tabular level of batch size ``[*L]``.
        logits: float ``[*L, S * S * 2^k, A]``, of the policy at time 0; for an agent whose logits
            are ``nn.table``, ``weight[:-1]``.
        gamma: discount, 0-d, or ``[*L]``.
        index: int64 ``[*L, *N]``, states as they are observed.
        time: int64 ``[*L, *N]``, steps of the episode so far.
        drift: float ``[*L, A]``, what is added to the logits each step (``time_scale *
            weight[-1]``), or None for a policy that is the same at all times.
        horizon: steps after which an episode is over, where ``max_steps`` is no smaller; it must be
            given when compiling, since ``max_steps`` can't be read then.

    Returns:
        float64 ``[*L, *N]``; 0 where the time is up.

    Raises:
        ValueError: the objects of the level are at random positions, a shape doesn't fit, an index
            or a time is out of range, or the horizon is below 0, or missing.
        TypeError: a dtype doesn't fit, the horizon isn't an int, or the level no tree.
    """
    _require(level, logits, index, time, drift, horizon)
    batch, cells = level.batch_size, level["walls"].shape[-1]
    n, sets, n_actions = batch.numel(), logits.shape[-2] // cells, logits.shape[-1]
    table = logits.to(torch.float64).reshape(n, sets, cells, n_actions).permute(3, 0, 2, 1)
    slope = None if drift is None else drift.to(torch.float64).reshape(n, n_actions).mT
    discount = torch.as_tensor(gamma, dtype=torch.float64, device=logits.device).expand(batch)
    discount = discount.reshape(n, 1, 1)
    place = (index % cells * sets + index // cells).reshape(n, -1)  # in a row of S * S * 2^k
    moment, parts, first = time.reshape(n, -1), [], 0
    for world in worlds(level):
        rows = slice(first, first + len(world.start))
        first = rows.stop
        policy = table[:, rows].contiguous(), None if slope is None else slope[:, rows, None, None]
        parts.append(_values(world, policy, discount[rows], place[rows], moment[rows], horizon))
    return torch.cat(parts).reshape(index.shape)


def _values(
    world: World,
    policy: tuple[Tensor, Tensor | None],
    discount: Tensor,
    place: Tensor,
    time: Tensor,
    horizon: int | None,
) -> Tensor:
    """Values ``[n, N]`` of the states at ``place`` and ``time``.

    Args:
        world: tables of n levels.
        policy: logits ``[A, n, S * S, 2^k]`` and their drift ``[A, n, 1, 1]`` or None.
        discount: ``[n, 1, 1]``.
        place: int64 ``[n, N]``.
        time: int64 ``[n, N]``.
        horizon: as given.
    """
    logits, drift = policy
    steps = world.max_steps if horizon is None else world.max_steps.clamp(max=horizon)
    left, survival = steps.unsqueeze(-1) - time, discount * world.survival
    value, found = torch.zeros_like(survival), torch.zeros_like(left, dtype=torch.float64)
    chances, n_actions = logits.softmax(0).flatten(1, 2), len(logits)
    n_careful = n_actions - len(MOVES[n_actions])  # the first ones collect nothing
    for h in range(1, largest(steps, horizon) + 1):
        landed = torch.addcmul(world.reward, survival, expected(world, value[None])[0])
        after = [landed.flatten(0, 1)] * n_actions  # [n * S * S, 2^k] each
        if n_careful:
            alone = (discount * (value @ world.follow)).flatten(0, 1)
            after[:n_careful] = [alone] * n_careful
        if drift is not None:  # a time before the first has no say: no h is that large
            chances = (logits + (steps - h).view(-1, 1, 1) * drift).softmax(0).flatten(1, 2)
        value = chances[-1] * after[-1]  # to stay
        for chance, landing, there in zip(
            chances[:-1], world.landing[:-1], after[:-1], strict=True
        ):
            value = torch.addcmul(value, chance, there.index_select(0, landing))
        value = value.reshape(survival.shape)
        found = torch.where(left == h, value.flatten(1).gather(-1, place), found)
    return found


def _require(
    level: TensorDict,
    logits: Tensor,
    index: Tensor,
    time: Tensor,
    drift: Tensor | None,
    horizon: int | None,
) -> None:
    require_tabular("policy_value", level)
    batch, n_states = tuple(level.batch_size), level["walls"].shape[-1]
    n_states, n_actions = n_states * 2 ** level["p_respawn"].shape[-1], action_count(level)
    shapes: dict[str, tuple[Tensor, tuple[int, ...]]]
    shapes = {"logits": (logits, (*batch, n_states, n_actions))}
    if drift is not None:
        shapes["drift"] = (drift, (*batch, n_actions))
    for name, (value, wanted) in shapes.items():
        if not value.is_floating_point():
            raise TypeError(f"policy_value: {name} is {value.dtype}, expected floats")
        if value.shape != wanted:
            got = f"{name} has shape {tuple(value.shape)}"
            raise ValueError(f"policy_value: {got}, expected {wanted} (from the level)")
    for name, value in {"index": index, "time": time}.items():
        if value.dtype != torch.int64:
            raise TypeError(f"policy_value: {name} is {value.dtype}, expected torch.int64")
    if index.shape != time.shape or index.shape[: len(batch)] != batch:
        got = f"index has shape {tuple(index.shape)} and time {tuple(time.shape)}"
        raise ValueError(f"policy_value: {got}, expected both to be [*L, *N] with L = {batch}")
    if horizon is None and torch.compiler.is_compiling():
        raise ValueError("policy_value: horizon is None, expected an int when compiling")
    if horizon is not None and not isinstance(horizon, int):
        raise TypeError(f"policy_value: horizon is {horizon!r}, expected an int or None")
    if horizon is not None and horizon < 0:
        raise ValueError(f"policy_value: horizon is {horizon}, expected at least 0")
    if readable(index, time) and index.numel():
        if index.min() < 0 or index.max() >= n_states:
            bad = int(index.min() if index.min() < 0 else index.max())
            raise ValueError(f"policy_value: index holds {bad}, expected 0 to {n_states - 1}")
        if time.min() < 0:
            raise ValueError(f"policy_value: time holds {int(time.min())}, expected at least 0")
