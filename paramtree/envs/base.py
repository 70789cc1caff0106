"""The contract of an environment: three pure functions over trees.

A *level* says what world it is, a *state* where an episode stands. Levels and states are trees, so
levels stack and batch like parameters: with a level of batch size ``[*L]`` goes a state of batch
size ``[*L, *W]``, W any number of workers on each level. All random numbers of a rollout, those of
its auto-resets included, are drawn at once; stepping is deterministic.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tensordict import TensorDict
from torch import Tensor


class Env(NamedTuple):
    """Three pure functions that make up an environment.

    Attributes:
        reset: ``reset(level, noise) -> state``, the state at the start of an episode. The noise has
            the state's batch size.
        step: ``step(level, state, action, noise) -> (state, timestep)``. The timestep holds
            ``reward``, ``done``, ``terminated`` and ``observation`` as they are before the
            auto-reset; the state is after it. ``done`` ends an episode, for whatever reason;
            ``terminated`` says that the world ended it, not its time limit. What the agent sees is
            ``state["observation"]``; ``state["is_init"]`` marks the first step of an episode.
        noise: ``noise(level, key, shape) -> noise``, the random numbers of many steps or resets: a
            tree of batch size ``shape``, which begins with the level's batch size ``[*L]``. A key
            is ``[2]``, or ``[*L, 2]`` where each level has its own; for a rollout of T steps the
            shape is ``[*L, T, *W]``.
    """

    reset: Callable[[TensorDict, TensorDict], TensorDict]
    step: Callable[[TensorDict, TensorDict, Tensor, TensorDict], tuple[TensorDict, TensorDict]]
    noise: Callable[[TensorDict, Tensor, Sequence[int]], TensorDict]
