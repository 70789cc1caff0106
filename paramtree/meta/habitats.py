"""Agents for a world's levels, with GROOVE's constants.

Where a world shows an index, an agent's networks are tables, ``logits = weight[index] + 0.001 time
weight[-1]``, so that no one-hot vector is ever built, and descend by SGD. Where it shows an image,
they are perceptrons over its pixels and 0.001 time, and descend by Adam. Both are clipped.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import nn, optim, tree
from ..envs import LevelDistribution
from ..model import Model, compose, td_model
from .bandit import Bandit
from .curriculum import Curriculum
from .lifetime import Habitat
from .population import Population

_INDEX: list[str | tuple[str, ...]] = [("observation", "index"), ("observation", "time")]
_IMAGE: list[str | tuple[str, ...]] = [("observation", "image"), ("observation", "time")]
_TIME_SCALE = 0.001


def agent_model(
    world: LevelDistribution, n_out: int, out_key: str, hidden: Sequence[int] = (32,)
) -> Model:
    """A network over a world's observations: a table, or a perceptron where it shows an image.

    Args:
        world: distribution over levels.
        n_out: numbers for each observation.
        out_key: key that the model writes, ``[*B, n_out]``.
        hidden: widths of the perceptron's hidden layers, with ReLU.

    Returns:
        The model; a table's params are ``weight [n_states + 1, n_out]``.

    Raises:
        ValueError: a size is below 1.
    """
    if world.n_states is not None:
        return td_model(nn.table(world.n_states, n_out), _INDEX, out_key)
    shape = world.observation_shape
    net = nn.mlp(shape.numel() + 1, *hidden, n_out, activation=torch.relu)

    def apply(
        params: TensorDict, buffers: TensorDict, seen: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, TensorDict]:
        image, time = seen
        pixels = image.flatten(image.ndim - len(shape))
        late = _TIME_SCALE * time.to(pixels.dtype).unsqueeze(-1)
        return net.apply(params, buffers, torch.cat([pixels, late], -1))

    return td_model(Model(net.init, apply), _IMAGE, out_key)


def lpg_population(
    world: LevelDistribution,
    n_tasks: int,
    *,
    n_prediction: int = 8,
    hidden: Sequence[int] = (32,),
    workers: int = 64,
    lifetime: int | tuple[int, int] | None = None,
    actor_rate: float | Tensor | None = None,
    prediction_rate: float | Tensor | None = None,
    critic_rate: float | Tensor | None = None,
    max_norm: float = 0.5,
    arm_rates: Sequence[float] = (),
    arm_coeffs: Sequence[float] = (),
    curriculum: Curriculum | None = None,
) -> Population:
    """Agents with a policy and a prediction, for Learned Policy Gradient; GROOVE's constants.

    Args:
        world: distribution over levels.
        n_tasks: number of agents.
        n_prediction: m, the size of the prediction.
        hidden: widths of the hidden layers, where the world shows an image.
        workers: copies of the world in which each agent acts.
        lifetime: updates in a life, the bounds of a log-uniform draw, or None for the world's own.
        actor_rate: learning rate of the policy; when None, 40 for a table and 1e-3 else.
        prediction_rate: of the prediction; when None, 4 and 1e-3.
        critic_rate: of the values that serve the meta-gradient; when None, 4 and 1e-3.
        max_norm: norm at which each network's gradient is clipped.
        arm_rates: learning rates of the policy among which a bandit picks for each life; the
            prediction's keeps its ratio to it.
        arm_coeffs: weights of the predictions' divergence among which it picks, in all
            combinations with the rates.
        curriculum: who chooses the levels, or None for samples of the world.

    Returns:
        The population.

    Source: Jackson et al. (2023), hyper-parameters; Oh et al. (2020) for the bandit.
    """
    agent = compose(
        actor=agent_model(world, world.n_actions, "logits", hidden),
        prediction=agent_model(world, n_prediction, "prediction", hidden),
    )
    first, second, third = _rates(world, actor_rate, prediction_rate, critic_rate)
    parts = {"actor": first, "prediction": second}
    optimizer: optim.Transform | Callable[[TensorDict], optim.Transform]
    optimizer = _by_name(world, parts, max_norm)
    bandit = None
    if arm_rates or arm_coeffs:
        bandit, optimizer = _bandit(world, parts, max_norm, arm_rates, arm_coeffs)
    lives = world.lifetime if lifetime is None else lifetime
    habitat = Habitat(agent, world.env, world.sample, optimizer, workers, lives)
    critic = agent_model(world, 1, "state_value", hidden)
    descent = _clipped(world, third, max_norm)
    return Population(habitat, n_tasks, critic, descent, bandit, curriculum)


def a2c_habitat(
    world: LevelDistribution,
    *,
    hidden: Sequence[int] = (32,),
    workers: int = 64,
    lifetime: int | tuple[int, int] | None = None,
    actor_rate: float | Tensor | None = None,
    critic_rate: float | Tensor | None = None,
    max_norm: float = 0.5,
) -> Habitat:
    """Agents with a policy and values, for ``a2c_rule``, by default with GROOVE's constants.

    Args:
        world: distribution over levels.
        hidden: widths of the hidden layers, where the world shows an image.
        workers: copies of the world in which each agent acts.
        lifetime: updates in a life, the bounds of a log-uniform draw, or None for the world's own.
        actor_rate: learning rate of the policy; when None, 40 for a table and 1e-3 else.
        critic_rate: of the values; when None, 4 and 1e-3.
        max_norm: norm at which each network's gradient is clipped.

    Returns:
        The habitat.

    Source: Jackson et al. (2023), hyper-parameters.
    """
    agent = compose(
        actor=agent_model(world, world.n_actions, "logits", hidden),
        critic=agent_model(world, 1, "state_value", hidden),
    )
    first, _, third = _rates(world, actor_rate, None, critic_rate)
    optimizer = _by_name(world, {"actor": first, "critic": third}, max_norm)
    lives = world.lifetime if lifetime is None else lifetime
    return Habitat(agent, world.env, world.sample, optimizer, workers, lives)


Rate = float | Tensor


def _rates(world: LevelDistribution, *given: Rate | None) -> list[Rate]:
    """Learning rates of policy, prediction and values."""
    usual = (40.0, 4.0, 4.0) if world.n_states is not None else (1e-3, 1e-3, 1e-3)
    return [own if rate is None else rate for rate, own in zip(given, usual, strict=True)]


def _clipped(world: LevelDistribution, rate: Rate, max_norm: float) -> optim.Transform:
    clip = optim.clip_by_global_norm(max_norm)
    if world.n_states is not None:
        return optim.chain(clip=clip, sgd=optim.sgd(rate))
    return optim.chain(clip=clip, adam=optim.adam(rate))


def _by_name(world: LevelDistribution, rates: dict[str, Rate], max_norm: float) -> optim.Transform:
    return optim.partition(
        {f"{name}.**": _clipped(world, rate, max_norm) for name, rate in rates.items()}
    )


def _bandit(
    world: LevelDistribution,
    rates: dict[str, Rate],
    max_norm: float,
    arm_rates: Sequence[float],
    arm_coeffs: Sequence[float],
) -> tuple[Bandit, Callable[[TensorDict], optim.Transform]]:
    """All combinations as arms, and the optimizer of one."""
    scales = [rate / rates["actor"] for rate in arm_rates] or [1.0]
    pairs = list(itertools.product(scales, arm_coeffs or [None]))
    n = len(pairs)
    arms = {"optimizer": tree.new({"scale": torch.tensor([float(s) for s, _ in pairs])}, (n,))}
    coeffs = [float(c) for _, c in pairs if c is not None]
    loss = {"prediction_coeff": torch.tensor(coeffs)} if coeffs else {}
    arms["loss"] = tree.new(loss, (n,))

    def optimizer(hyper: TensorDict) -> optim.Transform:
        scale = hyper["scale"]
        return _by_name(world, {name: scale * rate for name, rate in rates.items()}, max_norm)

    return Bandit(tree.new(arms, (n,))), optimizer
