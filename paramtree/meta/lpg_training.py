"""Meta-training: a population of agents lives, and the rule learns from how they fare.

In each step every agent is updated K times by the rule, then acts once more. The rule descends

    mean over tasks of  -log pi(a|s) A  on that last trajectory  +  mean over the K updates of the
    regularizers

through the K updates. The advantages A come from a critic that each agent's life has of its own,
trained on every trajectory by squared error against lambda-returns; it serves the meta-gradient
alone, and the agent never sees it.

A whole training is one tree, and a step is a pure function of it, so saving the tree is a
checkpoint:

    rule         the rule's parameters
    average      running average of them, which varies less from step to step: the rule to use
    optimizer    state of the optimizer that trains them
    agents       {group: states [n]}, see ``lifetime``, each with a ``critic``: params and optimizer
    step         meta-steps done, int64
    key          key [2]

Source: Oh et al. (2020), "Discovering reinforcement learning algorithms", section 4 and algorithm
1; the critic as in GROOVE: Jackson et al. (2023).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import losses, rng, tree
from ..autodiff import detach, value_and_grad, vmap
from ..envs import rollout
from ..model import Model, with_next
from ..optim import Transform, apply_updates
from .inner_loop import inner_loop
from .lifetime import Habitat, births, older, renew
from .update_rule import UpdateRule


class Training(NamedTuple):
    """``init(key) -> state``, ``step(state) -> (state, metrics)``: pure, the state one tree."""

    init: Callable[[Tensor], TensorDict]
    step: Callable[[TensorDict], tuple[TensorDict, TensorDict]]


class Population(NamedTuple):
    """Agents of one kind that a rule is trained on: how many, where, and with what critics."""

    habitat: Habitat
    n_tasks: int
    critic: Model
    critic_optimizer: Transform


def lpg_training(
    rule: UpdateRule,
    populations: Mapping[str, Population],
    optimizer: Transform,
    *,
    updates: int = 5,
    length: int = 20,
    gamma: float | Tensor = 0.99,
    lmbda: float | Tensor = 0.95,
    average: float = 0.0,
    chunk: int | None = None,
    dist_class: Any = Categorical,
    **regularizers: Any,
) -> Training:
    """Meta-training of an update rule by the gradient through K updates.

    Args:
        rule: the rule, as ``lpg_rule`` makes it.
        populations: agents by group.
        optimizer: transform of the rule's gradients.
        updates: K, updates of each agent in a step.
        length: T, steps of each rollout.
        gamma: discount of the critics' returns.
        lmbda: decay of the critics' traces.
        average: decay of the running average of the rule's parameters, in [0, 1); 0 for no average.
        chunk: how many tasks go through the K updates at once, or None for all of a group; fewer
            need less memory, and the gradient is the mean over all of them.
        dist_class: distribution of the actions.
        regularizers: coefficients of ``losses.lpg_regularizer_loss``.

    Returns:
        The training. A step's metrics are 0-d: ``loss``, ``reward`` (a step, on the last
        trajectories), ``entropy``, ``prediction_entropy``, ``pi_hat_square``, ``y_hat_square``,
        ``value_loss``, ``gradient_norm`` and ``age``.

    Raises:
        ValueError: there is no population, or a size is below 1.
        TypeError: a population is something else.

    Source: Oh et al. (2020), algorithm 1.
    """
    if not populations:
        raise ValueError("lpg_training: no populations given, expected {group: Population}")
    for name, population in populations.items():
        if not isinstance(population, Population):
            kind = type(population).__name__
            raise TypeError(f"lpg_training: {name} is a {kind}, expected a Population")
    for name, number in (
        ("updates", updates),
        ("length", length),
        ("chunk", 1 if chunk is None else chunk),
    ):
        if number < 1:
            raise ValueError(f"lpg_training: {name} is {number}, expected at least 1")
    if not 0.0 <= average < 1.0:
        raise ValueError(f"lpg_training: average is {average}, expected a decay in [0, 1)")
    total_tasks = sum(population.n_tasks for population in populations.values())
    options = {"updates": updates, "length": length, "dist_class": dist_class}

    def init(key: Tensor) -> TensorDict:
        params, _ = rule.init(rng.fold_in(key, "rule"))
        agents = {
            name: _born(
                population, rule, rng.fold_in(rng.fold_in(key, "agents"), name), stagger=True
            )
            for name, population in populations.items()
        }
        step = torch.zeros((), dtype=torch.int64, device=key.device)
        # copies, as later on: a compiled step is compiled again where two names share their tensors
        parts = {"rule": params, "average": tree.map(torch.clone, params)}
        parts |= {"optimizer": optimizer.init(params), "agents": tree.new(agents)}
        return tree.new({**parts, "step": step, "key": key})

    def objective(params: TensorDict, name: str, agents: TensorDict, key: Tensor) -> Any:
        """Sum over some agents of a group of what the rule descends, and what became of them."""
        population = populations[name]
        habitat = population.habitat
        group = {name: (habitat.agent, habitat.env, agents["level"])}
        states, trajectories = inner_loop(
            rule,
            group,
            habitat.optimizer,
            params,
            tree.new({name: agents}),
            key,
            hyper=None,
            **options,
        )
        keys = rng.split(rng.fold_in(key, "validation"), agents.batch_size[0])
        judge = partial(_judge, population, length, gamma, lmbda, dist_class, regularizers)
        loss, after, metrics = vmap(judge)(states[name], trajectories[name], keys)
        return loss.sum(), (detach(after), metrics)

    def step(state: TensorDict) -> tuple[TensorDict, TensorDict]:
        key = rng.fold_in(state["key"], state["step"])
        gradient, agents, metrics = None, {}, []
        for name, population in populations.items():
            lives = _renewed(
                population,
                rule,
                state["agents", name],
                rng.fold_in(rng.fold_in(key, "renew"), name),
            )
            parts = []
            for start in range(0, population.n_tasks, chunk or population.n_tasks):
                some = _rows(lives, start, chunk or population.n_tasks)
                part_key = rng.fold_in(rng.fold_in(rng.fold_in(key, "live"), name), start)
                (_, (after, measured)), slope = value_and_grad(objective, has_aux=True)(
                    state["rule"], name, some, part_key
                )
                gradient = slope if gradient is None else tree.map(torch.add, gradient, slope)
                parts.append(after)
                metrics.append(measured)
            agents[name] = older(_joined(parts), updates)
        assert gradient is not None
        mean = tree.map(lambda x: x / total_tasks, gradient)
        changes, moments = optimizer.update(mean, state["optimizer"], state["rule"])
        columns = {
            name: torch.cat([part[name] for part in metrics]).mean() for name in metrics[0].keys()
        }
        ages = torch.cat([lives["age"].double() for lives in agents.values()]).mean()
        columns |= {"gradient_norm": tree.norm(mean), "age": ages}
        params = apply_updates(state["rule"], changes)
        after = {
            "rule": params,
            "average": tree.map(lambda old, p: p.lerp(old, average), state["average"], params),
            "optimizer": moments,
            "agents": tree.new(agents),
            "step": state["step"] + 1,
            "key": state["key"],
        }
        return detach(tree.new(after)), detach(tree.new(columns))

    return Training(init, step)


def _born(
    population: Population, rule: UpdateRule, key: Tensor, *, stagger: bool = False
) -> TensorDict:
    """New agents with new critics."""
    n = population.n_tasks
    agents = births(population.habitat, rule, key, n, stagger=stagger)

    def critic(key: Tensor) -> TensorDict:
        params, _ = population.critic.init(key)
        return tree.new({"params": params, "optimizer": population.critic_optimizer.init(params)})

    critics = vmap(critic)(rng.split(rng.fold_in(key, "critic"), n))
    return tree.new({**tree.entries(agents), "critic": critics}, agents.batch_size)


def _renewed(
    population: Population, rule: UpdateRule, agents: TensorDict, key: Tensor
) -> TensorDict:
    return renew(agents, population.habitat.lifetime, lambda: _born(population, rule, key))


def _rows(agents: TensorDict, start: int, count: int) -> TensorDict:
    return agents if count >= agents.batch_size[0] else tree.lock(agents[start : start + count])


def _joined(parts: list[TensorDict]) -> TensorDict:
    whole: Any = torch.cat(parts) if len(parts) > 1 else parts[0]  # pyright: ignore[reportArgumentType]
    return tree.lock(whole)


def _judge(
    population: Population,
    length: int,
    gamma: float | Tensor,
    lmbda: float | Tensor,
    dist_class: Any,
    regularizers: dict[str, Any],
    state: TensorDict,
    trajectories: list[TensorDict],
    key: Tensor,
) -> tuple[Tensor, TensorDict, TensorDict]:
    """What the rule descends for one agent that it has updated; the agent acts once more."""
    habitat = population.habitat
    acting = detach(state["params"])
    env_state, buffers, td = rollout(
        habitat.env,
        habitat.agent,
        acting,
        state["buffers"],
        state["level"],
        state["env"],
        key,
        length,
        dist_class,
    )
    critic = state["critic"]
    value_losses = []
    for seen in [*trajectories, td]:
        critic, advantage, value_loss = _update_critic(population, critic, seen, gamma, lmbda)
        value_losses.append(value_loss)
    outputs = habitat.agent(state["params"], state["buffers"], td)
    judged = tree.new({**tree.entries(outputs), "advantage": advantage}, td.batch_size)
    goal = losses.policy_gradient_loss(judged, dist_class)
    terms = []
    for written, following in zip(trajectories, [*trajectories[1:], outputs], strict=True):
        # what an update wrote, and the agent that it made, on that agent's own next trajectory
        made = {**tree.entries(following), "pi_hat": written["pi_hat"], "y_hat": written["y_hat"]}
        terms.append(
            losses.lpg_regularizer_loss(tree.new(made, td.batch_size), dist_class, **regularizers)
        )
    loss = losses.total(goal) + torch.stack([losses.total(term) for term in terms]).mean()
    metrics = {
        name: torch.stack([term[name] for term in terms]).mean()
        for name in ("entropy", "prediction_entropy", "pi_hat_square", "y_hat_square")
    }
    metrics |= {
        "loss": loss,
        "reward": td["next", "reward"].mean(),
        "value_loss": torch.stack(value_losses).mean(),
    }
    after = {**tree.entries(state), "env": env_state, "buffers": buffers, "critic": critic}
    return loss, tree.new(after), detach(tree.new(metrics))


def _update_critic(
    population: Population,
    critic: TensorDict,
    td: TensorDict,
    gamma: float | Tensor,
    lmbda: float | Tensor,
) -> tuple[TensorDict, Tensor, Tensor]:
    """One step of the critic on a trajectory, and the normalized advantages from before it."""
    data = tree.new({"observation": td["observation"], "next": td["next"]}, td.batch_size)
    data = detach(data)
    none = tree.new({})
    valued = with_next(population.critic)(critic["params"], none, data)
    targets = losses.add_advantage(valued, gamma, lmbda, normalize=True)

    def error(params: TensorDict) -> Tensor:
        value = population.critic(params, none, data)["state_value"].reshape(td.batch_size)
        return (value - targets["value_target"]).square().mean()

    value_loss, slope = value_and_grad(error)(critic["params"])
    updates, moments = population.critic_optimizer.update(
        slope, critic["optimizer"], critic["params"]
    )
    after = {"params": apply_updates(critic["params"], updates), "optimizer": moments}
    return tree.new(after), targets["advantage"], value_loss
