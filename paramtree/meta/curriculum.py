"""Curricula: which level an agent is born on.

A curriculum is asked for levels when lives end. The plainest draws new ones. Level replay remembers
what it gave out and how the agents fared there, and gives the levels with the most to learn from
again, each to one agent at a time.

A level is the key that it is sampled from, so that a memory of thousands takes up next to nothing.
The state of level replay is a tree of batch size []:

    key      [size, 2] keys of the levels, ``vmap(sample)(state["key"])`` is all of them
    score    [size] what the last life on each was worth
    new      [size] bool, whether no life on it has been scored
    active   [size] bool, whether an agent lives there
    stamp    [size] int64, the clock when it was last scored
    slot     [n] int64, where the level of each agent is
    clock    int64, number of lives that were scored
"""

import difflib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ..autodiff import vmap
from ..rng.philox import is_plain
from ._check import require_count, require_real

Sample = Callable[[Tensor], TensorDict]
Score = Callable[[TensorDict, Tensor], Tensor]  # (agents [n], keys [n, 2]) -> [n]

_LEAST = 1e-300  # so that no level that may be replayed is out of the race


class Curriculum(NamedTuple):
    """A pair of pure functions that choose levels, their state one tree.

    Attributes:
        init: ``init(key, n) -> (state, levels [n])``, for the first agents.
        renew: ``renew(state, agents [n], over [n], key) -> (state, levels [n])``, where over is
            bool and tells whose lives are over; the levels matter only there.
    """

    init: Callable[[Tensor, int], tuple[TensorDict, TensorDict]]
    renew: Callable[[TensorDict, TensorDict, Tensor, Tensor], tuple[TensorDict, TensorDict]]


def uniform_curriculum(sample: Sample) -> Curriculum:
    """New levels for all agents, whatever became of those before: domain randomization.

    Args:
        sample: gives a level of a key ``[2]``.

    Returns:
        The curriculum; its state is empty.
    """

    def init(key: Tensor, n: int) -> tuple[TensorDict, TensorDict]:
        require_count("uniform_curriculum.init", "n", n)
        return tree.new({}), _sampled(sample, rng.split(key, n))

    def renew(
        state: TensorDict, agents: TensorDict, over: Tensor, key: Tensor
    ) -> tuple[TensorDict, TensorDict]:
        _require_over("uniform_curriculum.renew", agents, over)
        if is_plain(over) and not bool(over.any()):
            return state, agents["level"]
        return state, _sampled(sample, rng.split(key, agents.batch_size[0]))

    return Curriculum(init, renew)


def prioritized_level_replay(
    sample: Sample,
    score: Score | None,
    *,
    size: int = 4000,
    replay: float = 0.5,
    prioritization: Literal["rank", "proportional"] = "rank",
    temperature: float = 1.0,
    staleness: float = 0.1,
) -> Curriculum:
    """Levels that were worth most come again; others are new.

    At the end of a life its level gets a score. The agent's next level is with the chance
    ``replay`` one of the scored levels where nobody lives, drawn as ``replay_chances`` says and
    without replacement among agents; or else a new one, in place of the lowest score among those
    where nobody lives. No level is replayed before there are n to choose from. A score that isn't
    finite doesn't count: the level is replaced first.

    The defaults are GROOVE's, but for staleness, which is PLR's and which GROOVE lacks. GROOVE's
    "rank" doesn't draw: it takes the levels of the highest scores, as a ``temperature`` of 0.01
    does here without staleness (far below, chances are too small for numbers, and all but the first
    are drawn uniformly); and it replays levels of its first buffer that no agent has seen, with the
    score 0.

    Eagerly the scores are made for those alone whose lives are over; in compiled code and under
    transforms for all.

    Args:
        sample: gives a level of a key ``[2]``; the same one each time.
        score: ``score(agents [n], keys [n, 2]) -> [n]``, see ``level_scores``; or None for a frozen
            buffer, whose levels never change and are drawn uniformly.
        size: how many levels are remembered; at least twice the number of agents.
        replay: chance of an old level.
        prioritization: whether a level's chance goes by the rank of its score or by the score.
        temperature: of the chances, above 0.
        staleness: share of the chances that goes by how long ago a level was scored.

    Returns:
        The curriculum; its ``init`` refuses more agents than half of ``size``.

    Raises:
        ValueError: a number is out of range, or the prioritization another.
        TypeError: ``size`` isn't an int, or another number is none.

    Source: Jiang et al. (2021), "Prioritized level replay", sections 3.1 and 3.2; Jackson et al.
    (2023), section 3.
    """
    fn = "prioritized_level_replay"
    require_count(fn, "size", size)
    _require_shares(fn, replay=replay, staleness=staleness)
    _require_order(fn, prioritization, temperature)

    def init(key: Tensor, n: int) -> tuple[TensorDict, TensorDict]:
        require_count(f"{fn}.init", "n", n)
        if size < 2 * n:
            raise ValueError(f"{fn}.init: size is {size}, expected at least {2 * n} (twice n)")
        keys = rng.split(key, size)
        slot = torch.arange(n, device=key.device)
        zeros = torch.zeros(size, dtype=torch.int64, device=key.device)
        state = {
            "key": keys,
            "score": zeros.float(),
            "new": zeros == 0,
            "active": torch.arange(size, device=key.device) < n,
            "stamp": zeros,
            "slot": slot,
            "clock": zeros[0].clone(),
        }
        return tree.new(state), _sampled(sample, keys[:n])

    def renew(
        state: TensorDict, agents: TensorDict, over: Tensor, key: Tensor
    ) -> tuple[TensorDict, TensorDict]:
        _require_over(f"{fn}.renew", agents, over)
        if is_plain(over) and not bool(over.any()):
            return state, agents["level"]
        with torch.no_grad():
            keys = {name: rng.fold_in(key, name) for name in ("score", "whether", "which", "level")}
            own, n = tree.entries(state), over.shape[0]
            own |= _freed(own, over, _scores(score, agents, over, rng.split(keys["score"], n)))
            if score is None:
                eligible, chance = ~own["active"], 1.0
                chances = eligible.double()
            else:
                eligible, chance = ~(own["active"] | own["new"]), replay
                chances = replay_chances(
                    own["score"],
                    own["clock"] - own["stamp"],
                    eligible,
                    prioritization=prioritization,
                    temperature=temperature,
                    staleness=staleness,
                )
            old = over & rng.bernoulli(keys["whether"], chance, (n,)) & (eligible.sum() >= n)
            fresh = over & ~old
            order = _raced(chances, eligible, keys["which"])
            slot = torch.where(old, _nth(order, old), own["slot"])
            # not _put: some of the others still stand where one of these has come to live
            active = own["active"] | (old.long().new_zeros(size).index_add(0, slot, old.long()) > 0)
            worth = own["score"].masked_fill(own["new"], -torch.inf)
            free = worth.masked_fill(active, torch.inf).argsort(stable=True)
            slot = torch.where(fresh, _nth(free, fresh), slot)
            drawn = rng.split(keys["level"], n)
            own |= {
                "key": _put(own["key"], slot, fresh, drawn),
                "score": _put(own["score"], slot, fresh, 0.0),
                "new": _put(own["new"], slot, fresh, True),
                "active": _put(active, slot, fresh, True),
                "slot": slot,
            }
            return tree.new(own), _sampled(sample, own["key"][slot])

    return Curriculum(init, renew)


def replay_chances(
    score: Tensor,
    age: Tensor,
    eligible: Tensor,
    *,
    prioritization: Literal["rank", "proportional"] = "rank",
    temperature: float = 1.0,
    staleness: float = 0.1,
) -> Tensor:
    """Chance of each level to be the next one that is replayed.

        P = (1 - staleness) P_S + staleness P_C
        P_S ~ rank(S)^(-1 / temperature)   or   max(S, 0)^(1 / temperature),     P_C ~ age

    over the eligible levels; rank 1 is the highest score, and of equal ones the first; NaN is below
    all numbers. Where all weights of P_S are 0 it's uniform; where all ages are 0, P is P_S.

    Args:
        score: float ``[size]``.
        age: int64 ``[size]``, how long ago each was scored.
        eligible: bool ``[size]``.
        prioritization: as in ``prioritized_level_replay``.
        temperature: likewise.
        staleness: likewise.

    Returns:
        float64 ``[size]``, 0 where not eligible; sums to 1 if any is.

    Raises:
        ValueError: shapes differ, a number is out of range, or the prioritization another.
        TypeError: ``eligible`` isn't bool, or a number is none.

    Source: Jiang et al. (2021), equations 2 to 4.
    """
    fn = "replay_chances"
    _require_shares(fn, staleness=staleness)
    _require_order(fn, prioritization, temperature)
    if score.ndim != 1:
        raise ValueError(f"{fn}: score has shape {tuple(score.shape)}, expected [size]")
    for name, value in (("age", age), ("eligible", eligible)):
        if value.shape != score.shape:
            got, wanted = tuple(value.shape), tuple(score.shape)
            raise ValueError(f"{fn}: {name} has shape {got}, expected {wanted} (from score)")
    if eligible.dtype != torch.bool:
        raise TypeError(f"{fn}: eligible is {eligible.dtype}, expected bool")
    score = score.double()
    score = score.masked_fill(score.isnan(), -torch.inf)
    if prioritization == "rank":
        order = score.argsort(descending=True, stable=True)
        order = order[(~eligible)[order].long().argsort(stable=True)]  # all eligible ones first
        weight = 1.0 / (order.argsort() + 1.0).double()
    else:
        # whoever is out of the race may not be as large as the power of a number can get
        weight = score.clamp(min=0.0).masked_fill(~eligible, 0.0)
        weight = weight / weight.amax().clamp(min=_LEAST)
    fair = eligible.double() / eligible.sum().clamp(min=1)
    by_score = _normalized(weight.pow(1.0 / temperature) * eligible, fair)
    by_age = _normalized(age.double() * eligible, by_score)
    return (1.0 - staleness) * by_score + staleness * by_age


# ------------------------------------------------------------------------------------ parts


def _normalized(weight: Tensor, otherwise: Tensor) -> Tensor:
    """Weights that sum to 1; others, as they are, where these are all 0."""
    total = weight.sum()
    return torch.where(total > 0, weight / total.clamp(min=_LEAST), otherwise)


def _raced(chances: Tensor, eligible: Tensor, key: Tensor) -> Tensor:
    """Places in the order in which they're drawn without replacement: the first to ring at rate p.

    Source: Efraimidis and Spirakis (2006), "Weighted random sampling with a reservoir".
    """
    wait = -torch.log1p(-rng.uniform(key, tuple(chances.shape), dtype=torch.float64))
    time = wait / chances.clamp(min=_LEAST)
    return time.masked_fill(~eligible, torch.inf).argsort(stable=True)


def _nth(order: Tensor, chosen: Tensor) -> Tensor:
    """For the j-th of the chosen ``[n]`` the j-th of an order ``[size]``."""
    return order[(chosen.cumsum(0) - 1).clamp(min=0)]


def _put(column: Tensor, slot: Tensor, where: Tensor, value: Any) -> Tensor:
    """Column ``[size, *]`` with a value, one or ``[n, *]``, at those of the slots where it's to."""
    before = column[slot]
    value = torch.as_tensor(value, dtype=column.dtype, device=column.device)
    where = where.reshape(-1, *[1] * (before.ndim - 1))
    return column.index_copy(0, slot, torch.where(where, value, before))


def _freed(own: dict[str, Any], over: Tensor, score: Tensor | None) -> dict[str, Any]:
    """What is different when some agents have left their levels."""
    slot = own["slot"]
    found = {"active": _put(own["active"], slot, over, False)}
    if score is None:
        return found
    clock, finite = own["clock"] + over.sum(), score.isfinite()
    return {
        **found,
        "score": _put(own["score"], slot, over, torch.where(finite, score, 0.0)),
        "new": _put(own["new"], slot, over, ~finite),
        "stamp": _put(own["stamp"], slot, over, clock),
        "clock": clock,
    }


def _scores(score: Score | None, agents: TensorDict, over: Tensor, keys: Tensor) -> Tensor | None:
    """Scores ``[n]``, which matter only where a life is over."""
    if score is None:
        return None
    if not is_plain(over):
        return score(agents, keys).detach()
    rows = over.nonzero()[:, 0]
    some = score(tree.take(agents, rows), keys[rows]).detach()
    if some.shape != rows.shape:
        raise ValueError(
            f"prioritized_level_replay.renew: the score has shape {tuple(some.shape)}, "
            f"expected {tuple(rows.shape)} (one for each agent)"
        )
    return some.new_zeros(over.shape).index_copy(0, rows, some)


def _sampled(sample: Sample, keys: Tensor) -> TensorDict:
    return tree.map(torch.Tensor.contiguous, vmap(sample)(keys))


def _require_over(fn: str, agents: TensorDict, over: Tensor) -> None:
    if over.dtype != torch.bool:
        raise TypeError(f"{fn}: over is {over.dtype}, expected bool")
    if over.shape != agents.batch_size[:1]:
        wanted = f"{list(agents.batch_size)} (from the agents)"
        raise ValueError(f"{fn}: over has shape {tuple(over.shape)}, expected {wanted}")


def _require_shares(fn: str, **shares: float) -> None:
    for name, value in shares.items():
        require_real(fn, name, value)
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{fn}: {name} is {value}, expected a number in [0, 1]")


def _require_order(fn: str, prioritization: str, temperature: float) -> None:
    known = ("rank", "proportional")
    if prioritization not in known:
        near = difflib.get_close_matches(str(prioritization), known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"{fn}: prioritization is {prioritization!r}, expected one of {', '.join(known)}; the "
            f"nearest is {near!r}"
        )
    require_real(fn, "temperature", temperature, above=0.0)
