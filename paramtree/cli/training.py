"""What options mean: the rule, its agents, its training, and whom it is compared with."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import meta, optim, rng
from ..envs import LevelDistribution, level_distribution
from . import evaluation
from .options import Agents, LpgOptions

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
        lifetime_input=chosen.lifetime_input,
        initialization=chosen.initialization,
        y_hat_scale=chosen.y_hat_scale,
    )
    return meta.lpg_rule(
        network,
        gamma=options.objective.gamma,
        prediction_coeff=options.agents.prediction_coeff,
        full_stop=chosen.full_stop,
    )


def make_population(
    options: LpgOptions, name: str | LevelDistribution, n_tasks: int
) -> meta.Population:
    """Agents of a run that live on one distribution's levels.

    Args:
        options: the run's options.
        name: the distribution, or its name.
        n_tasks: how many agents.

    Returns:
        The population.

    Raises:
        ValueError: there is no such distribution, it is not tabular, or a number is out of range.
    """
    chosen = options.agents
    _require_agents(chosen)
    first, *rest = chosen.lifetime or (None,)
    world = named_world(name) if isinstance(name, str) else name
    tabular = world.n_states is not None  # only tables' rates are among the options
    population = meta.lpg_population(
        world,
        n_tasks,
        n_prediction=options.network.prediction_size,
        hidden=chosen.agent_hidden,
        workers=chosen.workers,
        lifetime=(first, rest[0]) if first is not None and rest else first,
        actor_rate=chosen.actor_rate if tabular else None,
        prediction_rate=chosen.prediction_rate if tabular else None,
        critic_rate=options.objective.critic_rate if tabular else None,
        max_norm=chosen.clip,
        arm_rates=chosen.arm_rates if tabular else (),
        arm_coeffs=chosen.arm_coeffs,
    )
    return population._replace(curriculum=make_curriculum(options, world, population))


def _require_agents(chosen: Agents) -> None:
    if chosen.workers < 1:
        raise ValueError(f"--workers is {chosen.workers}, expected at least 1")
    bounds = chosen.lifetime
    if len(bounds) > 2 or not all(n > 0 for n in bounds) or list(bounds) != sorted(bounds):
        raise ValueError(
            f"--lifetime is {' '.join(map(str, bounds))}, expected a number of at least 1, or two "
            "of which the second isn't below the first"
        )
    for flag, numbers in (("--arm-rates", chosen.arm_rates), ("--arm-coeffs", chosen.arm_coeffs)):
        if not all(0 <= x < math.inf for x in numbers):
            found = " ".join(map(str, numbers))
            raise ValueError(f"{flag} is {found}, expected numbers of at least 0")
    if chosen.arm_rates and chosen.actor_rate == 0:
        raise ValueError("--actor-rate is 0, expected more: --arm-rates are taken as shares of it")


def make_curriculum(
    options: LpgOptions, world: LevelDistribution, population: meta.Population
) -> meta.Curriculum | None:
    """Who chooses the levels of a run.

    Args:
        options: the run's options.
        world: the levels' distribution.
        population: the agents that are born on them.

    Returns:
        The curriculum; None for new levels.

    Raises:
        ValueError: a number is out of range.
    """
    chosen, objective = options.curricula, options.objective
    if chosen.curriculum == "none":
        return None
    if chosen.buffer < 2 * population.n_tasks:
        raise ValueError(
            f"--buffer is {chosen.buffer}, expected at least {2 * population.n_tasks}, two levels "
            "for each task of a distribution"
        )
    score, habitat = None, population.habitat
    if chosen.curriculum == "plr":
        score = meta.positive_value_loss(
            habitat,
            population.critic,
            length=options.length,
            gamma=objective.gamma,
            lmbda=objective.lmbda,
        )
    if chosen.curriculum == "groove":
        rival = meta.a2c_habitat(
            world,
            hidden=options.agents.agent_hidden,
            workers=options.agents.workers,
            lifetime=habitat.lifetime,
        )
        score = meta.algorithmic_regret(
            habitat, rival, horizon=world.max_steps, length=options.length, chunk=options.chunk
        )
    return meta.prioritized_level_replay(
        world.sample,
        score,
        size=chosen.buffer,
        replay=chosen.replay,
        temperature=chosen.temperature,
        staleness=chosen.staleness,
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
    rate = chosen.meta_rate
    optimizer = optim.adam(
        rate if chosen.meta_decay == 1.0 else optim.exponential_decay(rate, 1, chosen.meta_decay)
    )
    if chosen.meta_clip is not None:
        optimizer = optim.chain(clip=optim.clip_by_global_norm(chosen.meta_clip), adam=optimizer)
    rule, common = make_rule(options), {"length": options.length, "average": chosen.average}
    if chosen.method == "gradient":
        return meta.lpg_training(
            rule,
            populations,
            optimizer,
            updates=options.updates,
            gamma=chosen.gamma,
            lmbda=chosen.lmbda,
            chunk=options.chunk,
            task_clip=chosen.task_clip,
            validation=chosen.validation,
            value_coeff=chosen.value_coeff,
            policy_entropy_coeff=chosen.policy_entropy_coeff,
            prediction_entropy_coeff=chosen.prediction_entropy_coeff,
            pi_hat_coeff=chosen.pi_hat_coeff,
            y_hat_coeff=chosen.y_hat_coeff,
            **common,
        )
    widths = {"sigma": options.evolution.sigma, "sigma_decay": options.evolution.sigma_decay}
    if chosen.method == "pes":
        return meta.pes_training(
            rule, populations, optimizer, updates=options.updates, **widths, **common
        )
    return meta.es_training(
        rule,
        populations,
        optimizer,
        score=options.evolution.score,
        chunk=options.chunk,
        **widths,
        **common,
    )


def named_world(name: str) -> LevelDistribution:
    """Distribution over levels of a name that may end in a number of actions, as in ``dense@18``.

    Args:
        name: the name.

    Returns:
        The distribution.

    Raises:
        ValueError: there is none, or none with so many actions.
    """
    world, at, number = name.partition("@")
    if at and not number.isdecimal():
        raise ValueError(f"--levels has {name!r}, expected a number of actions after the @")
    return level_distribution(world, n_actions=int(number) if at else None)


def task_names(options: LpgOptions) -> list[str]:
    """Names of a run's tasks, as in ``small[3]``, in the order in which metrics have them."""
    shares = divided(options.tasks, options.levels)
    return [f"{name}[{i}]" for name, n in shares.items() for i in range(n)]


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
    chosen, workers = options.evaluation, options.evaluation.evaluate_workers
    return evaluation.held_out(
        named_world(chosen.evaluate_on or options.levels[0]),
        chosen.evaluate,
        options.seed,
        options.device,
        updates=chosen.evaluate_updates,
        length=options.length,
        workers=options.agents.workers if workers is None else workers,
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
    own = learned(options, setting)
    return [
        evaluation.learner("trained", setting, *own, params),
        evaluation.learner("untrained", setting, *own, first_params(options)),
        *evaluation.usual_opponents(setting),
    ]


def learned(
    options: LpgOptions, setting: evaluation.Setting
) -> tuple[meta.Habitat, meta.UpdateRule]:
    """The rule of a run, and its agents in a contest, without what a bandit would choose for them.

    Args:
        options: the run's options.
        setting: the levels.

    Returns:
        ``(habitat, rule)``.
    """
    agents = replace(options.agents, workers=setting.workers, arm_rates=(), arm_coeffs=())
    population = make_population(replace(options, agents=agents), setting.world, 1)
    return population.habitat, make_rule(options)
