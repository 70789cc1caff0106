"""Persistent evolution strategies: unbiased for a whole life, though each step sees a part of it.

An inner loop of n steps, rated after each, has the value ``mean_k outer(hyper, s_k)``. Evolution
strategies on a window of K steps from where an unperturbed run stands know nothing of how hyper
acted before, so their estimate is biased. Here each *particle* is a pair of runs, one under
``hyper + σε`` and one under ``hyper - σε`` with a new ε for each window, and both go on from where
they stand themselves. What moved them so far is ``ξ = Σ ε / σ`` over the windows of their life, and

    mean over particles of  (value(+) - value(-)) ξ / 2

with the values of this window is, averaged over the windows of a life, an unbiased estimate of the
gradient of the value smoothed by the noise. The variance of a window grows with ξ, that is with its
number. Nothing is differentiated, and memory does not grow with n or K.

Source: Vicol, Metz & Sohl-Dickstein (2021), "Unbiased gradient estimation in unrolled computation
graphs with persistent evolution strategies", section 4 and algorithm 2.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import rng, tree
from ..autodiff import vmap
from ..autodiff.gradients import kind_of
from ..optim import Transform
from ._check import (
    Hyper,
    require_average,
    require_count,
    require_mode,
    require_real,
    require_scalar,
)
from .es_parts import (
    ascent,
    fitness_metrics,
    groove_optimizer,
    require_widths,
)
from .lifetime import Habitat
from .lives import final_share, updated
from .loop import Outer
from .perturb import displaced, es_gradient, perturbations, require_one_of
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

Stepper = Callable[[Any, Any, Tensor], Any]


class Persistent(NamedTuple):
    """``init(hyper, key) -> particles``, ``step(hyper, particles) -> (particles, (value, grads))``.

    Particles are one tree: ``up`` and ``down``, the states of both runs ``[N]``, ``noise``, what
    has moved them apart, ``[N]``, ``age`` int64 ``[N]``, ``count``, the windows so far, and
    ``key``.
    """

    init: Callable[[Any, Tensor], TensorDict]
    step: Callable[[Any, TensorDict], tuple[TensorDict, tuple[Tensor, Any]]]


def pes(
    step: Stepper,
    outer: Outer,
    steps: int,
    born: Callable[[Tensor], Any],
    *,
    window: int,
    particles: int = 32,
    sigma: Hyper = 0.1,
    basis: str = "normal",
    stagger: bool = False,
) -> Persistent:
    """Gradient of an inner loop's value, a window at a time, estimated from values only.

    Args:
        step: pure function ``(hyper, state, k) -> state`` as in ``unrolled``, but that k is a 0-d
            int64 tensor: particles may be of different ages. It need not be differentiable.
        outer: pure function ``(hyper, state) -> 0-d float tensor``, asked after each step.
        steps: n, steps of a life.
        born: ``born(key) -> state``, a tree or a tensor: where a life starts.
        window: K, steps of each estimate, at least 1; what is beyond n in a life's last window
            doesn't count.
        particles: N, pairs of runs.
        sigma: width of the perturbations, positive; the step's own is used at each step.
        basis: ``"normal"`` or ``"orthogonal"`` perturbations, see ``perturbations``.
        stagger: whether the particles' first ages are spread over a life, by whole windows, so that
            every step's estimate is one for all of a life, once the first lives, which begin in its
            midst, are over.

    Returns:
        The pair of pure functions. The value is the mean over both runs of all particles, of their
        windows; ``grads`` has the structure of hyper. Both are means over the windows of a life
        when averaged over ``ceil(n / K)`` steps.

    Raises:
        ValueError: an option is out of range, or not known, or the key has a batch; when called,
            ``outer`` did not return a scalar, or a step changes the state's names or shapes.
        TypeError: an argument is of another kind, or hyper isn't of floats.

    Source: Vicol et al. (2021), algorithm 2.
    """
    require_mode("pes", step, outer, steps, 0, False)
    if not callable(born):
        raise TypeError(f"pes: born is {kind_of(born)}, expected a function")
    require_count("pes", "window", window)
    require_count("pes", "particles", particles)
    require_real("pes", "sigma", sigma, above=0.0)
    births = vmap(born)

    def init(hyper: Any, key: Tensor) -> TensorDict:
        own = perturbations(rng.fold_in(key, "noise"), hyper, particles, basis=basis)
        states = births(rng.split(rng.fold_in(key, "birth"), particles))
        ages = torch.zeros(particles, dtype=torch.int64, device=key.device)
        if stagger:
            windows = -(-steps // window)
            ages = torch.arange(particles, device=key.device) * windows // particles * window
        count = torch.zeros((), dtype=torch.int64, device=key.device)
        parts = {"up": states, "down": _like(states), "noise": _scaled(own, 0.0), "age": ages}
        return tree.new({**parts, "count": count, "key": key})

    def both(hyper: Any, pairs: TensorDict) -> tuple[TensorDict, tuple[Tensor, Any]]:
        key, age, noise = rng.fold_in(pairs["key"], pairs["count"]), pairs["age"], pairs["noise"]
        over = age >= steps
        fresh = births(rng.split(rng.fold_in(key, "birth"), particles))
        up, down = (_chosen(over, fresh, pairs[name]) for name in ("up", "down"))
        age = torch.where(over, 0, age)
        own = perturbations(rng.fold_in(key, "noise"), hyper, particles, basis=basis)
        noise = displaced(_chosen(over, _scaled(noise, 0.0), noise), own, 1 / sigma)
        lives = torch.full_like(age, steps)
        ends = [
            windowed(step, outer, window, displaced(hyper, own, sign * sigma), state, age, lives)
            for sign, state in ((1, up), (-1, down))
        ]
        (up, first), (down, second) = ends
        after = {"up": up, "down": down, "noise": noise, "age": age + window}
        after = tree.new({**after, "count": pairs["count"] + 1, "key": pairs["key"]})
        slope = es_gradient(first, second, noise, sigma=1.0)
        return after, ((first.mean() + second.mean()) / 2, slope)

    return Persistent(init, both)


def windowed(
    step: Stepper, outer: Outer, window: int, hyper: Any, states: Any, ages: Tensor, lives: Tensor
) -> tuple[Any, Tensor]:
    """Runs through a window of steps, each under its own hyper.

    Args:
        step: as in ``pes``.
        outer: as in ``pes``.
        window: K.
        hyper: nest ``[N]``.
        states: nest ``[N]``.
        ages: ``[N]``, steps before.
        lives: ``[N]``, steps of a life; who has had them stays as it is.

    Returns:
        The states, and the values ``[N]``: sums over the window in such a unit that their mean over
        all windows of a life is the mean over its steps.
    """

    def one(hyper: Any, state: Any, age: Tensor, steps: Tensor) -> tuple[Any, Tensor]:
        values = []
        for j in range(window):
            after, alive = step(hyper, state, age + j), age + j < steps
            value = outer(hyper, after)
            require_scalar("pes", "outer", value, False)
            state = _chosen(alive, after, state)
            values.append(torch.where(alive, value, 0.0))
        share = (steps + window - 1) // window / steps
        return state, torch.stack(values).sum() * share.to(values[0].dtype)

    return vmap(one)(hyper, states, ages, lives)


def _chosen(condition: Tensor, left: Any, right: Any) -> Any:
    """Leaves of one nest where the condition holds, along the first axes, else of the other."""
    (a, structure), (b, other) = tree.flatten(left), tree.flatten(right)
    tree.require_same("pes", ("the state after a step", structure), ("the one before it", other))
    pairs = zip(a, b, strict=True)
    rows = [condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)) for x in a]
    return tree.unflatten(
        structure, [torch.where(row, x, y) for row, (x, y) in zip(rows, pairs, strict=True)]
    )


def _scaled(nest: Any, factor: float) -> Any:
    leaves, structure = tree.flatten(nest)
    return tree.unflatten(structure, [x * factor for x in leaves])


def _like(nest: Any) -> Any:
    """A copy: two names that share their tensors are another program for a compiler."""
    leaves, structure = tree.flatten(nest)
    return tree.unflatten(structure, [x.clone() for x in leaves])


# ------------------------------------------------------------------------------------- the training


def pes_training(
    rule: UpdateRule,
    populations: Mapping[str, Population],
    optimizer: Transform | None = None,
    *,
    updates: int = 5,
    sigma: float = 0.1,
    sigma_decay: float = 1.0,
    sigma_limit: float = 1e-5,
    length: int = 20,
    score: str = "lifetime",
    average: float = 0.0,
    dist_class: Any = Categorical,
) -> Training:
    """Meta-training of an update rule by persistent evolution strategies: K updates a step.

    Each task is a pair of agents that live under rules moved apart, and the ages of the pairs are
    spread over a lifetime. The rule climbs the mean over tasks of what an agent earns in its life.

    Args:
        rule: the rule.
        populations: agents by group; each task is a pair of them. Their critics are not used.
        optimizer: as in ``es_training``.
        updates: K, updates of each agent in a step.
        sigma: σ of the first step.
        sigma_decay: factor of σ from step to step.
        sigma_limit: σ stops there, above 0.
        length: T, steps of each rollout.
        score: ``"lifetime"``: reward per step over all updates of a life, or ``"final"``: over the
            last fifth.
        average: decay of the running average of the rule's parameters, in [0, 1); 0 for no average.
        dist_class: distribution of the actions.

    Returns:
        The training. Its state is that of ``es_training``, with ``partners`` and ``noise`` beside
        ``agents``, by group ``[n]``: the other agent of each pair, and what moved the two apart.
        A step's metrics are 0-d: ``fitness`` (of windows, in units of a reward per step),
        ``fitness_min``, ``fitness_max``, ``reward`` (a step, on the last trajectories),
        ``sigma``, ``gradient_norm`` and ``age``, over the pairs whose fitness is finite; and
        ``bad`` bool ``[n_tasks]`` of all groups in their order, which says whose is not: they are
        born anew with the next step.

    Raises:
        ValueError: there is no population, or an option is out of range or not known.
        TypeError: an argument is of another kind.

    Source: Vicol et al. (2021), algorithm 2.
    """
    fn = "pes_training"
    descent = groove_optimizer() if optimizer is None else optimizer
    require_training(fn, rule, populations, descent, updates=updates, length=length)
    require_widths(fn, sigma=sigma, sigma_decay=sigma_decay, sigma_limit=sigma_limit)
    require_real(fn, "sigma_limit", sigma_limit, above=0.0)
    require_average(fn, average)
    require_one_of(fn, "score", score, ("lifetime", "final"))

    def init(key: Tensor) -> TensorDict:
        width = torch.tensor(float(sigma), device=key.device)
        groups = first_groups(rule, populations, key)
        kinds = by_kind(groups)
        state = first_state(rule, descent, key, {"sigma": width, **kinds})
        noise = {
            name: _scaled(perturbations(key, state["rule"], population.n_tasks), 0.0)
            for name, population in populations.items()
        }
        partners = tree.map(torch.clone, kinds["agents"])
        more = {"partners": partners, "noise": tree.new(noise)}
        return tree.new({**tree.entries(state), **more})

    def outer(params: TensorDict, state: TensorDict) -> Tensor:
        return state["score"]

    @torch.no_grad()
    def step(state: TensorDict) -> tuple[TensorDict, TensorDict]:
        key, sigma = rng.fold_in(state["key"], state["step"]), state["sigma"]
        groups, ends, noises, rewards = {}, [], [], []
        for name, population in populations.items():
            own, n, habitat = rng.fold_in(key, name), population.n_tasks, population.habitat
            now: dict[str, Any]
            now = {kind: state[kind, name] for kind in ("agents", *extras(population))}
            over = now["agents"]["age"] >= now["agents"]["lifetime"]
            lives = renewed(population, rule, now, rng.fold_in(own, "renew"))
            agents, noise = lives["agents"], state["noise", name]
            partners = tree.where(over, agents, state["partners", name])
            eps = perturbations(rng.fold_in(own, "noise"), state["rule"], n)
            noise = displaced(tree.where(over, _scaled(noise, 0.0), noise), eps, 1 / sigma)
            keys = rng.split(rng.fold_in(own, "live"), n)
            live = partial(_step, rule, habitat, score, length, dist_class)
            run = partial(windowed, live, outer, updates)
            after, values, last = [], [], []
            for sign, side in ((1, agents), (-1, partners)):
                zero = torch.zeros(n, device=keys.device)
                started = {"agent": side, "key": keys, "score": zero, "reward": zero}
                params = displaced(state["rule"], eps, sign * sigma)
                lifetime = side["lifetime"]
                went, value = run(params, tree.new(started, (n,)), side["age"], lifetime)
                after.append(went["agent"])
                values.append(value)
                last.append(went["reward"])
            fine = values[0].isfinite() & values[1].isfinite()
            agents, partners = (_dead_unless(fine, side) for side in after)
            ends.append(torch.stack(values, 1))
            rewards.append(torch.stack(last, 1))
            noises.append(noise)
            groups[name] = {**lives, "agents": agents, "partners": partners, "noise": noise}
        fitness, reward = torch.cat(ends), torch.cat(rewards)
        gradient, fine = ascent(fitness[:, 0], fitness[:, 1], noises, 1.0, None)
        ages = torch.cat([group["agents"]["age"].double() for group in groups.values()])
        columns = {
            **fitness_metrics(fitness, fine),
            "reward": finite_mean(reward.mean(1), fine),
            "sigma": sigma,
            "gradient_norm": tree.norm(gradient),
            "age": finite_mean(ages, fine),
            "bad": ~fine,
        }
        others = {"sigma": (sigma * sigma_decay).clamp(min=sigma_limit), **by_kind(groups)}
        return descended(state, descent, gradient, average, others), tree.new(columns)

    return Training(init, step)


def _step(
    rule: UpdateRule,
    habitat: Habitat,
    score: str,
    length: int,
    dist_class: Any,
    params: TensorDict,
    state: TensorDict,
    k: Tensor,
) -> TensorDict:
    """An update of one agent as a step of an inner loop; the mean of its scores counts."""
    agent: Any = state["agent"]
    key = rng.fold_in(state["key"], k)
    lifetime = agent["lifetime"]
    after, reward = updated(rule, habitat, params, agent, key, length=length, dist_class=dist_class)
    points = reward * final_share(k, lifetime) * lifetime if score == "final" else reward
    return tree.new({**tree.entries(state), "agent": after, "score": points, "reward": reward})


def _dead_unless(fine: Tensor, agents: TensorDict) -> TensorDict:
    age = torch.where(fine, agents["age"], agents["lifetime"])
    earned = torch.where(fine, agents["earned"], torch.nan)
    return tree.replace(agents, {"age": age, "earned": earned})
