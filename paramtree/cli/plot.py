"""``paramtree plot``: learning curves of several runs, with intervals over their seeds.

Runs whose options differ in the seed alone are one group, a line with its 95% interval. What else
differs between groups names them; what has no say in what is learned (threads, checkpoints, the
evaluation) is no difference. Where runs were evaluated, a second panel has the lives of the agents
that their rules train.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from ..checkpoint import load
from . import folder as files
from . import plots
from .options import as_flag
from .outcome import Refused, refusing
from .places import require_file
from .plot_options import PlotOptions

_FAMILY = ("--preset", "--env")  # other options differ for their sake
_IDLE = {"--threads", "--device", "--checkpoint-every", "--chunk", "--on-bad", "--deterministic"}
_STEPS = {"ppo": "environment steps", "sac": "environment steps"}
_MEANING = {"reward": "reward per step", "return": "return, mean of recent episodes"}


class Run(NamedTuple):
    """What is drawn of a run."""

    folder: Path
    command: str
    options: dict[str, str]  # by flag
    history: list[dict[str, Any]]
    results: dict[str, Tensor]  # of its evaluation, or nothing


def run(options: PlotOptions) -> None:
    """Do what ``paramtree plot`` was asked to.

    Args:
        options: the options.

    Raises:
        Refused: wrong use.
    """
    require_file(options.out)
    if not options.runs:
        raise Refused("no run is given; name the folders of some")
    runs = [read(folder) for folder in options.runs]
    units = {run.command: _STEPS.get(run.command, "meta-step") for run in runs}
    if len(set(units.values())) > 1:
        told = ", ".join(f"{unit} of {name}" for name, unit in units.items())
        raise Refused(f"these runs count {told}; draw those together that count the same")
    metric = _metric(options.metric, runs)
    with refusing():
        options.out.parent.mkdir(parents=True, exist_ok=True)
        meaning = _MEANING.get(metric, metric)
        unit = next(iter(units.values()))
        figure = plots.groups_figure(groups(runs, metric), _title(runs), unit, meaning)
        plots.write(options.out, figure)
    Console().print(str(options.out), soft_wrap=True, highlight=False)


def read(folder: Path) -> Run:
    """A run, as far as it is.

    Args:
        folder: its folder.

    Returns:
        The run.

    Raises:
        Refused: the folder holds no run, or one without a step.
    """
    config, history = files.read_config(folder), files.read_metrics(folder)
    if not history:
        raise Refused(f"{str(folder)!r} has no steps yet")
    return Run(folder, config["command"], flat(config["options"]), history, evaluated(folder))


def groups(runs: list[Run], metric: str) -> list[plots.Group]:
    """Runs that differ in their seeds, together.

    Args:
        runs: the runs.
        metric: what is drawn of them.

    Returns:
        The groups, in the order of their first runs, each at the steps that all of its runs have.

    Raises:
        Refused: two runs of one group have the same seed, or no step in common.
    """
    found: dict[tuple[str, ...], list[Run]] = {}
    names = labels(runs)
    for name, run in zip(names, runs, strict=True):
        found.setdefault(name, []).append(run)
    return [_group(", ".join(name), group, metric) for name, group in found.items()]


def labels(runs: list[Run]) -> list[tuple[str, ...]]:
    """What tells each run from others but for its seed.

    Args:
        runs: the runs.

    Returns:
        For each its command, its preset and its environment, where these differ between runs, then
        the options that differ between runs that are the same in these.
    """
    families = [(run.command, *(run.options.get(flag, "") for flag in _FAMILY)) for run in runs]
    out = []
    for family, run in zip(families, runs, strict=True):
        mine = [other for kin, other in zip(families, runs, strict=True) if kin == family]
        parts = [
            name
            for name, column in zip(family, zip(*families, strict=True), strict=True)
            if len(set(column)) > 1 and name
        ]
        for flag, value in run.options.items():
            idle = flag in _IDLE or flag.startswith("--evaluate") or flag == "--seed"
            if not idle and any(other.options.get(flag) != value for other in mine):
                parts.append(f"{flag.removeprefix('--')} {value}")
        out.append(tuple(parts))
    return out


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
            found[path.stem] = load(path)["rewards"].double()
    return found if "trained" in found else {}


def flat(options: dict[str, Any]) -> dict[str, str]:
    """Options of a run's configuration by flag, as text.

    Args:
        options: the configuration's.

    Returns:
        ``{"--meta-rate": "0.0001", ...}``.
    """
    found: dict[str, str] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            found |= flat(value)
        else:
            words = value if isinstance(value, list) else [value]
            found[as_flag(name)] = " ".join(map(str, words)) or "none"
    return found


# ------------------------------------------------------------------------------------- parts


def _group(label: str, runs: list[Run], metric: str) -> plots.Group:
    seeds: dict[str, Run] = {}
    for run in runs:
        seed = run.options.get("--seed", "")
        if seed in seeds:
            both = f"{str(seeds[seed].folder)!r} and {str(run.folder)!r}"
            raise Refused(f"{both} have the same options and the same seed {seed}; leave out one")
        seeds[seed] = run
    curves = [
        {row["step"]: row[metric] for row in run.history if _number(row.get(metric))}
        for run in runs
    ]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not common:
        names = ", ".join(repr(str(run.folder)) for run in runs)
        raise Refused(f"{names} have no step in common at which there is a {metric}")
    values = [[curve[step] for step in common] for curve in curves]
    lives: dict[str, list[Tensor]] = {}
    if all(run.results for run in runs):
        shared = [name for name in runs[0].results if all(name in run.results for run in runs)]
        lives = {name: [run.results[name] for run in runs] for name in shared}
    step = torch.tensor(common)
    return plots.Group(label, step, torch.tensor(values, dtype=torch.float64), lives)


def _metric(asked: str | None, runs: list[Run]) -> str:
    """What is drawn: what is asked for, if all runs have it."""
    have = [
        {name for row in run.history for name, value in row.items() if _number(value)}
        - {"step", "seconds"}
        - (set() if any(row.get("episodes", 1) for row in run.history) else {"return"})
        for run in runs
    ]
    known = set.intersection(*have)
    if asked is None:
        asked = "return" if "return" in known else "reward"
        if asked not in known:
            raise Refused(f"there is no reward in all of these runs; {_choice(known)}")
    if asked not in known:
        raise Refused(f"--metric is {asked!r}, which not all of these runs have; {_choice(known)}")
    return asked


def _choice(known: set[str]) -> str:
    return f"choose --metric from {', '.join(sorted(known))}" if known else "none has any"


def _title(runs: list[Run]) -> str:
    """What all runs have in common."""
    first = runs[0]
    parts = []
    if all(run.command == first.command for run in runs):
        parts.append(first.command)
    for flag in ("--env", "--algorithm", "--levels"):
        if flag in first.options and all(
            run.options.get(flag) == first.options[flag] for run in runs
        ):
            parts.append(first.options[flag])
    return ", ".join(parts) or "runs"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
