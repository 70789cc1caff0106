"""Gymnasium's vector environments, played by our models.

    >>> from paramtree import nn, td_model
    >>> model = td_model(nn.mlp(4, 32, 2), "observation", "logits")
    >>> (params, buffers), key = model.init(rng.key(0)), rng.key(1)
    >>> envs = gymnasium.make_vec("CartPole-v1", 8)
    >>> state = reset(envs, seed=0)
    >>> state, buffers, td = rollout(envs, model, params, buffers, state, key, 128)
    >>> evaluate("CartPole-v1", model, params, buffers, key, episodes=10).shape
    torch.Size([10])

What comes out is what ``envs.rollout`` gives of a pure environment, key by key. The environment
itself is the one thing that isn't passed in and out: it moves on with every step, and a state goes
with the last one.

When an episode is over, its worker is reset as the environment's autoreset mode says; ``("next",
"observation")`` is the last observation of the old episode in all of them:

=============  =====================================================================================
``DISABLED``   it's reset here, at once, by a ``reset_mask``
``SAME_STEP``  the environment did so, and the last observation comes from ``infos["final_obs"]``
``NEXT_STEP``  the environment does so in the next step, whatever the action. That is no step of an
               episode: in the td its ``mask`` is False, which all of ``losses`` read, its reward is
               0, and it ends nothing; ``td[td["mask"]]`` are the steps that count
=============  =====================================================================================

Observations: floats as float32, other numbers as they are, a Dict space as a tree, a Tuple space as
a tree of "0", "1", .... Actions: of a Discrete space indices from 0 whatever its start, or one-hot;
of a MultiDiscrete or MultiBinary one its numbers, likewise; of a Box floats, which the td has as
they were drawn, and the environment held to the Box.
"""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from .. import rng
from ..envs.actions import Act, DistClass, greedy, log_prob, sampler
from ..envs.rollout import require_recurrent, stacked
from ..model import Model
from ..tree import entries, lock, new, require_tree

try:
    import gymnasium
    import numpy as np
    from gymnasium import spaces
    from gymnasium.vector import AutoresetMode, VectorEnv
except ImportError as error:
    raise ImportError(
        "paramtree.interop.gymnasium needs gymnasium: pip install 'paramtree[gymnasium]'",
        name=error.name,
    ) from error

_CHUNK = 64  # steps of an evaluation between two looks at whether it's over


def reset(
    envs: VectorEnv, seed: int | None = None, *, device: torch.device | str | None = None
) -> TensorDict:
    """Start an episode in each worker of a vector environment.

    Args:
        envs: the vector environment, of B workers.
        seed: of its random numbers, at least 0; None goes on with those it has.
        device: where the state, and so all that is played from it, lives.

    Returns:
        State of batch size ``[B]``: ``observation``, ``is_init`` True, and ``done`` False, whether
        a worker's next step only resets it. A recurrent model's first entries go into it, by
        ``tree.replace(state, {"recurrent": ...})``.

    Raises:
        ValueError: the environment doesn't say how it resets its workers.
        TypeError: it's no vector environment, or a space has no tensors.
    """
    port = _Port("reset", envs, device)
    observation = port.observed(envs.reset(seed=seed)[0])
    first = torch.ones(port.size, dtype=torch.bool, device=device)
    return port.state(observation, first, torch.zeros_like(first))


def rollout(
    envs: VectorEnv,
    model: Model,
    params: Any,
    buffers: Any,
    state: TensorDict,
    key: Tensor,
    length: int,
    dist_class: DistClass = Categorical,
    *,
    rescale: bool = False,
    deterministic: bool = False,
) -> tuple[TensorDict, Any, TensorDict]:
    """Steps of an agent in a vector environment, without an autograd graph.

    What the model reads and writes, ``dist_class`` and recurrent entries are as in
    ``envs.rollout``.

    Args:
        envs: the vector environment, of B workers; it moves on.
        model: the agent.
        params: its parameters.
        buffers: its buffers, threaded through all steps.
        state: what ``reset`` or the last ``rollout`` gave.
        key: ``[2]``, for the actions.
        length: number of steps T.
        dist_class: as in ``envs.rollout``.
        rescale: whether actions in [-1, 1] are stretched to the Box's bounds.
        deterministic: as in ``envs.rollout``.

    Returns:
        ``(state, buffers, td)``, the td of batch size ``[B, T]``: ``observation``, ``is_init``,
        ``action``, ``action_log_prob``, all that the model wrote, and under ``next`` ``reward``,
        ``done``, ``terminated``, ``observation`` and ``is_init`` False; where the environment
        resets its workers in the next step, ``mask`` too.

    Raises:
        ValueError: ``length`` is below 1, an action doesn't fit the space, the Box has no bounds to
            rescale to, or the state or the model's output lacks a name.
        TypeError: an action is of the wrong dtype, a space has no tensors, ``dist_class`` gives a
            distribution that isn't drawn from keys, or an argument is of another kind.
    """
    _require_state(state, length)
    port = _Port("rollout", envs, state["is_init"].device, rescale)
    if state.batch_size != (port.size,):
        wanted = f"{(port.size,)} (the environment's workers)"
        raise ValueError(
            f"rollout: state has batch size {tuple(state.batch_size)}, expected {wanted}"
        )
    batch = state.batch_size
    recurrent = entries(state["recurrent"]) if "recurrent" in entries(state) else {}
    act: Act | None = greedy("rollout", dist_class) if deterministic else None
    steps = []
    with torch.no_grad():
        for t in range(length):
            seen = {"observation": state["observation"], "is_init": state["is_init"], **recurrent}
            out, buffers = model.apply(params, buffers, new(seen, batch))
            written = {name: value for name, value in entries(out).items() if name not in seen}
            after = entries(lock(written.pop("next"))) if "next" in written else {}
            require_recurrent(recurrent, after)
            if act is None:
                act = sampler("rollout", dist_class, written, key, (length, port.size), 0)
            action = act(written, t)
            counts = {"mask": ~state["done"]} if port.masked else {}
            state, following = port.step(state, action)
            following = {**following, **after}
            steps.append({**seen, **written, "action": action, **counts, "next": following})
            recurrent = after
        td, shape = stacked(steps, 1, (port.size, length)), (port.size, length)
        chance = log_prob("rollout", dist_class, td, shape)
    if recurrent:
        state = new({**entries(state), "recurrent": new(recurrent, batch)}, batch)
    return state, buffers, new({**entries(td), "action_log_prob": chance}, shape)


def evaluate(
    envs: VectorEnv | str,
    model: Model,
    params: Any,
    buffers: Any,
    key: Tensor,
    episodes: int,
    dist_class: DistClass = Categorical,
    *,
    rescale: bool = False,
    deterministic: bool = False,
    recurrent: TensorDictBase | None = None,
) -> Tensor:
    """Undiscounted returns of whole episodes.

    Each of B workers plays its share of them, fixed beforehand: the first episodes to end would be
    the short ones. The environment is reset with a seed made of the key, so the same key gives the
    same episodes, and the last episodes in it are left unfinished; don't give one that's trained
    in. Episodes have to end.

    Args:
        envs: a vector environment, or the name of a registered one, of which one with as many
            workers as episodes, but at most 32, is made and closed.
        model: the agent.
        params: its parameters.
        buffers: its buffers.
        key: ``[2]``, for the environment and the actions.
        episodes: how many, at least 1.
        dist_class: as in ``rollout``.
        rescale: as in ``rollout``.
        deterministic: as in ``rollout``.
        recurrent: the first recurrent entries of one worker, a tree of batch size ``[]``.

    Returns:
        float32 ``[episodes]``: the i-th is of worker i mod B.

    Raises:
        ValueError: ``episodes`` is below 1, or as in ``rollout``.
        TypeError: as in ``rollout``.
    """
    if isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 1:
        raise ValueError(f"evaluate: episodes is {episodes!r}, expected an int of at least 1")
    seed = int(rng.bits(rng.fold_in(key, "envs"), (1,)))
    if isinstance(envs, str):
        made = gymnasium.make_vec(envs, min(episodes, 32))
        try:
            options: dict[str, Any] = {"rescale": rescale, "deterministic": deterministic}
            agent = (model, params, buffers, key, episodes, dist_class)
            return evaluate(made, *agent, recurrent=recurrent, **options)
        finally:
            made.close()
    state = reset(envs, seed, device=key.device)
    size = envs.num_envs
    if recurrent is not None:
        require_tree("evaluate", "recurrent", recurrent)
        first = {name: x.expand(size, *x.shape) for name, x in entries(recurrent).items()}
        state = new({**entries(state), "recurrent": new(first, (size,))}, (size,))
    returns, running = np.zeros(episodes), np.zeros(size)
    place, chunk = np.arange(size), 0  # of each worker's next return
    while (place < episodes).any():
        state, buffers, td = rollout(
            envs,
            model,
            params,
            buffers,
            state,
            rng.fold_in(key, chunk),
            _CHUNK,
            dist_class,
            rescale=rescale,
            deterministic=deterministic,
        )
        reward, done = (td["next", name].mT.cpu().numpy() for name in ("reward", "done"))
        for earned, over in zip(reward, done, strict=True):
            running += earned
            counted = over & (place < episodes)
            returns[place[counted]] = running[counted]
            place[over] += size
            running[over] = 0.0
        chunk += 1
    return torch.tensor(returns, dtype=torch.float32, device=key.device)


class _Port:
    """A vector environment with tensors on both sides."""

    def __init__(self, fn: str, envs: VectorEnv, device: Any, rescale: bool = False) -> None:
        if not isinstance(envs, VectorEnv):
            got = f"{fn}: envs is a {type(envs).__name__}"
            hint = "gymnasium.make_vec(name, n) makes one"
            raise TypeError(f"{got}, expected a gymnasium.vector.VectorEnv; {hint}")
        mode = envs.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"{fn}: envs.metadata['autoreset_mode'] is {mode!r}, expected one of gymnasium's "
                "AutoresetMode: it says which observations are an episode's last"
            )
        self.fn, self.envs, self.mode, self.device = fn, envs, mode, device
        self.size: int = envs.num_envs
        self.masked = mode == AutoresetMode.NEXT_STEP
        self.rescale = rescale

    def state(self, observation: TensorDict | Tensor, first: Tensor, done: Tensor) -> TensorDict:
        """State of the workers; ``first`` marks those at the start of an episode."""
        entries = {"observation": observation, "is_init": first, "done": done}
        return new(entries, (self.size,))

    def step(self, state: TensorDict, action: Tensor) -> tuple[TensorDict, dict[str, Any]]:
        """The state after a step, and what is to stand under ``next``."""
        seen, reward, terminated, truncated, infos = self.envs.step(self._array(action))
        ended = np.logical_or(terminated, truncated)
        last = self.observed(seen)
        done = self._flags(ended)
        following = {
            "observation": last,
            "reward": self._tensor(reward),
            "done": done,
            "terminated": self._flags(terminated),
            "is_init": torch.zeros_like(done),
        }
        if self.masked:
            return self.state(last, state["done"], done), following
        if not ended.any():
            return self.state(last, done, done), following
        if self.mode == AutoresetMode.SAME_STEP:
            following["observation"] = self.observed(self._finals(seen, infos, ended))
            first = last
        else:
            first = self.observed(self.envs.reset(options={"reset_mask": ended})[0])
        return self.state(first, done, torch.zeros_like(done)), following

    # ---- observations

    def observed(self, observation: Any) -> Any:
        """Tree or tensor of what the environment shows."""
        return self._tensors(self.envs.single_observation_space, observation, "")

    def _tensors(self, space: spaces.Space, value: Any, where: str) -> Any:
        if isinstance(space, spaces.Box | spaces.Discrete | _NUMBERS):
            return self._tensor(value)
        if isinstance(space, spaces.Dict | spaces.Tuple):
            parts = _parts(space)
            rows = {str(n): self._tensors(s, value[n], f"{where}.{n}") for n, s in parts.items()}
            return new(rows, (self.size,))
        name = f"the observation{f' {where[1:]!r}' if where else ''}"
        raise TypeError(
            f"{self.fn}: {name} is of a {type(space).__name__} space, expected Box, Discrete, "
            "MultiDiscrete, MultiBinary, or a Dict or Tuple of them"
        )

    def _tensor(self, value: Any) -> Tensor:
        """A tensor of its own: the environment may write to its arrays again."""
        array = np.asarray(value)
        dtype = torch.float32 if array.dtype.kind == "f" else None
        return torch.tensor(array, dtype=dtype, device=self.device)

    def _flags(self, value: Any) -> Tensor:
        return torch.tensor(np.asarray(value, dtype=bool), device=self.device)

    def _finals(self, observation: Any, infos: dict[str, Any], ended: Any) -> Any:
        """The observation, with the last one of each episode that ended."""
        if "final_obs" not in infos:
            known = ", ".join(infos) or "none"
            raise ValueError(
                f"{self.fn}: an episode ended and infos has no 'final_obs', expected it of an "
                f"environment that resets in the same step; its keys are {known}"
            )
        rows = np.flatnonzero(ended)
        finals = [_row(infos["final_obs"], int(row)) for row in rows]
        return _replaced(self.envs.single_observation_space, observation, finals, rows)

    # ---- actions

    def _array(self, action: Tensor) -> Any:
        """An action ``[B, *event]`` as the environment takes it."""
        space: Any = self.envs.single_action_space
        if self.rescale and not isinstance(space, spaces.Box):
            kind = type(space).__name__
            raise ValueError(f"{self.fn}: rescale is True, but the actions' space is a {kind}")
        real = action.is_floating_point()
        if isinstance(space, spaces.Discrete):
            if real and action.ndim == 2 and action.shape[-1] == space.n:
                action, real = action.argmax(-1), False
            return space.start + self._indices(space, action, not real, space.n)
        if isinstance(space, spaces.MultiDiscrete):
            return space.start + self._indices(space, action, not real, space.nvec)
        if isinstance(space, spaces.MultiBinary):
            return self._numbers(space, action, True).astype(space.dtype)
        if isinstance(space, spaces.Box):
            return self._boxed(space, self._numbers(space, action, real))
        raise TypeError(
            f"{self.fn}: the actions' space is a {type(space).__name__}, expected Discrete, "
            "MultiDiscrete, MultiBinary or Box"
        )

    def _numbers(self, space: Any, action: Tensor, fits: bool) -> Any:
        shape = (self.size, *space.shape)
        if tuple(action.shape) != shape:
            got, wanted = tuple(action.shape), f"{shape} (from {space})"
            raise ValueError(f"{self.fn}: action has shape {got}, expected {wanted}")
        if not fits:
            kind = "floats" if isinstance(space, spaces.Box) else "integers"
            raise TypeError(f"{self.fn}: action is {action.dtype}, expected {kind} (from {space})")
        return action.detach().cpu().numpy()

    def _indices(self, space: Any, action: Tensor, fits: bool, count: Any) -> Any:
        numbers = self._numbers(space, action, fits)
        wrong = (numbers < 0) | (numbers >= count)
        if wrong.any():
            got = numbers[wrong].flat[0]
            raise ValueError(
                f"{self.fn}: action {got} is not there, expected one from 0 of {space}"
            )
        return numbers

    def _boxed(self, space: Any, action: Any) -> Any:
        low, high = space.low, space.high
        if self.rescale:
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise ValueError(f"{self.fn}: rescale is True, but {space} has no bounds")
            action = low + (action + 1) / 2 * (high - low)
        action = np.clip(action, low, high)
        return (np.rint(action) if space.dtype.kind in "iu" else action).astype(space.dtype)


_NUMBERS = spaces.MultiDiscrete | spaces.MultiBinary


def _parts(space: Any) -> dict[Any, spaces.Space]:
    """Spaces inside of one, by name or place."""
    return dict(space.spaces if isinstance(space, spaces.Dict) else enumerate(space.spaces))


def _row(value: Any, row: int) -> Any:
    """One worker's part of what belongs to all."""
    if isinstance(value, dict):
        return {name: _row(part, row) for name, part in value.items()}
    return tuple([_row(part, row) for part in value]) if isinstance(value, tuple) else value[row]


def _replaced(space: spaces.Space, observation: Any, finals: list[Any], rows: Any) -> Any:
    """All workers' observations with other ones in some rows."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return {
            name: _replaced(part, observation[name], [final[name] for final in finals], rows)
            for name, part in _parts(space).items()
        }
    whole = np.array(observation)
    whole[rows] = np.stack(finals)
    return whole


def _require_state(state: TensorDict, length: int) -> None:
    require_tree("rollout", "state", state)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"rollout: length is {length!r}, expected an int of at least 1")
    lacks = [name for name in ("observation", "is_init", "done") if name not in entries(state)]
    if lacks:
        raise ValueError(f"rollout: state lacks {', '.join(lacks)}, expected it as reset gives it")
