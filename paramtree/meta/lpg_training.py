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
    agents       {group: states [n]}, see ``lifetime``, each with a ``critic``: params and
                 optimizer; ``earned``, the reward of this life, and ``episodes`` that ended in it
    bandits      {group: state}, where a group has one, and each agent then its ``arm``
    curricula    {group: state}, where a group has one
    step         meta-steps done, int64
    key          key [2]

A task whose loss or gradient is not finite has no part in the step: the others go on as if it
weren't there, and in its place an agent is born with the next step. Where no task is left the
gradient is zero.

Source: Oh et al. (2020), "Discovering reinforcement learning algorithms", section 4 and algorithm
1; the critic as in GROOVE: Jackson et al. (2023).
"""

import difflib
import inspect
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import losses, rng, tree
from ..autodiff import detach, value_and_grad, vmap
from ..envs import rollout
from ..model import with_next
from ..optim import Transform, apply_updates
from ._check import require_average, require_real
from .inner_loop import train_agent
from .lifetime import older
from .population import (
    Population,
    by_kind,
    extras,
    finite_mean,
    renewed,
    require_training,
)
from .training import Training, descended, first_groups, first_state
from .update_rule import UpdateRule


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
    task_clip: float | None = None,
    validation: str = "last",
    value_coeff: float | Tensor | None = None,
    dist_class: Any = Categorical,
    **regularizers: Any,
) -> Training:
    """Meta-training of an update rule by the gradient through K updates.

    Args:
        rule: the rule, as ``lpg_rule`` makes it.
        populations: agents by group.
        optimizer: transform of the rule's gradients.
        updates: K, updates of each agent in a step; a life of another length than a multiple of K
            lasts to the end of the step that it ends in.
        length: T, steps of each rollout.
        gamma: discount of the critics' returns.
        lmbda: decay of the critics' traces.
        average: decay of the running average of the rule's parameters, in [0, 1); 0 for no average.
        chunk: how many tasks go through the K updates at once, or None for all of a group; fewer
            need less memory, and the gradient is the mean over all of them.
        task_clip: norm at which each task's gradient is clipped before the mean over tasks, so
            that no single life decides where the rule goes; None for no clipping.
        validation: the agents whose policy gradient the rule descends: the ``"last"``, after K
            updates, on one more trajectory, as in the paper; or ``"all"``, the mean over those
            after each update, each on its own next trajectory, which has been played anyway.
        value_coeff: weight of ``losses.lpg_value_loss``, mean over the K updates, by which the rule
            learns to write predictions that tell of the critic's lambda-returns; None for none, as
            in the paper, where whatever predictions come to mean comes from the policy gradient.
            Under a rule with ``full_stop`` it reaches no more than the embedding.
        dist_class: distribution of the actions.
        regularizers: coefficients of ``losses.lpg_regularizer_loss``.

    Returns:
        The training. A step's metrics are 0-d: ``loss``, ``reward`` (a step, on the last
        trajectories), ``entropy``, ``prediction_entropy``, ``pi_hat_square``, ``y_hat_square``,
        ``value_loss``, ``gradient_norm`` and ``age``, with ``value_coeff`` ``value_explained``,
        means over the tasks whose numbers are finite, and ``bad`` bool ``[n_tasks]`` of all groups
        in their order, which says whose are not. A step is differentiable in the state and in all
        numbers here that are tensors; actions, once drawn, are data.

    Raises:
        ValueError: there is no population, or an option is out of range or not known.
        TypeError: an argument is of another kind.

    Source: Oh et al. (2020), algorithm 1.
    """
    fn = "lpg_training"
    counts = {"updates": updates, "length": length, "chunk": chunk}
    require_training(fn, rule, populations, optimizer, **counts)
    _require_coefficients(fn, regularizers)
    require_average(fn, average)
    if task_clip is not None:
        require_real(fn, "task_clip", task_clip, above=0.0)
    if validation not in ("last", "all"):
        raise ValueError(f"{fn}: validation is {validation!r}, expected 'last' or 'all'")
    options = {"updates": updates, "length": length, "dist_class": dist_class}

    def init(key: Tensor) -> TensorDict:
        groups = first_groups(rule, populations, key)
        return first_state(rule, optimizer, key, by_kind(groups))

    def objective(params: TensorDict, name: str, agent: TensorDict, key: Tensor) -> Any:
        """What the rule descends for one agent of a group, and what became of it."""
        population = populations[name]
        habitat = population.habitat
        live = partial(train_agent, rule, habitat.agent, habitat.env, habitat.optimizer, params)
        state, trajectories = live(agent["level"], agent, key, **options)
        judge = partial(_judge, population, length, gamma, lmbda, validation, dist_class)
        loss, after, metrics = judge(
            value_coeff, regularizers, state, trajectories, rng.fold_in(key, "validation")
        )
        return loss, (after, metrics)

    differentiated = value_and_grad(objective, has_aux=True)

    def lived(
        params: TensorDict, name: str, agents: TensorDict, keys: Tensor
    ) -> tuple[TensorDict, TensorDict, TensorDict, Tensor]:
        """Gradient of some agents, what became of them, metrics, and whose numbers are finite."""

        def one(agent: TensorDict, key: Tensor) -> Any:
            (_, (after, metrics)), slope = differentiated(params, name, agent, key)
            return slope, after, metrics, tree.norm(slope)

        slopes, after, metrics, norms = vmap(one)(agents, keys)
        fine = norms.isfinite() & metrics["loss"].isfinite()
        share = torch.ones_like(norms)
        if task_clip is not None:
            large = norms > task_clip
            share = torch.where(large, task_clip / torch.where(large, norms, 1.0), 1.0)
        dead = tree.replace(agents, {"age": agents["lifetime"], "earned": norms * math.nan})
        lives = tree.where(fine, older(after, updates), dead)
        return _weighted(params, slopes, share, fine), lives, metrics, fine

    def step(state: TensorDict) -> tuple[TensorDict, TensorDict]:
        key = rng.fold_in(state["key"], state["step"])
        total, groups, metrics, fine = None, {}, [], []
        for name, population in populations.items():
            now = {kind: state[kind, name] for kind in ("agents", *extras(population))}
            lives = renewed(population, rule, now, rng.fold_in(rng.fold_in(key, "renew"), name))
            n = population.n_tasks
            keys = rng.split(rng.fold_in(rng.fold_in(key, "live"), name), n)
            parts = []
            for start in range(0, n, chunk or n):
                stop = start + (chunk or n)
                some = _rows(lives["agents"], start, stop)
                slope, after, measured, well = lived(state["rule"], name, some, keys[start:stop])
                total = slope if total is None else tree.map(torch.add, total, slope)
                parts.append(after)
                metrics.append(measured)
                fine.append(well)
            groups[name] = {**lives, "agents": _joined(parts)}
        fine = torch.cat(fine)
        columns = {
            name: finite_mean(torch.cat([part[name] for part in metrics]), fine)
            for name in metrics[0].keys()
        }
        assert total is not None
        mean = tree.map(lambda x: x / fine.sum().clamp(min=1), total)
        ages = torch.cat([group["agents"]["age"].double() for group in groups.values()])
        columns |= {"gradient_norm": tree.norm(mean), "age": finite_mean(ages, fine), "bad": ~fine}
        after = descended(state, optimizer, mean, average, by_kind(groups))
        return after, tree.new(columns)

    return Training(init, step)


def _require_coefficients(fn: str, regularizers: dict[str, Any]) -> None:
    """Refuse keywords that are no regularizer's coefficient."""
    parameters = inspect.signature(losses.lpg_regularizer_loss).parameters
    known = [name for name in parameters if name.endswith("_coeff")]
    for name in regularizers:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{fn}: {name} is no option, expected one of {', '.join(known)}; the nearest is "
                f"{near!r}"
            )


def _weighted(params: TensorDict, slopes: TensorDict, share: Tensor, fine: Tensor) -> TensorDict:
    """Sum over tasks of shares of their gradients ``[n, ...]``, without those that aren't fine."""

    def added(x: Tensor) -> Tensor:
        column = (-1, *[1] * (x.ndim - 1))
        kept = torch.where(fine.view(column), x, 0.0)
        return (share.to(x.dtype).view(column) * kept).sum(0)

    _, structure = tree.flatten(params)
    return tree.unflatten(structure, [added(x) for x in tree.leaves(slopes)])


def _rows(agents: TensorDict, start: int, stop: int) -> TensorDict:
    whole = start == 0 and stop >= agents.batch_size[0]
    return agents if whole else tree.lock(agents[start:stop])


def _joined(parts: list[TensorDict]) -> TensorDict:
    whole: Any = torch.cat(parts) if len(parts) > 1 else parts[0]  # pyright: ignore[reportArgumentType]
    return tree.lock(whole)


def _judge(
    population: Population,
    length: int,
    gamma: float | Tensor,
    lmbda: float | Tensor,
    validation: str,
    dist_class: Any,
    value_coeff: float | Tensor | None,
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
    value_losses, valued = [], []
    for seen in [*trajectories, td]:
        critic, targets, value_loss = _update_critic(population, critic, seen, gamma, lmbda)
        value_losses.append(value_loss)
        valued.append(targets)
    outputs = habitat.agent(state["params"], state["buffers"], td)
    later = [*trajectories[1:], outputs]  # of the agent after each update
    judged = list(zip(later, valued[1:], strict=True))
    goals = []
    for played, targets in judged if validation == "all" else judged[-1:]:
        made = {**tree.entries(played), "advantage": targets["advantage"]}
        goals.append(losses.policy_gradient_loss(tree.new(made, td.batch_size), dist_class))
    terms = []
    for written, following in zip(trajectories, later, strict=True):
        # what an update wrote, and the agent that it made, on that agent's own next trajectory
        made = {**tree.entries(following), "pi_hat": written["pi_hat"], "y_hat": written["y_hat"]}
        terms.append(
            losses.lpg_regularizer_loss(tree.new(made, td.batch_size), dist_class, **regularizers)
        )
    goal, regularizer = (
        torch.stack([losses.total(part) for part in parts]).mean() for parts in (goals, terms)
    )
    loss = goal + regularizer
    metrics = {
        name: torch.stack([term[name] for term in terms]).mean()
        for name in ("entropy", "prediction_entropy", "pi_hat_square", "y_hat_square")
    }
    if value_coeff is not None:
        told = [
            _value_loss(played, targets, value_coeff)
            for played, targets in zip(trajectories, valued[:-1], strict=True)
        ]
        loss = loss + torch.stack([losses.total(part) for part in told]).mean()
        metrics["value_explained"] = torch.stack([part["value_explained"] for part in told]).mean()
    metrics |= {
        "loss": loss,
        "reward": td["next", "reward"].mean(),
        "value_loss": torch.stack(value_losses).mean(),
    }
    played, workers = [*trajectories, td], td.batch_size[0]
    earned, episodes = (
        torch.stack([seen["next", name].sum() for seen in played]).sum() / workers
        for name in ("reward", "done")
    )
    after = {
        **tree.entries(state),
        "env": env_state,
        "buffers": buffers,
        "critic": critic,
        "earned": state["earned"] + earned,
        "episodes": state["episodes"] + episodes,
    }
    return loss, tree.new(after), tree.new(metrics)


def _value_loss(td: TensorDict, targets: TensorDict, value_coeff: float | Tensor) -> TensorDict:
    """How well what an agent predicted, when it made a trajectory, tells of the returns."""
    made = {**tree.entries(td), "value_target": targets["value_target"]}
    return losses.lpg_value_loss(tree.new(made, td.batch_size), value_coeff=value_coeff)


def _update_critic(
    population: Population,
    critic: TensorDict,
    td: TensorDict,
    gamma: float | Tensor,
    lmbda: float | Tensor,
) -> tuple[TensorDict, TensorDict, Tensor]:
    """One step of the critic on a trajectory, and from before it normalized advantages, returns."""
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
    return tree.new(after), targets, value_loss
