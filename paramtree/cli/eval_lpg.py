"""``paramtree eval-lpg``: trains fresh agents with a saved rule on levels that it has not seen."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from tensordict import TensorDict, TensorDictBase

from .. import tree
from ..checkpoint import load
from ..envs import level_distribution
from . import evaluation, plots, summary
from . import folder as files
from .interrupt import interrupts
from .options import EvalOptions, LpgOptions, from_config
from .outcome import Refused, Stopped, refusing
from .run import read_checkpoint, set_up
from .training import contestants, make_rule, training_key


def run(options: EvalOptions) -> None:
    """Do what ``paramtree eval-lpg`` was asked to.

    Args:
        options: the options, with the number of threads.

    Raises:
        Refused: wrong use.
        Stopped: the user asked for an end.
    """
    began, console = time.monotonic(), Console()
    set_up(1 if options.threads is None else options.threads, options.device)
    if options.out is not None:
        require_no_results(options.out)
    trained, params = saved_rule(options.checkpoint, options.device)
    with refusing():
        setting = evaluation.held_out(
            level_distribution(options.levels),
            options.count,
            options.seed,
            options.device,
            updates=options.updates,
            length=trained.length,
            workers=trained.agents.workers if options.workers is None else options.workers,
        )
        parts = contestants(trained, params, setting)
        if options.out is not None:  # before the long work, which would be lost
            options.out.mkdir(parents=True, exist_ok=True)
    with interrupts() as interrupt:

        def watch() -> None:
            if interrupt.asked:
                raise Stopped("stopped in the evaluation; nothing was written")

        results, _ = evaluation.contest(parts, console, watch=watch)
    found = summary.summarized(results)
    console.print(summary.table(found, evaluation.title(setting)))
    if options.out is not None:
        plots.draw(options.out / files.CURVE, history=[], results=results)
        seconds = {"seconds": round(time.monotonic() - began, 3)}
        files.write_json(options.out / files.SUMMARY, {**found, **seconds})


def require_no_results(out: Path) -> None:
    """Refuse a folder that has results already, or will have those of its run.

    Args:
        out: where the results are to go.

    Raises:
        Refused: it holds a run, a summary or a picture, or is no folder.
    """
    if out.exists() and not out.is_dir():
        raise Refused(f"{str(out)!r} is not a folder; choose another for --out")
    for name in (files.CONFIG, files.SUMMARY, files.CURVE):
        if (out / name).exists():
            raise Refused(f"{str(out / name)!r} is there already; choose another folder for --out")


def saved_rule(path: Path, device: str) -> tuple[LpgOptions, TensorDict]:
    """Rule of a run, with the options that it was trained under.

    Args:
        path: the run's folder, or one of its checkpoints.
        device: where the parameters go.

    Returns:
        ``(options, params)``.

    Raises:
        Refused: there is no such checkpoint, it is damaged, or not one of a run of ``lpg``.
    """
    file = files.newest(path) if path.is_dir() else path
    state, metadata = read_checkpoint(file)
    config: dict[str, Any] = files.read_config(path) if path.is_dir() else metadata
    if config.get("command") != "lpg" or not isinstance(state.get("average", None), TensorDictBase):
        raise Refused(
            f"{str(file)!r} holds no learned rule; expected a checkpoint of paramtree lpg, or the "
            "folder of its run"
        )
    with refusing():
        options = replace(from_config(config.get("options")), device=device)
        first = make_rule(options).init(training_key(options))[0]
        wanted = tree.new({**tree.entries(state), "rule": first, "average": first})
        return options, load(file, wanted, device=device)["average"]
