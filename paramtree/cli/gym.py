"""``paramtree ppo`` and ``paramtree sac``: train an agent in an environment, and look at it."""

import math
import re
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import folder as files
from . import job
from .gym_options import GymOptions
from .interrupt import Interrupt
from .options import to_config
from .outcome import Stopped, refusing

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from ..meta import Training
    from .agents import Player
    from .world import World

_POSITIVE = {  # or 0
    "ppo": "rate clip value-clip critic-coeff entropy-coeff max-grad-norm target-kl first-std",
    "sac": "rate critic-rate alpha-rate start-steps alpha",
}
_SHARES = {"ppo": "lmbda", "sac": "tau"}
_AT_ONCE = 20  # episodes of an evaluation that are played side by side


class Built(NamedTuple):
    """What a run consists of."""

    world: "World"
    training: "Training"
    player: Any  # state -> Player
    console: "Console"


def run(options: GymOptions, began: float) -> None:
    """Do what ``paramtree ppo`` or ``paramtree sac`` was asked to.

    Args:
        options: the options, with the number of threads.
        began: the ``time.monotonic()`` at which the command began.

    Raises:
        Refused: wrong use.
        Stopped: the user asked for an end.
        Diverged: a number is no longer finite.
    """
    name = re.sub(r"\W+", "-", options.env)
    folder = Path("runs", f"{options.command}-{name}")
    ranges = {f"--{name}": (0, math.inf) for name in _POSITIVE[options.command].split()}
    ranges[f"--{_SHARES[options.command]}"] = (0, 1)
    job.run(job.Job(build, work, ranges), options, folder, began)


def build(options: GymOptions) -> Built:
    """The training and its environments, and a look at all that can be wrong.

    Args:
        options: the options.

    Returns:
        What the run consists of.

    Raises:
        Refused: an option can't be, or the environment is of another kind.
    """
    from rich.console import Console

    with refusing():
        from . import run
        from .world import World

        algorithm = import_module(f".{options.command}", __package__)
    run.set_up(1 if options.threads is None else options.threads, options.device)
    console = Console()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    with refusing():
        world = World(
            options.env, options.env_args, options.episode_limit, options.workers, options.device
        )
        training, player = algorithm.make_training(options, world, say)
    return Built(world, training, player, console)


def work(options: Any, built: Built, folder: Path, interrupt: Interrupt, began: float) -> None:
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

    key = rng.fold_in(rng.key(options.seed, options.device), "training")
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
        words=Words("training", _told, "a smaller --rate"),
    )
    evaluate(options, built, built.player(state), folder, interrupt)
    summary, curve = folder / files.SUMMARY, folder / files.CURVE
    built.console.print(f"{summary} and {curve}", soft_wrap=True, highlight=False)


def _told(row: dict[str, Any]) -> str:
    return f"return {row['return']:.1f}" if "return" in row else "no episode has ended yet"


def evaluate(
    options: GymOptions, built: Built, player: "Player", folder: Path, interrupt: Interrupt
) -> None:
    """Evaluate an agent, and write the summary and the picture.

    Args:
        options: the run's options.
        built: what ``build`` gave.
        player: the agent.
        folder: the run's folder, locked.
        interrupt: whether to stop.

    Raises:
        Stopped: the user asked for it.
    """
    from . import plots

    began, history = time.monotonic(), files.read_metrics(folder)
    steps, seconds = (history[-1][name] if history else 0 for name in ("step", "seconds"))
    found: dict[str, Any] = {"steps": steps}
    mean = None
    if options.evaluation.evaluate:
        returns = episodes(options, built, player, folder, interrupt)
        mean, std = float(returns.mean()), float(returns.std(correction=0))
        found |= {"mean": mean, "std": std, "returns": returns.tolist()}
        built.console.print(_result(built.world, found), soft_wrap=True, highlight=False)
    title = f"{options.env}, {options.command}"
    plots.write(folder / files.CURVE, plots.returns_figure(title, history, mean))
    seconds += time.monotonic() - began
    files.write_json(folder / files.SUMMARY, {**found, "seconds": round(seconds, 3)})


def episodes(
    options: GymOptions, built: Built, player: "Player", folder: Path, interrupt: Interrupt
) -> "Tensor":
    """Returns of an evaluation's episodes, which training has not seen.

    Args:
        options: the run's options.
        built: what ``build`` gave.
        player: the agent.
        folder: the run's folder.
        interrupt: whether to stop.

    Returns:
        ``[episodes]``.

    Raises:
        Stopped: the user asked for it.
    """
    import torch

    from .. import rng
    from ..interop import gymnasium as interop
    from .progress import progress

    key = rng.fold_in(rng.key(options.seed, options.device), "evaluation")
    total, found = options.evaluation.evaluate, []
    size = min(_AT_ONCE, total)
    envs = built.world.copies(size)
    with progress(built.console, "evaluation", total) as show:
        for first in range(0, total, size):
            returns = interop.evaluate(
                envs,
                player.model,
                player.params,
                player.buffers,
                rng.fold_in(key, first),
                min(size, total - first),
                player.dist_class,
                rescale=built.world.rescale,
                deterministic=options.evaluation.deterministic,
            )
            found.append(returns)
            show(first + len(returns), "")
            if interrupt.asked:
                how = files.resume_command(folder)
                raise Stopped(f"stopped in the evaluation; go on with: {how}")
    envs.close()
    return torch.cat(found).cpu()


def _result(world: "World", found: dict[str, Any]) -> str:
    """An evaluation in a line."""
    returns = found["returns"]
    line = f"{len(returns)} episodes after {found['steps']} steps: return {found['mean']:.1f} on "
    line += f"average, from {min(returns):.1f} to {max(returns):.1f}"
    threshold = world.spec.reward_threshold
    return line if threshold is None else f"{line}; {threshold:.1f} counts as solved"
