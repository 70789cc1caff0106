"""What the commands that train have in common: from options to a locked folder that is the run's.

torch is loaded when the folder is already this run's: a wrong one is told of at once, and a run
that is killed in its first second can be resumed.
"""

import math
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from . import folder as files
from .interrupt import Interrupt, interrupts
from .options import as_flag, flat, from_config, to_config
from .outcome import Refused, refusing

Range = tuple[float, float]

# What the library is told of too late, or never.
RANGES: dict[str, Range] = {
    "--steps": (0, math.inf),
    "--checkpoint-every": (0, math.inf),
    "--evaluate": (0, math.inf),
    "--seed": (-(2**63), 2**63 - 1),
    "--gamma": (0, 1),
}


class Job(NamedTuple):
    """What a command does: ``build(options)`` what it needs or raise ``Refused``, then ``work``."""

    build: Callable[[Any], Any]
    work: Callable[[Any, Any, Path, Interrupt, float], None]  # options, built, folder, ..., began
    ranges: Mapping[str, Range]  # of numbers, by flag, beside ``RANGES``


def run(job: Job, options: Any, folder: Path, began: float) -> None:
    """Do what a command was asked to.

    Args:
        job: what it does.
        options: the options, with the number of threads.
        folder: where a new run lies if the options don't say.
        began: the ``time.monotonic()`` at which the command began.

    Raises:
        Refused: wrong use.
        Stopped: the user asked for an end.
        Diverged: a number is no longer finite.
    """
    require_numbers(options, {**RANGES, **job.ranges})
    folder = options.resume or options.out or folder
    if options.resume is None:
        files.require_free(folder, options.fresh)
    else:
        resumable(folder, options.command)
    with interrupts() as interrupt, files.locked(folder):
        if options.resume is None:
            config, command = to_config(options), options.command
            built = files.claim(folder, config, options.fresh, lambda: job.build(options), command)
        else:
            keep_config(folder, options)
            built = job.build(options)
        job.work(options, built, folder, interrupt, began)


def resumable(folder: Path, command: str) -> dict[str, Any]:
    """Configuration of a run that a command may go on with.

    Args:
        folder: the run's folder.
        command: the command.

    Returns:
        What ``folder.read_config`` gives.

    Raises:
        Refused: the folder holds no run, or another command's.
    """
    config = files.read_config(folder, command)
    if config["command"] != command:
        raise Refused(
            f"{str(folder)!r} holds a run of paramtree {config['command']}; go on with it by "
            f"{files.resume_command(folder)}, or start one with paramtree {command} --out "
            f"{shlex.quote(str(folder) + '-' + command)}"
        )
    return config


def require_numbers(options: Any, ranges: Mapping[str, Range]) -> None:
    """Refuse numbers that the library is told of too late, or never.

    Args:
        options: the options.
        ranges: least and greatest number by flag; an option that is None has none.

    Raises:
        Refused: one is out of its range.
    """
    numbers = flat(options)
    for name, (low, high) in ranges.items():
        number = numbers[name]
        if number is not None and not low <= number <= high:
            wanted = f"a number from {low} to {high}"
            if high >= sys.float_info.max:
                wanted = f"at least {low}" + (", and finite" if high < math.inf else "")
            raise Refused(f"{name} is {number}, expected {wanted}")


def keep_config(folder: Path, options: Any) -> None:
    """Write down what may change when a run goes on; refuse what may not.

    Args:
        folder: the run's folder, locked.
        options: the options that are now asked for.

    Raises:
        Refused: others than those that are free on resume differ from what the folder has, or the
            run has done more steps than these.
    """
    config = files.read_config(folder)
    with refusing():
        before = from_config(config["options"], type(options))
    old, new = flat(before), flat(replace(options, out=None, resume=None, fresh=False))
    changed = [name for name in old if old[name] != new[name]]
    free = [as_flag(name) for name in options.free_on_resume]
    fixed = [f"{name} (is {old[name]}, not {new[name]})" for name in changed if name not in free]
    if fixed:
        raise Refused(
            f"--resume takes the options from {str(folder)!r}, and these can't change on the way: "
            f"{', '.join(fixed)}; leave them out, or start another run with --out"
        )
    if "--steps" in changed and options.steps < files.last_step(folder):
        done = files.last_step(folder)
        raise Refused(f"--steps is {options.steps}, but the run has done {done}; give more or none")
    if changed:
        files.write_json(folder / files.CONFIG, {**config, "options": to_config(options)})
