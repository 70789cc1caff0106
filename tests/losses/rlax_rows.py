"""The functions of rlax in our words, a row each, for test_rlax.py.

A row's call takes rlax's arguments by their names, and for functions of discounts ours made of them
(``gamma``, ``lmbda``, ``done``, ``terminated``), and gives what rlax gives.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict


class Args(dict):
    """Arguments by name, as attributes too."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


@dataclass(frozen=True)
class Row:
    """One function.

    learned: the arguments that keep their gradient when rlax's flag is on; or why there is nothing
        to compare then
    stopped: a call for rlax's flag on, where holding arguments is not the way
    differs: keys in which we differ on purpose, with the largest difference and the reason
    skipped: keys that are not compared, with the reason
    same: arguments of rlax's that are one of ours
    kept: arguments that have their whole gradient where rlax's flag stops it: our reducers stop
        what a network says of the next state, and not rewards and hyper-parameters
    ended: arguments that are without influence on us where the step before is terminated
    """

    call: Callable[[Args], Any]
    learned: tuple[str, ...] | str | None = None
    stopped: Callable[[Args], Any] | None = None
    differs: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    rtol: float | None = None


def chosen(q, action):
    return q.gather(-1, action.unsqueeze(-1)).squeeze(-1)


def delayed(x):
    """What rlax has at t and we at t + 1; at our first step anything, as nothing reads it."""
    return torch.cat([x[:1], x[:-1]]) if x.dim() else x


def led(x):
    """A sequence that for rlax starts at the second step."""
    return torch.cat([x.new_full((1, *x.shape[1:]), 0.5), x])


def td(a, **entries):
    nested = TensorDict({"reward": a.r_t, "done": a.done, "terminated": a.terminated}, a.r_t.shape)
    nested.update({k.removeprefix("next_"): v for k, v in entries.items() if k[:5] == "next_"})
    own = {k: v for k, v in entries.items() if k[:5] != "next_"}
    return TensorDict({**own, "next": nested}, a.r_t.shape)


def steps(*shape, **entries):
    return TensorDict(entries, shape)
