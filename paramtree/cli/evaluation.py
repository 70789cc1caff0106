"""How good rules are: agents that learn from scratch on levels that nobody was trained on.

Each contestant trains one agent on each level, from the same levels and the same noise. It may be

    trained        a learned rule
    untrained      the same as it was before the first meta-step
    a2c, ppo, ...  a hand-written rule, see ``rivals``
    random         nobody learns, every action is as likely
    optimal_rate   the best that the level allows, by dynamic programming

and its result is a tree ``[n]``: ``final``, ``lifetime`` and ``return``, as ``lifetime_scores`` has
them, and ``rewards`` ``[n, U]``, or ``[n]`` for the optimum, which has no life.

Symbols: n levels, U updates of a life.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import optim, rng, tree
from ..autodiff import vmap
from ..checkpoint import load, load_metadata, save
from ..envs import LevelDistribution, optimal_return, optimal_reward_rate, rollout
from ..meta import Habitat, UpdateRule, curve_scores, lifetime_scores
from ..meta.lives import episode_return
from ..model import Model
from . import rivals
from .progress import Show, progress

MEASURES = ("final", "lifetime", "return")


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
    play: Callable[[Show], TensorDict]


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
    if updates is None:
        updates = world.lifetime if isinstance(world.lifetime, int) else world.lifetime[1]
    numbers = {"levels": count, "updates": updates, "workers": workers}
    numbers["steps between updates"] = length
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

    def play(show: Show) -> TensorDict:
        def report(done: int, reward: Tensor) -> None:
            show(done, f"reward {float(reward.mean()):.4f}")

        return lifetime_scores(
            habitat,
            rule,
            params,
            setting.levels,
            setting.key,
            horizon=setting.world.max_steps,
            updates=setting.updates,
            length=setting.length,
            report=report,
        )

    return Part(name, setting.updates, play)


def rival(name: str, setting: Setting) -> Part:
    """Contestant that is a hand-written rule, with its constants for these levels.

    Args:
        name: the rule's, one of ``rivals.RIVALS``.
        setting: what all share.

    Returns:
        The contestant.

    Raises:
        ValueError: there is no such rule.
    """
    habitat, rule = rivals.rival(name, setting.world, setting.workers)
    return learner(name, setting, habitat, rule, rule.init(setting.key)[0])


def random(setting: Setting) -> Part:
    """Contestant that takes each action as often as any other."""
    world, levels, key = setting.world, setting.levels, setting.key
    n, empty = levels.batch_size[0], tree.new({})

    def act(params: Any, buffers: Any, td: TensorDict) -> tuple[TensorDict, Any]:
        logits = torch.zeros((*td.batch_size, world.n_actions), device=key.device)
        return tree.new({**tree.entries(td), "logits": logits}, td.batch_size), buffers

    policy = Model(lambda key: (empty, empty), act)
    agents = {"params": empty, "buffers": empty, "level": levels}

    def play(show: Show) -> TensorDict:
        noise = world.env.noise(levels, rng.fold_in(key, "birth"), (n, setting.workers))
        state, rewards = world.env.reset(levels, noise), []
        for k in range(setting.updates):
            step = rng.fold_in(rng.fold_in(key, "life"), k)
            state, _, td = rollout(
                world.env, policy, empty, empty, levels, state, step, setting.length
            )
            rewards.append(td["next", "reward"].reshape(n, -1).mean(1))
            show(k + 1, f"reward {float(rewards[-1].mean()):.4f}")
        habitat = Habitat(policy, world.env, world.sample, optim.sgd(0.0), setting.workers)
        one = partial(episode_return, habitat, world.max_steps, Categorical)
        last = rng.split(rng.fold_in(key, "last"), n)
        found = curve_scores(torch.stack(rewards, 1))
        return tree.new({**tree.entries(found), "return": vmap(one)(tree.new(agents), last)}, (n,))

    return Part("random", setting.updates, play)


def optimum(setting: Setting) -> Part:
    """What nobody can beat, in a grid world whose objects stay where they are, or in a chain.

    Args:
        setting: what all share.

    Returns:
        The contestant.

    Raises:
        ValueError: it isn't known in this world.
    """
    levels, longest = setting.levels, setting.world.max_steps
    n = levels.batch_size[0]
    optimal_return(tree.lock(levels[:1]), 0)  # refuses what can't be told, before the long work

    def play(show: Show) -> TensorDict:
        rates, returns = [], []
        for start in range(0, n, 16):
            some = tree.lock(levels[start : start + 16])
            rates.append(optimal_reward_rate(some))
            returns.append(optimal_return(some, longest))
            show(min(start + 16, n), "")
        rate = torch.cat(rates)
        rewards = {"rewards": rate, "final": rate, "lifetime": rate}
        return tree.new({**rewards, "return": torch.cat(returns)}, (n,))

    return Part("optimal_rate", n, play)


def opponents(names: Sequence[str], setting: Setting) -> list[Part]:
    """Contestants that need no training run.

    Args:
        names: hand-written rules, ``"random"`` and ``"optimal"``.
        setting: what all share.

    Returns:
        The contestants, in this order.

    Raises:
        ValueError: a name is another, or the optimum isn't known in this world.
    """
    fixed = {"random": random, "optimal": optimum}
    return [fixed[name](setting) if name in fixed else rival(name, setting) for name in names]


def usual_opponents(setting: Setting) -> list[Part]:
    """A2C, the random policy, and the optimum where it is known."""
    parts = opponents(("a2c", "random"), setting)
    with contextlib.suppress(ValueError):
        parts.append(optimum(setting))
    return parts


# ------------------------------------------------------------------------------ contest


def contest(
    parts: list[Part],
    console: Console,
    *,
    watch: Callable[[], None],
    cache: Path | None = None,
    marks: dict[str, Any] | None = None,
) -> tuple[dict[str, TensorDict], float]:
    """Let all contestants play.

    Args:
        parts: the contestants.
        console: where progress is shown.
        watch: called after each of their steps; may raise to end it all.
        cache: folder where each one's result is kept, so that it need not play twice; or None.
        marks: for each name what its result depends on; one kept under another is not used.

    Returns:
        ``(results, seconds)``: the result of each by name, in float64 on the CPU, and the time that
        those took which were found in the cache.
    """
    results, earlier = {}, 0.0
    for part in parts:
        path = None if cache is None else cache / _file(part.name)
        mark = (marks or {}).get(part.name)
        found = None if path is None else _kept(path, mark)
        if found is not None:
            results[part.name], seconds = found
            earlier += seconds
            continue
        results[part.name], seconds = _played(part, console, watch)
        if path is not None:
            path.parent.mkdir(exist_ok=True)
            save(path, results[part.name], metadata={"mark": mark, "seconds": seconds})
    return results, earlier


def _file(name: str) -> str:
    """Of a contestant, whose name may be a path."""
    plain = name if name.isidentifier() else hashlib.sha256(name.encode()).hexdigest()
    return f"{plain}.safetensors"


def _played(part: Part, console: Console, watch: Callable[[], None]) -> tuple[TensorDict, float]:
    began = time.monotonic()
    with progress(console, part.name, part.total) as show:

        def shown(done: int, text: str) -> None:
            show(done, text)
            watch()

        with torch.no_grad():
            found = part.play(shown)
    return tree.map(lambda x: x.to("cpu", torch.float64), found), time.monotonic() - began


def _kept(path: Path, mark: Any) -> tuple[TensorDict, float] | None:
    """Result of an earlier process, if it is the same contest's."""
    try:
        metadata, found = load_metadata(path), load(path)
    except (ValueError, OSError):
        return None
    if metadata.get("mark") != mark or any(name not in found.keys() for name in MEASURES):
        return None
    return found, metadata["seconds"]


# ------------------------------------------------------------------------------ results


def curves(results: dict[str, TensorDict]) -> dict[str, Tensor]:
    """What a picture shows of a contest.

    Args:
        results: as ``contest`` gives them.

    Returns:
        By name mean rewards per step, ``[n, U]``, or ``[n]`` of who has no life.
    """
    return {name: found["rewards"] for name, found in results.items()}


def raw(results: dict[str, TensorDict]) -> dict[str, dict[str, list[float]]]:
    """All numbers of a contest, level by level.

    Args:
        results: as ``contest`` gives them.

    Returns:
        For each name ``{"final": [...], "lifetime": [...], "return": [...]}``.
    """
    return {
        name: {measure: found[measure].tolist() for measure in MEASURES}
        for name, found in results.items()
    }


def title(setting: Setting) -> str:
    """What a contest is about, in a line."""
    n = setting.levels.batch_size[0]
    return f"{n} held-out {setting.world.name} levels, last fifth of {setting.updates} updates"
