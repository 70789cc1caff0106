"""Tabular agents for grid worlds, with GROOVE's constants.

An agent's networks are tables over the observation's index, ``logits = weight[index] + 0.001 time
weight[-1]``, so that no one-hot vector is ever built.
"""

from torch import Tensor

from .. import nn, optim
from ..envs import LevelDistribution
from ..model import Model, compose, td_model
from .lifetime import Habitat
from .lpg_training import Population

OBSERVATION: list[str | tuple[str, ...]] = [("observation", "index"), ("observation", "time")]


def tabular_model(world: LevelDistribution, n_out: int, out_key: str) -> Model:
    """A table over a world's observations.

    Args:
        world: distribution over tabular levels.
        n_out: numbers for each observation.
        out_key: key that the model writes, ``[*B, n_out]``.

    Returns:
        The model; its params are the layer's, ``weight [n_states + 1, n_out]``.

    Raises:
        ValueError: the world's observations have no index.
    """
    if world.n_states is None:
        raise ValueError(
            f"tabular_model: {world.name} shows images, expected a tabular world such as 'small'"
        )
    return td_model(nn.table(world.n_states, n_out), OBSERVATION, out_key)


def _clipped_sgd(rate: float | Tensor, max_norm: float) -> optim.Transform:
    return optim.chain(clip=optim.clip_by_global_norm(max_norm), sgd=optim.sgd(rate))


def lpg_population(
    world: LevelDistribution,
    n_tasks: int,
    *,
    n_prediction: int = 8,
    workers: int = 64,
    lifetime: int | None = None,
    actor_rate: float | Tensor = 40.0,
    prediction_rate: float | Tensor = 4.0,
    critic_rate: float | Tensor = 4.0,
    max_norm: float = 0.5,
) -> Population:
    """Agents with a policy and a prediction, for Learned Policy Gradient; GROOVE's constants.

    Args:
        world: distribution over tabular levels.
        n_tasks: number of agents.
        n_prediction: m, the size of the prediction.
        workers: copies of the world in which each agent acts.
        lifetime: updates in a life, or None for the world's own.
        actor_rate: learning rate of the policy's table.
        prediction_rate: learning rate of the prediction's table.
        critic_rate: learning rate of the table of values that serves the meta-gradient.
        max_norm: norm at which each table's gradient is clipped.

    Returns:
        The population.

    Source: Jackson et al. (2023), hyper-parameters of the tabular agents.
    """
    agent = compose(
        actor=tabular_model(world, world.n_actions, "logits"),
        prediction=tabular_model(world, n_prediction, "prediction"),
    )
    rates = {"actor": actor_rate, "prediction": prediction_rate}
    optimizer = optim.partition(
        {f"{name}.**": _clipped_sgd(rate, max_norm) for name, rate in rates.items()}
    )
    lives = world.lifetime if lifetime is None else lifetime
    habitat = Habitat(agent, world.env, world.sample, optimizer, workers, lives)
    return Population(
        habitat,
        n_tasks,
        tabular_model(world, 1, "state_value"),
        _clipped_sgd(critic_rate, max_norm),
    )


def a2c_habitat(
    world: LevelDistribution,
    *,
    workers: int = 64,
    lifetime: int | None = None,
    actor_rate: float | Tensor = 40.0,
    critic_rate: float | Tensor = 4.0,
    max_norm: float = 0.5,
) -> Habitat:
    """Agents with a policy and values, for ``a2c_rule``, by default with GROOVE's constants.

    Args:
        world: distribution over tabular levels.
        workers: copies of the world in which each agent acts.
        lifetime: updates in a life, or None for the world's own.
        actor_rate: learning rate of the policy's table.
        critic_rate: learning rate of the table of values.
        max_norm: norm at which each table's gradient is clipped.

    Returns:
        The habitat.

    Source: Jackson et al. (2023), hyper-parameters of the tabular agents.
    """
    agent = compose(
        actor=tabular_model(world, world.n_actions, "logits"),
        critic=tabular_model(world, 1, "state_value"),
    )
    rates = {"actor": actor_rate, "critic": critic_rate}
    optimizer = optim.partition(
        {f"{name}.**": _clipped_sgd(rate, max_norm) for name, rate in rates.items()}
    )
    lives = world.lifetime if lifetime is None else lifetime
    return Habitat(agent, world.env, world.sample, optimizer, workers, lives)
