"""A look at a rule: at what it tells agents, at what they predict, and at the agents themselves."""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from rich.console import Console
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import meta, rng, tree
from ..autodiff import vmap
from ..envs import optimal_return
from ..meta.lives import episodes, first_returns
from . import evaluation, plots
from . import folder as files
from .eval_lpg import find, habitat_of
from .interrupt import interrupts
from .look_options import LookOptions
from .outcome import Refused, Stopped, refusing
from .plot import evaluated
from .progress import progress
from .training import named_world

_CHOICE = 4  # levels that are drawn for each that is looked at
_SHOWN = 100  # steps of an episode in a picture


def look(
    options: LookOptions, config: dict[str, Any], ready: Callable[[], None], console: Console
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a rule and its agents.

    Args:
        options: the options.
        config: what its run was started with.
        ready: makes the folder for the pictures, before the long work.
        console: where progress is shown.

    Returns:
        The pictures by their names, and the numbers that are drawn.

    Raises:
        Refused: wrong use.
        Stopped: the user asked for an end.
    """
    trained = find(str(options.checkpoint), options.device)
    rule, params = trained.rule, trained.params
    _require_numbers(options)
    with refusing():
        setting = evaluation.held_out(
            named_world(options.levels),
            _CHOICE * options.count,
            options.seed,
            options.device,
            updates=max(1, *options.ages),
            length=trained.length,
            workers=trained.workers if options.workers is None else options.workers,
        )
        habitat = habitat_of(trained, setting)
        setting = setting._replace(levels=_rewarding(setting, options.count))
    ready()
    agents = _agents(options, setting, habitat, rule, params, console)
    found: dict[str, Any] = {"ages": list(options.ages), "gammas": list(options.gammas)}
    pictures, found["episodes"] = drawn_episodes(options.ages[-1], setting, habitat, agents)
    if "object_cell" in setting.levels.keys():
        later = tree.lock(agents[-len(options.ages) :])
        some, numbers = _probed(options, setting, habitat, rule, params, later)
        pictures, found = {**pictures, **some}, {**found, **numbers}
    history = files.read_metrics(options.checkpoint) if options.checkpoint.is_dir() else []
    if history:
        pictures["training.png"] = plots.metrics_figure(history, evaluated(options.checkpoint))
    return pictures, plain(found)


def drawn_episodes(
    age: int, setting: evaluation.Setting, habitat: meta.Habitat, agents: TensorDict
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An episode on each level, of its agent at birth and at the last age.

    Both act under the same noise.

    Args:
        age: the last age.
        setting: the levels, ``[n]``.
        habitat: the kind of agents.
        agents: their states, ``[A, n]``, from birth on.

    Returns:
        The pictures by their names; and for each level the ``ages``, the mean return of the
        workers' episodes at each, and the return and the steps of the one that is drawn, as far as
        it is.
    """
    n = setting.levels.batch_size[0]
    keys = rng.split(rng.fold_in(setting.key, "episode"), n)
    play = partial(episodes, habitat, setting.world.max_steps, Categorical)
    titles = {"before learning": agents[0], f"after {age} update{'s' * (age != 1)}": agents[-1]}
    with torch.no_grad():
        played = {t: vmap(play)(tree.lock(x), keys, keys) for t, x in titles.items()}
    pictures, found = {}, []
    for i in range(n):
        level, walks, means = tree.lock(setting.levels[i]), {}, []
        for title, td in played.items():
            means.append(float(first_returns(td[i]).mean()))
            said = f"{title} (mean return {means[-1]:.3g})"
            walks[said] = plots.walk(level, td[i, 0, :_SHOWN])
        pictures[f"level_{i}.png"] = plots.walks_figure(level, walks)
        lengths = [len(path.reward) for path in walks.values()]
        scenes = {title: plots.level_scene(level, path) for title, path in walks.items()}
        pictures[f"episode_{i}.gif"] = plots.film(scenes, plots.moments(lengths))
        earned = [float(path.reward.sum()) for path in walks.values()]
        row = {"ages": [0, age], "mean_return": means, "return": earned, "steps": lengths}
        found.append(row)
    return pictures, found


def drawn_targets(td: TensorDict, ages: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    """What the rule tells agents against what happened.

    Args:
        td: what ``probe_trajectories`` gave, ``[A, n, W, T]``.
        ages: A of them.

    Returns:
        The figure; and correlations, pooled and by age, by the names of the two that go together.
    """
    goals = ("td_error", "return")
    wanted = torch.stack([td[name] for name in goals], -1)  # [A, n, W, T, 2]
    told, facts = td["y_hat"].flatten(0, -2), wanted.flatten(0, -2)
    readings, _ = meta.linear_reading(told, facts)
    pairs, found = {}, {}
    for column, goal in enumerate(goals):
        for name, x in (
            ("pi_hat", td["pi_hat"]),
            ("y_hat", readings[:, column].reshape(td.batch_size)),
        ):
            pairs[goal, name] = (td[goal], x)
            by_age = [plots.correlation(td[goal][i], x[i]) for i in range(len(ages))]
            pooled = plots.correlation(td[goal], x)
            found[f"{name} and {goal}"] = {"pooled": pooled, "by_age": by_age}
    return plots.targets_figure(pairs), found


def drawn_prediction(
    options: LookOptions, levels: TensorDict, i: int, states: TensorDict, td: TensorDict
) -> tuple[Any, dict[str, Any]]:
    """The prediction of one level's agent at the last age, with all objects there.

    Args:
        options: for the discounts.
        levels: ``[n]``.
        i: number of the level.
        states: what ``probe_states`` gave, ``[A, n, S]``.
        td: what ``probe_trajectories`` gave; states count as often as they are met in it at that
            age, and cells are drawn that are met at any.

    Returns:
        The figure; and the maps, and the share of the values' variance that is read from
        predictions, by age.
    """
    level, cells = tree.entries(levels[i]), levels["walls"].shape[-1]
    met = td["observation", "index"][:, i].flatten(1)  # [A, W * T]
    ones = torch.ones_like(met, dtype=torch.float64)
    count = ones.new_zeros(len(met), states.batch_size[-1]).scatter_add(1, met, ones)
    own = tree.entries(tree.lock(states[:, i]))
    reading, explained = meta.linear_reading(own["prediction"], own["value"], count)
    full = int(level["table"]["full"])
    first, last = full * cells, full * cells + int(level["side"]) ** 2
    shown = {
        "prediction": own["prediction"][-1, first:last].mT,  # [m, g * g]
        "value": own["value"][-1, first:last].mT,  # [G, g * g]
        "reading": reading[-1, first:last].mT,
    }
    mask = count.sum(0)[first:last] > 0  # of others predictions are what they were at birth
    values = [
        (rf"{text}$\gamma$ = {gamma}", x)
        for text, maps in (("", shown["value"]), ("read, ", shown["reading"]))
        for gamma, x in zip(options.gammas, maps, strict=True)
    ]
    rows = [
        ("prediction", [(f"$y_{{{k}}}$", x) for k, x in enumerate(shown["prediction"])]),
        ("value", values),
    ]
    figure = plots.cells_figure(rows, mask, _marks(level))
    return figure, {**shown, "met": mask, "explained_by_age": explained}


def plain(value: Any) -> Any:
    """Nested data with tensors as what JSON knows: lists, and None for what isn't finite."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _probed(
    options: LookOptions,
    setting: evaluation.Setting,
    habitat: meta.Habitat,
    rule: meta.UpdateRule,
    params: TensorDict,
    agents: TensorDict,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What only tabular grid worlds can show: targets against facts, and predictions by cell."""
    key, kind = rng.fold_in(setting.key, "probe"), (rule, params, habitat, agents)
    td = meta.probe_trajectories(*kind, key, length=setting.length, gamma=options.gamma)
    figure, correlations = drawn_targets(td, options.ages)
    pictures, predictions = {"targets.png": figure}, []
    states = meta.probe_states(habitat, agents, gammas=options.gammas)
    for i in range(options.count):
        figure, maps = drawn_prediction(options, setting.levels, i, states, td)
        pictures[f"prediction_{i}.png"] = figure
        predictions.append(maps)
    return pictures, {"targets": correlations, "predictions": predictions}


def _require_numbers(options: LookOptions) -> None:
    if not options.ages or not options.gammas:
        raise Refused("--ages and --gammas are lists, expected at least one number in each")
    ages = list(options.ages)
    if ages != sorted(set(ages)) or ages[0] < 0:
        found = " ".join(map(str, ages))
        raise Refused(f"--ages is {found}, expected numbers from 0 on that grow")
    for flag, numbers in (("--gamma", (options.gamma,)), ("--gammas", options.gammas)):
        if not all(0 <= x <= 1 for x in numbers):
            found = " ".join(map(str, numbers))
            raise Refused(f"{flag} is {found}, expected discounts from 0 to 1")


def _agents(
    options: LookOptions,
    setting: evaluation.Setting,
    habitat: meta.Habitat,
    rule: meta.UpdateRule,
    params: TensorDict,
    console: Console,
) -> TensorDict:
    with interrupts() as interrupt, progress(console, "agents", setting.updates) as show:

        def report(done: int) -> None:
            show(done, "")
            if interrupt.asked:
                raise Stopped("stopped; nothing was drawn")

        return meta.probe_agents(
            rule,
            params,
            habitat,
            setting.levels,
            rng.fold_in(setting.key, "look"),
            ages=sorted({0, *options.ages}),
            length=setting.length,
            report=report,
        )


def _rewarding(setting: evaluation.Setting, count: int) -> TensorDict:
    """The first levels on which there is something to earn; others where there are too few.

    Where it isn't known, the first ones.
    """
    barren = torch.zeros(setting.levels.batch_size, dtype=torch.bool)
    with suppress(ValueError):
        barren = optimal_return(setting.levels, setting.world.max_steps) <= 1e-3
    return tree.take(setting.levels, barren.to(torch.int8).argsort(stable=True)[:count])


def _marks(level: dict[str, Any]) -> dict[int, str]:
    found = {int(level["start"]): "S"}
    for j in range(int(level["n_objects"])):
        found[int(level["object_cell"][j])] = f"{float(level['reward'][j]):+.1f}"
    return found
