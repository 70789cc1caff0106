"""Meta-training by evolution strategies: whole lives, from birth to death, and no gradient through.

In each step every task is lived twice, by the same newborn agent on the same level with the same
random numbers, once under the rule moved by ``+σε`` and once under the rule moved by ``-σε``. How
the two fared, their *fitness*, weighs ε:

    rule += rate · mean over tasks of  (rank(+) - rank(-)) ε / 2σ

with the rank 1 for the better of the two and 0 for the other. Nothing is differentiated but the
agents' own losses, so memory does not grow with the length of a life, and a life counts as a whole:
what an update does for those that come much later is not cut off.

A whole training is one tree, as in ``lpg_training``:

    rule         the rule's parameters
    average      running average of them
    optimizer    state of the optimizer that trains them
    sigma        σ
    agents       {group: states [n]}, the newborn ones that live next
    bandits, curricula   {group: state}, where a group has one
    step         meta-steps done, int64
    key          key [2]

A pair whose fitness is not finite has no part in the step.

Source: Salimans et al. (2017), "Evolution strategies as a scalable alternative to reinforcement
learning"; Jackson et al. (2024), "Discovering temporally-aware reinforcement learning algorithms",
for lives in pairs and their ranks.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import rng, tree
from ..autodiff import vmap
from ..optim import Transform
from ._check import require_average
from .es_parts import (
    ascent,
    fitness_metrics,
    groove_optimizer,
    newborn,
    require_widths,
)
from .lifetime import Habitat
from .lives import episode_return, lives
from .perturb import BASES, RANKS, displaced, perturbations, require_one_of
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


def es_training(
    rule: UpdateRule,
    populations: Mapping[str, Population],
    optimizer: Transform | None = None,
    *,
    sigma: float = 0.1,
    sigma_decay: float = 1.0,
    sigma_limit: float = 0.0,
    rank: str | None = "pair",
    basis: str = "normal",
    length: int = 20,
    score: str = "final",
    horizon: int = 100,
    average: float = 0.0,
    chunk: int | None = None,
    dist_class: Any = Categorical,
) -> Training:
    """Meta-training of an update rule by evolution strategies over whole lives.

    Args:
        rule: the rule.
        populations: agents by group; each task is lived by two. Their critics are not used.
        optimizer: transform of the rule's gradients, which are those of minus the fitness; when
            None, GROOVE's: Adam with a rate of 0.01 that decays by 0.999 a step, down to 1e-5. One
            with weight decay keeps the rule small.
        sigma: σ of the first step.
        sigma_decay: factor of σ from step to step.
        sigma_limit: σ stops there.
        rank: what takes the place of fitness, ``"pair"``, ``"centered"`` or None, see
            ``es_gradient``.
        basis: ``"normal"`` or ``"orthogonal"`` perturbations, see ``perturbations``.
        length: T, steps of each rollout.
        score: what fitness is. ``"final"``: mean reward per step over the last fifth of the life's
            updates; ``"lifetime"``: over all of them; ``"return"``: the mean undiscounted return of
            the agent at its end, over one episode of each worker from its start, as in GROOVE.
        horizon: steps in which such an episode is looked at; the rest of it doesn't count.
        average: decay of the running average of the rule's parameters, in [0, 1); 0 for no average.
        chunk: how many pairs live at once, or None for all of a group; fewer need less memory, and
            the numbers are the same.
        dist_class: distribution of the actions.

    Returns:
        The training. A step's metrics are 0-d: ``fitness``, ``fitness_min``, ``fitness_max``,
        ``reward`` (a step, over the last fifth of lives), ``lifetime`` (the mean number of
        updates), ``sigma`` and ``gradient_norm``, over the pairs whose fitness is finite; and
        ``bad`` bool ``[n_tasks]`` of all groups in their order, which says whose is not.

        In compiled code and under vmap all agents of a group go through the loop of the longest
        possible life, and updates after an agent's own end are discarded. Else they leave it.

    Raises:
        ValueError: there is no population, or an option is out of range or not known.
        TypeError: an argument is of another kind.

    Source: Jackson et al. (2024), section 4.2 and appendix.
    """
    fn = "es_training"
    descent = groove_optimizer() if optimizer is None else optimizer
    counts = {"length": length, "horizon": horizon, "chunk": chunk}
    require_training(fn, rule, populations, descent, **counts)
    require_widths(fn, sigma=sigma, sigma_decay=sigma_decay, sigma_limit=sigma_limit)
    require_average(fn, average)
    require_one_of(fn, "rank", rank, RANKS)
    require_one_of(fn, "basis", basis, BASES)
    require_one_of(fn, "score", score, ("final", "lifetime", "return"))

    def init(key: Tensor) -> TensorDict:
        width = torch.tensor(float(sigma), device=key.device)
        parts = first_groups(rule, populations, key)
        groups = {name: {**own, "agents": newborn(own["agents"])} for name, own in parts.items()}
        return first_state(rule, descent, key, {"sigma": width, **by_kind(groups)})

    def paired(
        habitat: Habitat, params: TensorDict, agents: TensorDict, noise: TensorDict, keys: Tensor
    ) -> tuple[TensorDict, Tensor, Tensor]:
        """Agents after the lives of some pairs, their fitness and final rewards ``[n, 2]``."""
        n = keys.shape[0]
        rows = torch.arange(2 * n, device=keys.device)
        moved = tree.concat([displaced(params, noise, sign) for sign in (1, -1)])
        moved = tree.take(moved, rows.reshape(2, n).T.flatten())  # partners side by side
        agents, keys = tree.take(agents, rows // 2), keys[rows // 2]
        after, final, whole = lives(
            rule, habitat, moved, agents, keys, length=length, dist_class=dist_class
        )
        fitness = whole if score == "lifetime" else final
        if score == "return":
            fitness = vmap(partial(episode_return, habitat, horizon, dist_class))(after, keys)
        return after, fitness.reshape(n, 2), final.reshape(n, 2)

    @torch.no_grad()
    def step(state: TensorDict) -> tuple[TensorDict, TensorDict]:
        key, sigma = rng.fold_in(state["key"], state["step"]), state["sigma"]
        groups, noises, scores, finals, lengths = {}, [], [], [], []
        for name, population in populations.items():
            own, habitat, n = rng.fold_in(key, name), population.habitat, population.n_tasks
            now: dict[str, Any]
            now = {kind: state[kind, name] for kind in ("agents", *extras(population))}
            noise = perturbations(rng.fold_in(own, "noise"), state["rule"], n, basis=basis)
            keys, moves = rng.split(rng.fold_in(own, "live"), n), tree.scale(noise, sigma)
            parts = []
            for start in range(0, n, chunk or n):
                rows = slice(start, start + (chunk or n))
                some = tree.lock(now["agents"][rows]), tree.lock(moves[rows])
                after, fitness, final = paired(habitat, state["rule"], *some, keys[rows])
                scores.append(fitness)
                finals.append(final)
                parts.append(_better(after, fitness))
            noises.append(noise)
            lengths.append(now["agents"]["lifetime"])
            ended = {**now, "agents": tree.concat(parts) if len(parts) > 1 else parts[0]}
            groups[name] = renewed(population, rule, ended, rng.fold_in(own, "renew"))
        fitness, final = torch.cat(scores), torch.cat(finals)
        gradient, fine = ascent(fitness[:, 0], fitness[:, 1], noises, sigma, rank)
        columns = {
            **fitness_metrics(fitness, fine),
            "reward": finite_mean(final.mean(1), fine),
            "lifetime": finite_mean(torch.cat(lengths).double(), fine),
            "sigma": sigma,
            "gradient_norm": tree.norm(gradient),
            "bad": ~fine,
        }
        others = {"sigma": (sigma * sigma_decay).clamp(min=sigma_limit), **by_kind(groups)}
        return descended(state, descent, gradient, average, others), tree.new(columns)

    return Training(init, step)


def _better(after: TensorDict, fitness: Tensor) -> TensorDict:
    """Of each pair of agents ``[2 n]`` the one that fared better; none where one's isn't finite."""
    n = fitness.shape[0]
    rows = torch.arange(n, device=fitness.device)
    best = tree.take(after, 2 * rows + (fitness[:, 1] > fitness[:, 0]).long())
    fine = fitness.isfinite().all(1)
    return tree.replace(best, {"earned": torch.where(fine, best["earned"], torch.nan)})
