"""``paramtree lpg``: meta-trains a learned policy gradient, and shows how good it has become."""

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramtree

from . import folder as files
from . import job
from .interrupt import Interrupt
from .options import A2C, LpgOptions, flat, to_config
from .outcome import Stopped, refusing

if TYPE_CHECKING:
    from rich.console import Console
    from tensordict import TensorDict

    from ..meta import Training

_SHARES = "lmbda replay staleness meta-decay sigma-decay"


def run(options: LpgOptions, began: float) -> None:
    """Do what ``paramtree lpg`` was asked to.

    Args:
        options: the options, with the number of threads.
        began: the ``time.monotonic()`` at which the command began.

    Raises:
        Refused: wrong use.
        Stopped: the user asked for an end.
        Diverged: a number is no longer finite.
    """
    ranges = {f"--{name}": (0.0, 1.0) for name in _SHARES.split()}
    ranges |= {"--average": (0, 1 - 2**-53), "--meta-rate": (0, math.inf)}
    ranges |= {name: (0, sys.float_info.max) for name in flat(options) if name.endswith("-coeff")}
    job.run(job.Job(build, work, ranges), options, Path("runs", options.preset), began)


def build(options: LpgOptions) -> "Training":
    """The training, and a look at all that can be wrong before the long work.

    Args:
        options: the options.

    Returns:
        The training.

    Raises:
        Refused: an option can't be.
    """
    with refusing():
        from . import run, training
    run.set_up(1 if options.threads is None else options.threads, options.device)
    with refusing():
        found = training.make_training(options)
        if options.evaluation.evaluate:
            one = replace(options, evaluation=replace(options.evaluation, evaluate=1))
            training.contestants(one, training.first_params(one), training.make_setting(one))
        return found


def work(
    options: LpgOptions, training: "Training", folder: Path, interrupt: Interrupt, began: float
) -> None:
    """Train from the last checkpoint on, then evaluate.

    Args:
        options: the options.
        training: the training.
        folder: the run's folder, locked.
        interrupt: whether to stop.
        began: the ``time.monotonic()`` at which the command began.

    Raises:
        Refused: the checkpoint doesn't fit.
        Stopped: the user asked for an end.
        Diverged: a number is no longer finite.
    """
    from rich.console import Console

    from .run import META_TRAINING, train
    from .training import task_names, training_key

    console = Console()
    words = META_TRAINING._replace(tasks=task_names(options), skips=options.on_bad == "skip")
    state = train(
        training,
        training_key(options),
        folder,
        steps=options.steps,
        checkpoint_every=options.checkpoint_every,
        metadata={"command": "lpg", "options": to_config(options)},
        interrupt=interrupt,
        console=console,
        began=began,
        words=words,
    )
    evaluate(options, state["average"], folder, interrupt, console)
    summary, curve = folder / files.SUMMARY, folder / files.CURVE
    console.print(f"{summary} and {curve}", soft_wrap=True, highlight=False)


def evaluate(
    options: LpgOptions,
    params: "TensorDict",
    folder: Path,
    interrupt: Interrupt,
    console: "Console",
) -> None:
    """Evaluate a trained rule, and write the summary and the picture.

    Args:
        options: the run's options.
        params: the rule's parameters.
        folder: the run's folder, locked.
        interrupt: whether to stop.
        console: where the progress and the table are shown.

    Raises:
        Stopped: the user asked for it; finished parts are kept.
    """
    from . import evaluation, plots, summary, training

    def watch() -> None:
        if interrupt.asked:
            raise Stopped(f"stopped in the evaluation; go on with: {files.resume_command(folder)}")

    began, history = time.monotonic(), files.read_metrics(folder)
    seconds = history[-1]["seconds"] if history else 0.0
    results: dict[str, TensorDict] = {}
    found: dict[str, Any] = {}
    if options.evaluation.evaluate:
        setting = training.make_setting(options)
        parts = training.contestants(options, params, setting)
        marks = {part.name: mark(options, part.name) for part in parts}
        cache = folder / files.EVALUATION
        results, earlier = evaluation.contest(parts, console, watch=watch, cache=cache, marks=marks)
        seconds += earlier
        found = summary.summarized(results)
        console.print(summary.table(found, evaluation.title(setting)))
        files.write_json(folder / files.RESULTS, evaluation.raw(results))
    plots.write(folder / files.CURVE, plots.lpg_figure(history, evaluation.curves(results)))
    seconds += time.monotonic() - began
    files.write_json(folder / files.SUMMARY, {**found, "seconds": round(seconds, 3)})


def mark(options: LpgOptions, name: str) -> dict[str, Any]:
    """What a contestant's result depends on, among what can change in a run's folder."""
    found: dict[str, Any] = {"version": paramtree.__version__}
    if name == "trained":
        found["steps"] = options.steps
    if name == "a2c":
        found |= A2C._asdict()
    return found
