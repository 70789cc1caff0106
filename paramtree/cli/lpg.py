"""``paramtree lpg``: meta-trains a learned policy gradient, and shows how good it has become.

torch is loaded when the folder is already this run's: a wrong one is told of at once, and a run
that is killed in its first second can be resumed.
"""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramtree

from . import folder as files
from .interrupt import Interrupt, interrupts
from .options import A2C, FREE_ON_RESUME, LpgOptions, as_flag, flat, from_config, to_config
from .outcome import Refused, Stopped, refusing

if TYPE_CHECKING:
    from rich.console import Console
    from tensordict import TensorDict
    from torch import Tensor

    from ..meta import Training


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
    require_numbers(options)
    folder = options.resume or options.out or Path("runs", options.preset)
    if options.resume is None:
        files.require_free(folder, options.fresh)
    else:
        files.read_config(folder)
    with interrupts() as interrupt, files.locked(folder):
        if options.resume is None:
            config = to_config(options)
            training = files.claim(folder, config, options.fresh, lambda: build(options))
        else:
            keep_config(folder, options)
            training = build(options)
        work(options, training, folder, interrupt, began)


def require_numbers(options: LpgOptions) -> None:
    """Refuse numbers that the library is told of too late, or never.

    Args:
        options: the options.

    Raises:
        Refused: one is out of its range.
    """
    ranges = {
        "--steps": (0, math.inf),
        "--checkpoint-every": (0, math.inf),
        "--evaluate": (0, math.inf),
        "--seed": (-(2**63), 2**63 - 1),
        "--gamma": (0, 1),
        "--lmbda": (0, 1),
        "--average": (0, 1 - 2**-53),
    }
    numbers = flat(options)
    for name, (low, high) in ranges.items():
        if not low <= numbers[name] <= high:
            wanted = f"at least {low}" if high == math.inf else f"a number from {low} to {high}"
            raise Refused(f"{name} is {numbers[name]}, expected {wanted}")


def keep_config(folder: Path, options: LpgOptions) -> None:
    """Write down what may change when a run goes on; refuse what may not.

    Args:
        folder: the run's folder, locked.
        options: the options that are now asked for.

    Raises:
        Refused: others than ``FREE_ON_RESUME`` differ from what the folder has, or the run has done
            more steps than these.
    """
    config = files.read_config(folder)
    with refusing():
        before = from_config(config["options"])
    old, new = flat(before), flat(replace(options, out=None, resume=None, fresh=False))
    changed = [name for name in old if old[name] != new[name]]
    free = [as_flag(name) for name in FREE_ON_RESUME]
    fixed = [f"{name} (is {old[name]}, not {new[name]})" for name in changed if name not in free]
    if fixed:
        raise Refused(
            f"--resume takes the options from {str(folder)!r}, and these can't change on the way: "
            f"{', '.join(fixed)}; leave them out, or start another run with --out"
        )
    done = files.last_step(folder)
    if options.steps < done:
        raise Refused(f"--steps is {options.steps}, but the run has done {done}; give more or none")
    if changed:
        files.write_json(folder / files.CONFIG, {**config, "options": to_config(options)})


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

    from .run import train
    from .training import training_key

    console = Console()
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
    results: dict[str, Tensor] = {}
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
    plots.draw(folder / files.CURVE, history=history, results=results)
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
