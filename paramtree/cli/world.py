"""Environments of Gymnasium's for a run that may be stopped at any time, and agents looked at.

An environment can't be saved, but an episode can be played again: it is a function of the seed that
its environment was reset with, and of what was done since. So each episode of each worker gets a
seed of its own, and a state holds its number and its actions. Replayed, it leads to the same place,
random numbers of the environment's included; if it does not, that is said, and the workers begin
new episodes.

    play       what ``reset`` and ``rollout`` of paramtree.interop.gymnasium give, [B]
    key        where the episodes' seeds come from, [2]
    episode    number of each worker's episode, [B]
    count      steps in it so far, [B]
    actions    what they were, as the environment had them, [B, limit, ...], then zeros
    running    the episode's return so far, [B]
    recent     returns of the last episodes that ended, a ring
    ended      how many have

So to come back costs at most an episode's steps, no episode is cut off for the sake of checkpoints,
and nothing is pickled.
"""

import ast
import difflib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ..interop import gymnasium as interop  # before gymnasium, for its error if there is none
from ..model import Model
from .outcome import Refused

# isort: split
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

RECENT = 20  # episodes in a metric's mean
_LIMIT = 10_000  # steps of an episode where nobody says


class Workers(SyncVectorEnv):
    """Copies of an environment that remember their episodes, and can play them again."""

    def __init__(self, make: Callable[[], Any], size: int, limit: int) -> None:
        super().__init__([make] * size, autoreset_mode=AutoresetMode.DISABLED)
        space: Any = self.single_action_space
        self.key = rng.key(0)
        self.episode, self.count = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.actions = np.zeros((size, limit, *(space.shape or ())), space.dtype or object)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Begin the next episode of some workers, or bring all to where their records end."""
        if options is None:
            return self._replayed(), {}
        mask = options["reset_mask"]
        self.begin(mask)
        return super().reset(seed=self._seeds(mask), options={"reset_mask": mask})

    def step(self, actions: Any) -> Any:
        """Take a step, and remember it."""
        self.actions[np.arange(self.num_envs), self.count] = actions
        self.count += 1
        return super().step(actions)

    def begin(self, mask: Any) -> None:
        """Turn to a new page for some workers."""
        self.episode[mask] += 1
        self.count[mask] = 0
        self.actions[mask] = 0

    def _seeds(self, mask: Any) -> list[int | None]:
        keys = [rng.fold_in(self.key, worker) for worker in range(self.num_envs)]
        rows = zip(keys, self.episode.tolist(), mask, strict=True)
        return [int(rng.bits(rng.fold_in(key, n), (1,))) if on else None for key, n, on in rows]

    def _replayed(self) -> Any:
        seeds: Any = self._seeds(np.ones(self.num_envs, bool))
        super().reset(seed=seeds)
        rows = []
        for env, seed, actions, count in zip(
            self.envs, seeds, self.actions, self.count, strict=True
        ):
            row, over = env.reset(seed=seed)[0], False
            for action in actions[:count].copy():
                if not over:  # one that is deterministic isn't before the last action
                    row, _, terminated, truncated, _ = env.step(action)
                    over = bool(terminated or truncated)
            rows.append(row)
        space = self.single_observation_space
        return concatenate(space, rows, create_empty_array(space, self.num_envs))


class World:
    """An environment by name, played by workers that stand where a state says."""

    def __init__(
        self, name: str, arguments: tuple[str, ...], limit: int | None, size: int, device: str
    ) -> None:
        """Makes the workers.

        Args:
            name: the environment's, registered.
            arguments: what it is made with, as name=value.
            limit: steps after which an episode is cut off, or None for the environment's own.
            size: number of workers.
            device: where what they show goes.

        Raises:
            Refused: it isn't registered, or can't be made.
        """
        require_positive({"--workers": size, "--episode-limit": 1 if limit is None else limit})
        self.name, self.device, self.spec = name, device, _spec(name)
        longest: int = limit or self.spec.max_episode_steps or _LIMIT
        options: dict[str, Any] = {"max_episode_steps": longest, "disable_env_checker": True}
        self._make = partial(gymnasium.make, name, **options, **_arguments(arguments))
        try:
            self._workers = Workers(self._make, size, longest)
        except Exception as error:  # whatever somebody's environment raises
            what = str(error) or type(error).__name__
            raise Refused(f"--env is {name!r}, which can't be made: {what}") from error
        self.observation_space: Any = self._workers.single_observation_space
        self.action_space: Any = self._workers.single_action_space
        self.rescale = isinstance(self.action_space, spaces.Box) and bool(
            np.isfinite(self.action_space.low).all() and np.isfinite(self.action_space.high).all()
        )
        self._at: Any = None  # the record of the state in which the workers are
        self._play: Any = None
        self._running = np.zeros(size)
        self._recent, self._ended = np.zeros(RECENT), 0
        self._returns: list[float] = []  # of the episodes that ended since enter

    def begin(self, key: Tensor) -> Any:
        """State at the start of everybody's first episode.

        Args:
            key: ``[2]``, for the environments.

        Returns:
            The state, as this file's first lines have it.
        """
        workers = self._workers
        workers.key = key.cpu()
        for record in (workers.episode, workers.count, workers.actions):
            record[:] = 0
        self._running[:], self._recent[:], self._ended, self._returns = 0.0, 0.0, 0, []
        self._play = interop.reset(workers, device=self.device)
        return self.leave()

    def enter(self, state: Any, say: Callable[[str], None]) -> None:
        """Bring the workers to where a state has them.

        Args:
            state: what ``begin`` or ``leave`` gave, in this process or in another.
            say: is told of what can't be done.
        """
        self._returns = []
        if state["actions"] is self._at:
            return
        workers = self._workers
        workers.key, self._ended, self._play = state["key"], int(state["ended"]), state["play"]
        for name, record in self._records().items():
            record[:] = state[name].numpy()
        if not _same(interop.reset(workers, device=self.device), self._play):
            say(
                f"{self.name} is not deterministic: its episodes don't come again from their seeds "
                "and actions; new ones begin, and this run is not what it was without the stop"
            )
            workers.begin(np.ones(workers.num_envs, bool))
            self._play = interop.reset(workers, device=self.device)
            self._running[:] = 0.0

    def play(
        self, model: Model, params: Any, buffers: Any, key: Tensor, length: int, dist_class: Any
    ) -> tuple[Any, TensorDict]:
        """Let an agent play on.

        Args:
            model: the agent.
            params: its parameters.
            buffers: its buffers.
            key: ``[2]``, for the actions.
            length: number of steps T of each worker.
            dist_class: as in ``paramtree.interop.gymnasium.rollout``.

        Returns:
            ``(buffers, td)``, the td of batch size ``[B, T]``.
        """
        self._play, buffers, td = interop.rollout(
            self._workers,
            model,
            params,
            buffers,
            self._play,
            key,
            length,
            dist_class,
            rescale=self.rescale,
        )
        reward, done = (td["next", name].mT.cpu().numpy() for name in ("reward", "done"))
        for earned, over in zip(reward, done, strict=True):
            self._running += earned
            if over.any():
                self._returns += self._running[over].tolist()
                self._running[over] = 0.0
        return buffers, td

    def leave(self) -> TensorDict:
        """State that the workers are in now."""
        for number in self._returns:
            self._recent[self._ended % RECENT] = number
            self._ended += 1
        copies = {name: torch.tensor(record) for name, record in self._records().items()}
        self._at = copies["actions"]
        ended = torch.tensor(self._ended)
        return tree.new({**copies, "play": self._play, "key": self._workers.key, "ended": ended})

    def _records(self) -> dict[str, Any]:
        """Arrays that a state has copies of, by name."""
        workers = self._workers
        return {
            "episode": workers.episode,
            "count": workers.count,
            "actions": workers.actions,
            "running": self._running,
            "recent": self._recent,
        }

    def metrics(self) -> dict[str, Tensor]:
        """Returns of the episodes that ended since ``enter``, and how the last few were."""
        found = {"returns": torch.tensor(self._returns, dtype=torch.float64)}
        if self._ended:
            recent = self._recent[: min(self._ended, RECENT)]
            found["return"] = torch.tensor(recent.mean())
        return {**found, "episodes": torch.tensor(self._ended)}

    def copies(self, size: int) -> SyncVectorEnv:
        """Other workers of the same environment, for an evaluation."""
        return SyncVectorEnv([self._make] * size, autoreset_mode=AutoresetMode.DISABLED)


def require_positive(numbers: dict[str, int]) -> None:
    """Refuse numbers below 1.

    Args:
        numbers: by flag.

    Raises:
        Refused: there is one.
    """
    for name, number in numbers.items():
        if number < 1:
            raise Refused(f"{name} is {number}, expected at least 1")


def _same(left: TensorDict, right: TensorDict) -> bool:
    """Whether two states show the same, NaN for NaN."""
    seen = [tree.leaves(state["observation"]) for state in (left, right)]
    return all([bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in zip(*seen, strict=True)])


def _spec(name: str) -> Any:
    module, _, own = name.rpartition(":")
    try:
        if module:
            import_module(module)  # which registers it
        return gymnasium.spec(own)
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        near = difflib.get_close_matches(name, gymnasium.registry, n=3, cutoff=0.3)
        text = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
        raise Refused(
            f"--env is {name!r}, which is no environment that is registered ({error}){text}; one "
            "that a package registers is named with it, such as ale_py:ALE/Pong-v5"
        ) from None


def _arguments(words: tuple[str, ...]) -> dict[str, Any]:
    """``("g=9.81", "map_name=8x8")`` as keywords: values are Python's, or else text."""
    found = {}
    for word in words:
        name, equal, text = word.partition("=")
        if not equal or not name.isidentifier():
            raise Refused(f"--env-args has {word!r}, expected name=value, such as g=9.81")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found
