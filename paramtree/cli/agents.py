"""Parts of the agents that play Gymnasium's environments: what they see, and what they do.

A view makes ``features`` [n] of any observation: one flat vector, numbers as they are and choices
one-hot, normalized if so wished. A policy makes ``logits``, or ``loc`` and ``scale``, of them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import losses, nn, td_model, tree
from ..model import Model
from .gym_options import Networks
from .outcome import Refused

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu": torch.nn.functional.elu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}
_CLIP = 10.0  # of normalized observations


class Policy(NamedTuple):
    """What chooses actions: a model of ``features``, and the distribution of what it writes."""

    model: Model
    dist_class: Any


class Player(NamedTuple):
    """A model that acts, with what it needs, out of a training's state."""

    model: Model
    params: TensorDict
    buffers: TensorDict
    dist_class: Any


# ------------------------------------------------------------------------------------- seeing


def view(env: str, space: Any, networks: Networks, train: bool = False) -> Model:
    """Model that writes ``features`` ``[*B, n]``, with n of ``n_features``, from ``observation``.

    Args:
        env: the environment's name, for messages.
        space: the space of observations.
        networks: whether they are normalized.
        train: whether the statistics are updated.

    Returns:
        The model.

    Raises:
        Refused: the space is of another kind.
    """
    flat = flattener(env, space)
    layers: dict[str, Any] = {"flat": flat}
    if networks.normalize_observations:
        size = n_features(env, space)
        layers["normalizer"] = nn.running_normalizer(size, clip=_CLIP, train=train)
    return td_model(nn.sequential(**layers), "observation", "features")


def n_features(env: str, space: Any) -> int:
    """Number of features of an observation.

    Args:
        env: the environment's name, for messages.
        space: the space of observations.

    Returns:
        The length of what ``flattener`` gives.

    Raises:
        Refused: the space is of another kind.
    """
    flattener(env, space)
    return int(flatdim(space))


def flattener(env: str, space: Any) -> Callable[[Any], Tensor]:
    """Function from observations ``[*B, ...]``, a tensor or a tree, to float vectors ``[*B, n]``.

    Args:
        env: the environment's name, for messages.
        space: the space of observations.

    Returns:
        The function.

    Raises:
        Refused: the space is of another kind.
    """
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        depth, scale = len(space.shape), 1 / 255 if space.dtype == "uint8" else 1
        return lambda x: _rows(x, depth).float() * scale
    if isinstance(space, spaces.Discrete):
        first, n = int(space.start), int(space.n)
        return lambda x: torch.nn.functional.one_hot(x - first, n).float()
    if isinstance(space, spaces.MultiDiscrete):
        sizes = [int(n) for n in space.nvec.flatten()]
        first, depth = torch.as_tensor(space.start), len(space.shape)

        def chosen(x: Tensor) -> Tensor:
            columns = _rows(x - first.to(x.device), depth).unbind(-1)
            rows = zip(columns, sizes, strict=True)
            return torch.cat([torch.nn.functional.one_hot(c, n) for c, n in rows], -1).float()

        return chosen
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        parts = {str(name): flattener(env, part) for name, part in named}
        return lambda x: torch.cat([part(x[name]) for name, part in parts.items()], -1)
    raise Refused(
        f"--env is {env!r}, whose observations are {space}; expected Box, Discrete, MultiDiscrete, "
        "MultiBinary, or a Dict or Tuple of them"
    )


def observed(model: Model, buffers: TensorDict, td: TensorDict) -> TensorDict:
    """Buffers of a view after it has seen a trajectory.

    Args:
        model: a view that updates its statistics.
        buffers: its buffers.
        td: the trajectory ``[*B]``.

    Returns:
        Its new buffers.
    """
    seen = tree.new({"observation": td["observation"]}, td.batch_size)
    return model.apply(tree.new({}), buffers, seen)[1]


def _rows(x: Tensor, depth: int) -> Tensor:
    """The last axes as one."""
    return x.flatten(x.ndim - depth) if depth else x.unsqueeze(-1)


# ------------------------------------------------------------------------------------- acting


def ppo_policy(env: str, space: Any, n_in: int, networks: Networks, first_std: float) -> Policy:
    """Policy over choices or vectors, whose deviation does not depend on what is seen.

    Args:
        env: the environment's name, for messages.
        space: the space of actions.
        n_in: number of features.
        networks: shape of its network.
        first_std: the deviation of vectors at first.

    Returns:
        The policy.

    Raises:
        Refused: the space is of another kind.
    """
    if isinstance(space, spaces.Discrete):
        net = perceptron(n_in, int(space.n), networks)
        return Policy(td_model(net, "features", "logits"), Categorical)
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise Refused(
            f"--env is {env!r}, whose actions are {space}; paramtree ppo is for Discrete actions "
            "and for those of a Box of one axis"
        )
    if first_std == 0:
        raise Refused("--first-std is 0, expected a number above it: nothing would be tried")
    options: dict[str, Any] = {"state_dependent": False, "to_scale": torch.exp}
    options["scale_init"] = nn.constant(math.log(first_std))
    model = _normal(partial(nn.normal_head, **options), n_in, space.shape[0], networks)
    return Policy(model, losses.independent_normal)


def sac_policy(env: str, space: Any, n_in: int, networks: Networks) -> Policy:
    """Policy over vectors from -1 to 1, of which tanh makes a normal's draws.

    Args:
        env: the environment's name, for messages.
        space: the space of actions.
        n_in: number of features.
        networks: shape of its network.

    Returns:
        The policy.

    Raises:
        Refused: the space is of another kind, or has no bounds.
    """
    vector = isinstance(space, spaces.Box) and len(space.shape) == 1
    if not vector or not space.is_bounded():
        other = "; paramtree ppo takes it" if vector or isinstance(space, spaces.Discrete) else ""
        raise Refused(
            f"--env is {env!r}, whose actions are {space}; paramtree sac is for those of a Box of "
            f"one axis with finite bounds{other}"
        )
    model = _normal(nn.squashed_normal_head, n_in, space.shape[0], networks)
    return Policy(model, losses.tanh_normal)


def _normal(head: Callable[..., Model], n_in: int, n_out: int, networks: Networks) -> Model:
    """Model that writes ``loc`` and ``scale``."""
    layers: dict[str, Any] = {}
    if networks.hidden:
        activation = ACTIVATIONS[networks.activation]
        sizes = (n_in, *networks.hidden)
        layers["torso"] = nn.mlp(*sizes, activation=activation, final_activation=activation)
    layers["head"] = head(networks.hidden[-1] if networks.hidden else n_in, n_out)
    return td_model(nn.sequential(**layers), "features", ["loc", "scale"])


def perceptron(n_in: int, n_out: int, networks: Networks) -> Model:
    """Perceptron of the shape that the options give it."""
    return nn.mlp(n_in, *networks.hidden, n_out, activation=ACTIVATIONS[networks.activation])
