"""How good a rule is: agents that learn from scratch on levels that nobody was trained on.

Each contestant trains one agent on each level, from the same levels and the same noise:

    trained        agents of the learned rule
    untrained      of the rule as it was before the first meta-step
    a2c            of advantage actor-critic with tuned constants
    random         nobody learns, every action is as likely
    optimal_rate   the best reward per step that the level allows, by dynamic programming

Symbols: n levels, U updates of a life.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ..checkpoint import load, load_metadata, save
from ..envs import LevelDistribution, optimal_reward_rate, rollout
from ..meta import Habitat, UpdateRule, a2c_habitat, a2c_rule, reward_curve
from ..model import Model
from .options import A2CConstants
from .progress import Show, progress


class Setting(NamedTuple):
    """What all contestants share."""

    world: LevelDistribution
    levels: TensorDict  # [n]
    key: Tensor
    updates: int
    length: int
    workers: int


class Part(NamedTuple):
    """One contestant: its name, the number of steps that it will report, and what it does."""

    name: str
    total: int
    curve: Callable[[Show], Tensor]  # [n, U] mean reward per step, or [n]


# --------------------------------------------------------------------------- contestants


def held_out(
    world: LevelDistribution,
    count: int,
    seed: int,
    device: str,
    *,
    updates: int | None,
    length: int,
    workers: int,
) -> Setting:
    """Levels that no training sees, since its keys come from the same seed under other names.

    Args:
        world: the levels' distribution.
        count: n, how many.
        seed: the seed.
        device: where they are.
        updates: U, updates of each agent, or None for a lifetime.
        length: steps between two of them.
        workers: copies of its world in which each agent acts.

    Returns:
        The setting.

    Raises:
        ValueError: a number is below 1.
    """
    updates = world.lifetime if updates is None else updates
    numbers = {"levels": count, "updates": updates, "length": length, "workers": workers}
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"the number of {name} is {number}, expected at least 1")
    key = rng.fold_in(rng.key(seed, device), "evaluation")
    levels = world.sample(rng.split(rng.fold_in(key, "levels"), count))
    return Setting(world, levels, rng.fold_in(key, "lives"), updates, length, workers)


def learner(
    name: str, setting: Setting, habitat: Habitat, rule: UpdateRule, params: TensorDict
) -> Part:
    """Contestant that is a rule.

    Args:
        name: its name.
        setting: what all share.
        habitat: agents that fit the rule.
        rule: the rule.
        params: its parameters.

    Returns:
        The contestant.
    """

    def curve(show: Show) -> Tensor:
        def report(done: int, reward: Tensor) -> None:
            show(done, f"reward {float(reward.mean()):.4f}")

        return reward_curve(
            habitat,
            rule,
            params,
            setting.levels,
            setting.key,
            updates=setting.updates,
            length=setting.length,
            report=report,
        )

    return Part(name, setting.updates, curve)


def a2c(setting: Setting, constants: A2CConstants) -> Part:
    """Contestant that is advantage actor-critic.

    Args:
        setting: what all share.
        constants: its hyper-parameters.

    Returns:
        The contestant.
    """
    rule = a2c_rule(constants.gamma, constants.lmbda, entropy_coeff=constants.entropy_coeff)
    habitat = a2c_habitat(
        setting.world,
        workers=setting.workers,
        actor_rate=constants.actor_rate,
        critic_rate=constants.critic_rate,
        max_norm=constants.clip,
    )
    return learner("a2c", setting, habitat, rule, rule.init(setting.key)[0])


def random(setting: Setting) -> Part:
    """Contestant that takes each action as often as any other."""
    world, levels, key = setting.world, setting.levels, setting.key
    n, empty = levels.batch_size[0], tree.new({})

    def act(params: Any, buffers: Any, td: TensorDict) -> tuple[TensorDict, Any]:
        logits = torch.zeros((*td.batch_size, world.n_actions), device=key.device)
        return tree.new({**tree.entries(td), "logits": logits}, td.batch_size), buffers

    policy = Model(lambda key: (empty, empty), act)

    def curve(show: Show) -> Tensor:
        noise = world.env.noise(levels, rng.fold_in(key, "birth"), (n, setting.workers))
        state, rewards = world.env.reset(levels, noise), []
        for k in range(setting.updates):
            step = rng.fold_in(rng.fold_in(key, "life"), k)
            state, _, td = rollout(
                world.env, policy, empty, empty, levels, state, step, setting.length
            )
            rewards.append(td["next", "reward"].reshape(n, -1).mean(1))
            show(k + 1, f"reward {float(rewards[-1].mean()):.4f}")
        return torch.stack(rewards, 1)

    return Part("random", setting.updates, curve)


def optimum(setting: Setting) -> Part:
    """What nobody can beat."""

    def rate(show: Show) -> Tensor:
        n, rates = setting.levels.batch_size[0], []
        for start in range(0, n, 16):
            stop = min(start + 16, n)
            rates.append(optimal_reward_rate(tree.lock(setting.levels[start:stop])))
            show(stop, "")
        return torch.cat(rates)

    return Part("optimal_rate", setting.levels.batch_size[0], rate)


# ------------------------------------------------------------------------------ contest


def contest(
    parts: list[Part],
    console: Console,
    *,
    watch: Callable[[], None],
    cache: Path | None = None,
    marks: dict[str, Any] | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Let all contestants play.

    Args:
        parts: the contestants.
        console: where progress is shown.
        watch: called after each of their steps; may raise to end it all.
        cache: folder where each one's result is kept, so that it need not play twice; or None.
        marks: for each name what its result depends on; one kept under another is not used.

    Returns:
        ``(results, seconds)``: float64 ``[n, U]`` or ``[n]`` by name on the CPU, and the time that
        those took which were found in the cache.
    """
    results, earlier = {}, 0.0
    for part in parts:
        path = None if cache is None else cache / f"{part.name}.safetensors"
        mark = (marks or {}).get(part.name)
        found = None if path is None else _kept(path, mark)
        if found is not None:
            results[part.name], seconds = found
            earlier += seconds
            continue
        results[part.name], seconds = _played(part, console, watch)
        if path is not None:
            path.parent.mkdir(exist_ok=True)
            kept = tree.new({"rewards": results[part.name]})
            save(path, kept, metadata={"mark": mark, "seconds": seconds})
    return results, earlier


def _played(part: Part, console: Console, watch: Callable[[], None]) -> tuple[Tensor, float]:
    began = time.monotonic()
    with progress(console, part.name, part.total) as show:

        def shown(done: int, text: str) -> None:
            show(done, text)
            watch()

        with torch.no_grad():
            rewards = part.curve(shown).to("cpu", torch.float64)
    return rewards, time.monotonic() - began


def _kept(path: Path, mark: Any) -> tuple[Tensor, float] | None:
    """Result of an earlier process, if it is the same contest's."""
    try:
        metadata = load_metadata(path)
        if metadata.get("mark") != mark:
            return None
        return load(path)["rewards"], metadata["seconds"]
    except (ValueError, OSError):
        return None


def title(setting: Setting) -> str:
    """What a contest is about, in a line."""
    n = setting.levels.batch_size[0]
    return f"{n} held-out {setting.world.name} levels, last fifth of {setting.updates} updates"
