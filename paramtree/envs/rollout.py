"""Trajectories: a model acts in an environment, many levels and workers at once.

Everything random comes from one key, drawn at once: what the environment needs, and what turns the
policy's distributions into actions, a = F⁻¹(u). What a step gives is kept, and stacked at the end.

Written for one level with workers ``[*W]``, for stacked levels ``[*L]`` with workers ``[*L, *W]``
(the model then gets that batch), and for vmap over levels, states, keys and, where each level has
its own, parameters. With a key of its own for each level, all three give the same numbers.
"""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from .. import rng
from ..model import Model
from ..tree import entries, lock, new, require_tree
from .actions import Act, DistClass, greedy, log_prob, sampler
from .base import Env


def rollout(
    env: Env,
    model: Model,
    params: Any,
    buffers: Any,
    level: TensorDict,
    state: TensorDict,
    key: Tensor,
    length: int,
    dist_class: DistClass = Categorical,
    *,
    deterministic: bool = False,
) -> tuple[TensorDict, Any, TensorDict]:
    """Steps of an agent in an environment, without an autograd graph.

    At each step the model reads ``observation``, ``is_init`` and its recurrent entries, and writes
    what ``dist_class`` takes: ``logits``, ``probs``, ``loc`` and ``scale``, or ``actor_output`` (a
    tensor goes to ``dist_class`` as it is, a tree as keywords). What it writes under ``("next",
    name)`` is its recurrent entry ``name`` of the next step; the state brings those of the first
    step along, in ``state["recurrent"]``, and takes the last ones with it. A model starts anew
    where ``is_init``.

    Args:
        env: the environment.
        model: the agent.
        params: its parameters.
        buffers: its buffers, threaded through all steps.
        level: level of batch size ``[*L]``.
        state: state of batch size ``[*B]``, which is ``[*L, *W]``.
        key: ``[2]``, or ``[*L, 2]``, one for each level.
        length: number of steps T.
        dist_class: Categorical, OneHotCategorical, Bernoulli or Normal; or a function that gives
            one of them, an Independent or a TransformedDistribution of one, or a distribution with
            a ``sample_with(noise)``, such as ``losses.tanh_normal``. A function is to pass
            ``validate_args=False`` where it's used under vmap.
        deterministic: whether the likeliest action is taken, not a drawn one: a distribution's
            mode, or the image of the mode where it's squashed.

    Returns:
        ``(state, buffers, td)``: the state and the buffers after the last step, and the trajectory
        of batch size ``[*B, T]``: ``observation``, ``is_init``, ``action``, ``action_log_prob``,
        all that the model wrote, and under ``next`` ``reward``, ``done``, ``terminated``, and
        ``observation`` from before an auto-reset, ``is_init`` False.

    Raises:
        ValueError: ``length`` is below 1, the level doesn't fit the state, or the state or the
            model's output lacks a name.
        TypeError: ``dist_class`` gives a distribution of another kind, or the level or the state is
            no tree.
    """
    _require(level, state, length)
    batch, depth = state.batch_size, len(level.batch_size)
    shape = (*batch[:depth], length, *batch[depth:])
    env_key, action_key = rng.split(key)
    recurrent = entries(state["recurrent"]) if "recurrent" in entries(state) else {}
    act: Act | None = greedy("rollout", dist_class) if deterministic else None
    steps = []
    with torch.no_grad():
        for t, noise in enumerate(_unbind(env.noise(level, env_key, shape), depth)):
            seen = {"observation": state["observation"], "is_init": state["is_init"], **recurrent}
            out, buffers = model.apply(params, buffers, new(seen, batch))
            written = {name: value for name, value in entries(out).items() if name not in seen}
            after = entries(lock(written.pop("next"))) if "next" in written else {}
            require_recurrent(recurrent, after)
            if act is None:
                act = sampler("rollout", dist_class, written, action_key, shape, depth)
            action = act(written, t)
            state, timestep = env.step(level, state, action, noise)
            following = {**entries(timestep), **after}
            steps.append({**seen, **written, "action": action, "next": following})
            recurrent = after
        td = stacked(steps, len(batch), (*batch, length))
        chance = log_prob("rollout", dist_class, td, (*batch, length))
        is_init = torch.zeros_like(td["next", "done"])
        td = {
            **entries(td),
            "action_log_prob": chance,
            "next": new({**entries(td["next"]), "is_init": is_init}, td.batch_size),
        }
    if recurrent:
        state = new({**entries(state), "recurrent": new(recurrent, batch)}, batch)
    return state, buffers, new(td, (*batch, length))


# ---- trees ----


def _unbind(tree: TensorDict, dim: int) -> list[TensorDict]:
    """Trees along one batch axis."""
    size, length = tree.batch_size, tree.batch_size[dim]
    rest = (*size[:dim], *size[dim + 1 :])
    columns = {
        name: _unbind(value, dim) if isinstance(value, TensorDictBase) else value.unbind(dim)
        for name, value in entries(tree).items()
    }
    return [new({name: rows[t] for name, rows in columns.items()}, rest) for t in range(length)]


def stacked(steps: list[Any], dim: int, size: tuple[int, ...]) -> TensorDict:
    """Tree of batch size ``size`` with one more axis at ``dim``, of equal trees or dictionaries."""
    rows = [entries(step) if isinstance(step, TensorDictBase) else step for step in steps]
    out = {}
    for name, first in rows[0].items():
        column = [row[name] for row in rows]
        nested = not isinstance(first, Tensor)
        out[name] = stacked(column, dim, size) if nested else torch.stack(column, dim)
    return new(out, size)


# ---- checks ----


def _require(level: TensorDict, state: TensorDict, length: int) -> None:
    require_tree("rollout", "level", level)
    require_tree("rollout", "state", state)
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"rollout: length is {length!r}, expected an int of at least 1")
    lacks = [name for name in ("observation", "is_init") if name not in entries(state)]
    if lacks:
        raise ValueError(
            f"rollout: state lacks {', '.join(lacks)}, expected it as env.reset gives it"
        )
    size, depth = state.batch_size, len(level.batch_size)
    if size[:depth] != level.batch_size:
        wanted = f"it to begin with {tuple(level.batch_size)} (the level's batch size)"
        raise ValueError(f"rollout: state has batch size {tuple(size)}, expected {wanted}")


def require_recurrent(given: dict[str, Any], after: dict[str, Any]) -> None:
    """Refuse a model that writes other recurrent entries than it was given."""
    if given.keys() == after.keys():
        return
    got, wanted = sorted(given), sorted(after)
    raise ValueError(
        f"rollout: the model writes {wanted} under 'next', but the state's recurrent entries are "
        f"{got}; give the first ones with tree.replace(state, {{'recurrent': ...}}), zeros where "
        "an episode starts"
    )
