"""``paramtree mgrl``: trains an agent that learns its hyper-parameters, and looks at both."""

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import folder as files
from . import job
from .interrupt import Interrupt
from .mgrl_options import MgrlOptions
from .options import to_config
from .outcome import Stopped, refusing

if TYPE_CHECKING:
    from rich.console import Console
    from tensordict import TensorDict

    from ..meta import Training
    from .mgrl_training import World

_POSITIVE = "entropy-coeff critic-coeff clip-epsilon lr max-grad-norm meta-rate "  # or 0
_POSITIVE += "outer-critic-coeff outer-entropy-coeff"
_SHARES = "lmbda decay reference-gamma reference-lmbda"


class Built(NamedTuple):
    """What a run consists of."""

    world: "World"
    training: "Training"
    console: "Console"


def run(options: MgrlOptions, began: float) -> None:
    """Do what ``paramtree mgrl`` was asked to.

    Args:
        options: the options, with the number of threads.
        began: the ``time.monotonic()`` at which the command began.

    Raises:
        Refused: wrong use.
        Stopped: the user asked for an end.
        Diverged: a number is no longer finite.
    """
    ranges: dict[str, tuple[float, float]] = {f"--{n}": (0, math.inf) for n in _POSITIVE.split()}
    ranges |= {f"--{name}": (0, 1) for name in _SHARES.split()}
    folder = Path("runs", f"{options.command}-{options.env.replace('_', '-')}")
    job.run(job.Job(build, work, ranges), options, folder, began)


def build(options: MgrlOptions) -> Built:
    """The training, and a look at all that can be wrong before the long work.

    Args:
        options: the options.

    Returns:
        What the run consists of.

    Raises:
        Refused: an option can't be.
    """
    from rich.console import Console

    with refusing():
        from . import mgrl_training, run
    run.set_up(1 if options.threads is None else options.threads, options.device)
    with refusing():
        world = mgrl_training.make_world(options.env, options.env_args)
        if options.device != "cpu":
            world = world._replace(level=world.level.to(options.device).lock_())
        return Built(world, mgrl_training.make_training(options, world), Console())


def work(
    options: MgrlOptions, built: Built, folder: Path, interrupt: Interrupt, began: float
) -> None:
    """Train from the last checkpoint on, then evaluate.

    Args:
        options: the options.
        built: what ``build`` gave.
        folder: the run's folder, locked.
        interrupt: whether to stop.
        began: the ``time.monotonic()`` at which the command began.

    Raises:
        Refused: the checkpoint doesn't fit.
        Stopped: the user asked for an end.
        Diverged: a number is no longer finite.
    """
    from .. import rng
    from .run import Words, train

    def told(row: dict[str, Any]) -> str:
        what = f"reward {row.get('reward', math.nan):.3f}"
        if row["episodes"]:
            what = f"return {row['return']:.1f}"
        learned = [f"{name} {_text(row[name])}" for name in options.outer.learn]
        return ", ".join([what, *learned])

    if "clip_epsilon" in options.outer.learn:
        text = "clip_epsilon has a meta-gradient of 0 and stays what it is; the others are learned"
        print(f"paramtree: {text}", file=sys.stderr)
    key = rng.fold_in(rng.key(options.seed, options.device), "training")
    skips = options.on_bad == "skip"
    words = Words("training", told, "a smaller --lr or --meta-rate", (options.env,), skips)
    state = train(
        built.training,
        key,
        folder,
        steps=options.steps,
        checkpoint_every=options.checkpoint_every,
        metadata={"command": options.command, "options": to_config(options)},
        interrupt=interrupt,
        console=built.console,
        began=began,
        words=words,
    )
    evaluate(options, built, state, folder, interrupt)
    summary, curve = folder / files.SUMMARY, folder / files.CURVE
    built.console.print(f"{summary} and {curve}", soft_wrap=True, highlight=False)


def _text(number: float | list[float]) -> str:
    """A hyper-parameter, or the first and last of a schedule."""
    if not isinstance(number, list):
        return f"{number:.4g}"
    return f"{number[0]:.4g} to {number[-1]:.4g}"


def evaluate(
    options: MgrlOptions, built: Built, state: "TensorDict", folder: Path, interrupt: Interrupt
) -> None:
    """Evaluate an agent, and write the summary and the picture.

    Args:
        options: the run's options.
        built: what ``build`` gave.
        state: the training's last state.
        folder: the run's folder, locked.
        interrupt: whether to stop.

    Raises:
        Stopped: the user asked for it.
    """
    from .. import rng
    from . import mgrl_training, plots

    began, history = time.monotonic(), files.read_metrics(folder)
    seconds = history[-1]["seconds"] if history else 0.0
    found: dict[str, Any] = {"steps": int(state["step"])}
    shown = mgrl_training.make_hyper(options).show(state["eta"], state["agents", "trajectory"])
    learned = {name: shown[name].tolist() for name in options.outer.learn}
    found["learned"] = learned
    if options.evaluation.evaluate:
        key = rng.fold_in(rng.key(options.seed, options.device), "evaluation")
        number = options.evaluation.evaluate
        returns = mgrl_training.returns(options, built.world, state, key, number).cpu()
        if interrupt.asked:
            how = files.resume_command(folder)
            raise Stopped(f"stopped in the evaluation; go on with: {how}")
        mean, std = float(returns.mean()), float(returns.std(correction=0))
        found |= {"mean": mean, "std": std, "returns": returns.tolist()}
        line = f"{number} episodes: return {mean:.1f} on average, from {float(returns.min()):.1f}"
        built.console.print(f"{line} to {float(returns.max()):.1f}", highlight=False)
    text = ", ".join(f"{name} {_text(number)}" for name, number in learned.items())
    built.console.print(f"learned: {text}", soft_wrap=True, highlight=False)
    judged = {"gamma": options.outer.reference_gamma, "lmbda": options.outer.reference_lmbda}
    references = {name: judged.get(name) for name in options.outer.learn}
    title = f"{options.env}, {options.algorithm}"
    figure = plots.hyper_figure(title, history, references, found.get("mean"))
    plots.write(folder / files.CURVE, figure)
    seconds += time.monotonic() - began
    files.write_json(folder / files.SUMMARY, {**found, "seconds": round(seconds, 3)})
