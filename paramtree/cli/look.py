"""``paramtree look``: draws what a saved rule does, and writes the numbers that are shown.

targets.png        what the rule tells agents, against returns and the values' errors
prediction_0.png   an agent's prediction by cell, its policy's values, and how well a linear
reading of the one gives the other; one picture for each level
training.png       all metrics of the run, where its folder is given
look.json          the numbers
"""

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tensordict import TensorDict
from torch import Tensor

from .. import meta, rng, tree
from ..checkpoint import load
from ..envs import optimal_return
from . import evaluation, pictures
from . import folder as files
from .eval_lpg import saved_rule
from .interrupt import interrupts
from .look_options import LookOptions
from .outcome import Refused, Stopped, refusing
from .progress import progress
from .run import set_up
from .training import make_population, make_rule, named_world

_NUMBERS = "look.json"
_CHOICE = 4  # levels that are drawn for each that is looked at


def run(options: LookOptions) -> None:
    """Do what ``paramtree look`` was asked to.

    Args:
        options: the options, with the number of threads.

    Raises:
        Refused: wrong use.
        Stopped: the user asked for an end.
    """
    console, out = Console(), _folder(options)
    set_up(1 if options.threads is None else options.threads, options.device)
    trained, params = saved_rule(options.checkpoint, options.device)
    if not options.ages or not options.gammas:
        raise Refused("--ages and --gammas are lists, expected at least one number in each")
    for flag, numbers in (("--gamma", (options.gamma,)), ("--gammas", options.gammas)):
        if not all(0 <= x <= 1 for x in numbers):
            found = " ".join(map(str, numbers))
            raise Refused(f"{flag} is {found}, expected discounts from 0 to 1")
    with refusing():
        setting = evaluation.held_out(
            named_world(options.levels),
            _CHOICE * options.count,
            options.seed,
            options.device,
            updates=max(1, *options.ages),
            length=trained.length,
            workers=trained.agents.workers if options.workers is None else options.workers,
        )
        # the rates of the middle of the road, where a bandit chose among several in training
        own = replace(trained.agents, workers=setting.workers, arm_rates=(), arm_coeffs=())
        sized = replace(trained, agents=own)
        habitat = make_population(sized, options.levels, 1).habitat
        if setting.world.n_states is None or "object_cell" not in setting.levels.keys():
            raise ValueError(f"--levels is {options.levels!r}, expected a tabular grid world")
        rule = make_rule(trained)
        setting = setting._replace(levels=_rewarding(setting, options.count))
        agents = _agents(options, setting, habitat, rule, params, console)
        out.mkdir(parents=True, exist_ok=True)
    td = meta.probe_trajectories(
        rule,
        params,
        habitat,
        agents,
        rng.fold_in(setting.key, "probe"),
        length=setting.length,
        gamma=options.gamma,
    )
    found = {"ages": list(options.ages), "gammas": list(options.gammas)}
    found["targets"] = draw_targets(out / "targets.png", td, options.ages)
    states = meta.probe_states(habitat, agents, gammas=options.gammas)
    found["predictions"] = [
        draw_prediction(out / f"prediction_{i}.png", options, setting.levels, i, states, td)
        for i in range(options.count)
    ]
    if options.checkpoint.is_dir():
        history = files.read_metrics(options.checkpoint)
        if history:
            figure = pictures.draw_training(history, evaluated(options.checkpoint))
            pictures.write(out / "training.png", figure)
    files.write_json(out / _NUMBERS, plain(found))
    console.print(f"{out}: pictures and {_NUMBERS}", soft_wrap=True, highlight=False)


def draw_targets(path: Path, td: TensorDict, ages: tuple[int, ...]) -> dict[str, Any]:
    """Draw what the rule tells agents against what happened.

    Args:
        path: the picture.
        td: what ``probe_trajectories`` gave, ``[A, n, W, T]``.
        ages: A of them.

    Returns:
        Correlations, pooled and by age, by the names of the two that go together.
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
            by_age = [pictures.correlation(td[goal][i], x[i]) for i in range(len(ages))]
            pooled = pictures.correlation(td[goal], x)
            found[f"{name} and {goal}"] = {"pooled": pooled, "by_age": by_age}
    pictures.write(path, pictures.draw_targets(pairs))
    return found


def draw_prediction(
    path: Path, options: LookOptions, levels: TensorDict, i: int, states: TensorDict, td: TensorDict
) -> dict[str, Any]:
    """Draw the prediction of one level's agent at the last age, with all objects there.

    Args:
        path: the picture.
        options: for the discounts.
        levels: ``[n]``.
        i: number of the level.
        states: what ``probe_states`` gave, ``[A, n, S]``.
        td: what ``probe_trajectories`` gave; states count as often as they are met in it at that
            age, and cells are drawn that are met at any.

    Returns:
        The maps, and the share of the values' variance that is read from predictions, by age.
    """
    level, cells = tree.entries(levels[i]), levels["walls"].shape[-1]
    met = td["observation", "index"][:, i].flatten(1)  # [A, W * T]
    ones = torch.ones_like(met, dtype=torch.float64)
    count = ones.new_zeros(len(met), states.batch_size[-1]).scatter_add(1, met, ones)
    own = tree.entries(tree.lock(states[:, i]))
    reading, explained = meta.linear_reading(own["prediction"], own["value"], count)
    full = int(level["table"]["full"])
    first, last = full * cells, (full + 1) * cells
    shown = {
        "prediction": own["prediction"][-1, first:last].mT,  # [m, S * S]
        "value": own["value"][-1, first:last].mT,  # [G, S * S]
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
    pictures.write(path, pictures.draw_cells(rows, mask, _marks(level)))
    return {**shown, "met": mask, "explained_by_age": explained}


def evaluated(folder: Path) -> dict[str, Tensor]:
    """Rewards by contestant from a run's evaluation, or none.

    Args:
        folder: the run's.

    Returns:
        ``{name: [n, U] or [n]}``.
    """
    found = {}
    for path in sorted((folder / files.EVALUATION).glob("*.safetensors")):
        with suppress(ValueError, OSError):
            found[path.stem] = load(path)["rewards"]
    return found if "trained" in found else {}


def plain(value: Any) -> Any:
    """Nested data with tensors as what JSON knows: lists, and None for what isn't finite."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _folder(options: LookOptions) -> Path:
    """Where the pictures go: a folder that is new, empty, or of an earlier look."""
    if options.out is None and not options.checkpoint.is_dir():
        raise Refused(f"{str(options.checkpoint)!r} is not a run's folder; give --out")
    out = options.checkpoint / "look" if options.out is None else options.out
    if out.exists() and not out.is_dir():
        raise Refused(f"{str(out)!r} is not a folder; choose another for --out")
    if out.is_dir() and any(out.iterdir()) and not (out / _NUMBERS).exists():
        raise Refused(f"{str(out)!r} holds other things; choose another folder for --out")
    return out


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
                raise Stopped("stopped; nothing was written")

        return meta.probe_agents(
            rule,
            params,
            habitat,
            setting.levels,
            rng.fold_in(setting.key, "look"),
            ages=options.ages,
            length=setting.length,
            report=report,
        )


def _rewarding(setting: evaluation.Setting, count: int) -> TensorDict:
    """The first levels on which there is something to earn; others where there are too few."""
    barren = optimal_return(setting.levels, setting.world.max_steps) <= 1e-3
    return tree.take(setting.levels, barren.to(torch.int8).argsort(stable=True)[:count])


def _marks(level: dict[str, Any]) -> dict[int, str]:
    found = {int(level["start"]): "S"}
    for j in range(int(level["n_objects"])):
        found[int(level["object_cell"][j])] = f"{float(level['reward'][j]):+.1f}"
    return found
