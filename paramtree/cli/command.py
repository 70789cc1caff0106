"""The command line: from its words to options, and from what happens to an exit status.

    0    done
    1    a crash, with its traceback; a training that diverged, without one
    2    wrong use, told in one paragraph
    130  stopped by the user

No torch is loaded before a command's options are known to be right.
"""

import difflib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from . import gym, lpg, mgrl
from .gym_options import GymOptions, PpoOptions, SacOptions
from .job import resumable
from .look_options import LookOptions
from .mgrl_options import MgrlOptions
from .options import PRESETS, EvalOptions, LpgOptions, from_config
from .outcome import Ended, Refused, refusing
from .plot_options import PlotOptions

_Options = LpgOptions | EvalOptions | LookOptions | PlotOptions | GymOptions | MgrlOptions
_DESCRIPTION = "Learning to learn with named trees of parameters."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its words; those of the process without its name when None.

    Returns:
        The exit status. tyro itself exits: 0 after ``--help``, 2 after a word it can't read.
    """
    began = time.monotonic()
    try:
        _run(parse(sys.argv[1:] if argv is None else argv), began)
    except Ended as end:
        return _told(str(end), end.status)
    except KeyboardInterrupt:
        return _told("stopped at once; a run goes on from its last checkpoint by --resume", 130)
    return 0


def parse(argv: Sequence[str]) -> _Options:
    """Options of the command that the words ask for.

    Args:
        argv: the words.

    Returns:
        The options: what is not given comes from the preset, or from the run that is resumed.

    Raises:
        Refused: there is no such preset, or no such run, or two options exclude one another.
        SystemExit: a word can't be read, or help was asked for.
    """

    def training(kind: Any) -> Any:
        default = _defaults(argv, kind)
        return Annotated[kind, tyro.conf.subcommand(kind.command, default=default)]

    rule = tyro.conf.subcommand("eval-lpg")
    commands: Any = training(LpgOptions) | Annotated[EvalOptions, rule]
    commands |= Annotated[LookOptions, tyro.conf.subcommand("look")]
    commands |= Annotated[PlotOptions, tyro.conf.subcommand("plot")]
    commands |= training(PpoOptions) | training(SacOptions) | training(MgrlOptions)
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    args = list(argv) or ["--help"]
    options = tyro.cli(
        commands, prog="paramtree", description=_DESCRIPTION, args=args, config=config
    )
    if isinstance(options, PlotOptions):
        return options
    looks = isinstance(options, EvalOptions | LookOptions)
    if not looks and options.resume is not None:
        for name, given in (("--out", options.out is not None), ("--fresh", options.fresh)):
            if given:
                raise Refused(f"--resume goes on in its own folder; leave out {name}")
    processors = _processors() if options.threads is None else options.threads
    return replace(options, threads=processors)


def _defaults(argv: Sequence[str], kind: Any) -> Any:
    """What a command that trains does without further options."""
    first = PRESETS["demo"] if kind is LpgOptions else kind()
    if list(argv[:1]) != [kind.command]:
        return first
    resume = _given(argv, "--resume")
    preset = _given(argv, "--preset") if kind is LpgOptions else None
    if preset is not None and preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1, cutoff=0.0)[0]
        raise Refused(
            f"--preset is {preset!r}, expected one of {', '.join(PRESETS)}; the nearest is {near!r}"
        )
    if resume is None:
        return PRESETS[preset] if preset else first
    config = resumable(Path(resume), kind.command)
    try:
        return from_config(config["options"], kind)
    except ValueError as error:
        raise Refused(
            f"the configuration in {resume!r}, of paramtree {config['paramtree']}, can't be "
            f"read: {error}"
        ) from None


def _given(argv: Sequence[str], flag: str) -> str | None:
    """Value of an option among words that are not parsed yet; the last one counts."""
    found = None
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word == flag:
            found = following
        elif word.startswith(flag + "="):
            found = word.removeprefix(flag + "=")
    return found


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(options: _Options, began: float) -> None:
    if isinstance(options, LpgOptions):
        lpg.run(options, began)
    elif isinstance(options, GymOptions):
        gym.run(options, began)
    elif isinstance(options, MgrlOptions):
        mgrl.run(options, began)
    elif isinstance(options, LookOptions):
        with refusing():
            from . import look
        look.run(options)
    elif isinstance(options, PlotOptions):
        with refusing():
            from . import plot
        plot.run(options)
    else:
        with refusing():
            from . import eval_lpg  # loads torch
        eval_lpg.run(options)


def _told(text: str, status: int) -> int:
    print("paramtree: " + text.replace("\n", " "), file=sys.stderr)
    return status
