"""What options mean: the rule, its agents, its training, and whom it is compared with."""

from collections.abc import Callable
from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import meta, optim, rng
from ..envs import level_distribution
from . import evaluation
from .options import A2C, LpgOptions

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {"none": None, "relu": torch.relu}


def make_rule(options: LpgOptions) -> meta.UpdateRule:
    """The learned rule of a run.

    Args:
        options: the run's options.

    Returns:
        The rule.

    Raises:
        ValueError: a size is out of range.
    """
    chosen = options.network
    network = meta.lpg_network(
        chosen.prediction_size,
        chosen.hidden,
        cell=chosen.cell,
        n_embedding=chosen.embedding,
        gamma_input=chosen.gamma_input,
        activation=_ACTIVATIONS[chosen.activation],
    )
    return meta.lpg_rule(
        network, gamma=options.objective.gamma, prediction_coeff=options.agents.prediction_coeff
    )


def make_population(options: LpgOptions, name: str, n_tasks: int) -> meta.Population:
    """Agents of a run that live on one distribution's levels.

    Args:
        options: the run's options.
        name: the distribution's name.
        n_tasks: how many agents.

    Returns:
        The population.

    Raises:
        ValueError: there is no such distribution, it is not tabular, or a number is out of range.
    """
    chosen = options.agents
    if chosen.workers < 1 or (chosen.lifetime is not None and chosen.lifetime < 1):
        raise ValueError(
            f"--workers is {chosen.workers} and --lifetime {chosen.lifetime}, expected at least 1"
        )
    return meta.lpg_population(
        level_distribution(name),
        n_tasks,
        n_prediction=options.network.prediction_size,
        workers=chosen.workers,
        lifetime=chosen.lifetime,
        actor_rate=chosen.actor_rate,
        prediction_rate=chosen.prediction_rate,
        critic_rate=options.objective.critic_rate,
        max_norm=chosen.clip,
    )


def make_training(options: LpgOptions) -> meta.Training:
    """The meta-training of a run.

    Args:
        options: the run's options.

    Returns:
        The training.

    Raises:
        ValueError: a number or a name is not one of those that can be.
    """
    chosen = options.objective
    shares = divided(options.tasks, options.levels)
    populations = {name: make_population(options, name, n) for name, n in shares.items()}
    optimizer = optim.adam(chosen.meta_rate)
    if chosen.meta_clip is not None:
        optimizer = optim.chain(clip=optim.clip_by_global_norm(chosen.meta_clip), adam=optimizer)
    return meta.lpg_training(
        make_rule(options),
        populations,
        optimizer,
        updates=options.updates,
        length=options.length,
        gamma=chosen.gamma,
        lmbda=chosen.lmbda,
        average=chosen.average,
        chunk=options.chunk,
        policy_entropy_coeff=chosen.policy_entropy_coeff,
        prediction_entropy_coeff=chosen.prediction_entropy_coeff,
        pi_hat_coeff=chosen.pi_hat_coeff,
        y_hat_coeff=chosen.y_hat_coeff,
    )


def divided(tasks: int, levels: tuple[str, ...]) -> dict[str, int]:
    """Number of tasks on each distribution, as equal as can be.

    Args:
        tasks: how many in all.
        levels: the distributions' names.

    Returns:
        ``{name: number}``.

    Raises:
        ValueError: there is none, one comes twice, or there are fewer tasks than names.
    """
    if not levels or len(set(levels)) < len(levels):
        names = ", ".join(levels) or "nothing"
        raise ValueError(f"--levels is {names}, expected names that differ, at least one")
    if tasks < len(levels):
        raise ValueError(f"--tasks is {tasks}, expected at least {len(levels)}, one for each level")
    each, more = divmod(tasks, len(levels))
    return {name: each + (i < more) for i, name in enumerate(levels)}


def training_key(options: LpgOptions) -> Tensor:
    """Key of a run's first state; evaluation's is another, by its name."""
    return rng.fold_in(rng.key(options.seed, options.device), "training")


def first_params(options: LpgOptions) -> TensorDict:
    """Parameters of a run's rule before its first step."""
    return make_rule(options).init(rng.fold_in(training_key(options), "rule"))[0]


def make_setting(options: LpgOptions) -> evaluation.Setting:
    """Levels on which a run's rule is looked at, and for how long.

    Args:
        options: the run's options.

    Returns:
        The setting.

    Raises:
        ValueError: there is no such distribution, or a number is out of range.
    """
    chosen = options.evaluation
    return evaluation.held_out(
        level_distribution(chosen.evaluate_on or options.levels[0]),
        chosen.evaluate,
        options.seed,
        options.device,
        updates=chosen.evaluate_updates,
        length=options.length,
        workers=chosen.evaluate_workers or options.agents.workers,
    )


def contestants(
    options: LpgOptions, params: TensorDict, setting: evaluation.Setting
) -> list[evaluation.Part]:
    """The learned rule and whom it is compared with.

    Args:
        options: the options of the run that the rule comes from.
        params: the rule's parameters.
        setting: the levels.

    Returns:
        The contestants.

    Raises:
        ValueError: the levels are not tabular.
    """
    sized = replace(options, agents=replace(options.agents, workers=setting.workers))
    habitat = make_population(sized, setting.world.name, 1).habitat
    rule = make_rule(options)
    return [
        evaluation.learner("trained", setting, habitat, rule, params),
        evaluation.learner("untrained", setting, habitat, rule, first_params(options)),
        evaluation.a2c(setting, A2C),
        evaluation.random(setting),
        evaluation.optimum(setting),
    ]
