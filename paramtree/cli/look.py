"""``paramtree look``: draws what a run has learned, and writes the numbers that are shown.

Of a rule (``lpg``) and the agents that it trains:

level_0.png        an agent's way before it learned and after, one picture for each level
episode_0.gif      the same, step by step
targets.png        what the rule tells agents, against returns and the values' errors
prediction_0.png   an agent's prediction by cell, its policy's values, and how well a linear
reading of the one gives the other; one picture for each level
training.png       all metrics of the run, where its folder is given

where targets and predictions are those of tabular grid worlds, whose values are exact; of an agent
(``ppo``, ``sac``) ``episode.gif``, before training and after. ``look.json`` has the numbers.
"""

from pathlib import Path
from typing import Any

from rich.console import Console

from . import folder as files
from . import look_agent, look_rule, plots
from .eval_lpg import is_card
from .look_options import LookOptions
from .outcome import Refused, refusing
from .places import require_place
from .run import read_checkpoint, set_up

_NUMBERS = "look.json"
_OURS = ("level_*.png", "episode*.gif", "targets.png", "prediction_*.png", "training.png")
_KINDS = {"ppo": look_agent.look, "sac": look_agent.look, "lpg": look_rule.look}


def run(options: LookOptions) -> None:
    """Do what ``paramtree look`` was asked to.

    Args:
        options: the options, with the number of threads.

    Raises:
        Refused: wrong use.
        Stopped: the user asked for an end.
    """
    console, out, path = Console(), _folder(options), options.checkpoint
    set_up(1 if options.threads is None else options.threads, options.device)
    config: dict[str, Any] = {"command": "lpg"}  # of a rule's card
    if not is_card(path):
        config = files.read_config(path) if path.is_dir() else read_checkpoint(path)[1]
    command = str(config.get("command"))
    if command not in _KINDS:
        known = ", ".join(sorted(_KINDS))
        raise Refused(f"{str(path)!r} is of paramtree {command}, expected one of {known}")

    def ready() -> None:
        with refusing():
            out.mkdir(parents=True, exist_ok=True)

    pictures, found = _KINDS[command](options, config, ready, console)
    files.write_json(out / _NUMBERS, found)  # first: what has it is a look's, even after a kill
    for pattern in _OURS:
        for file in out.glob(pattern):
            file.unlink()
    for name, picture in pictures.items():
        plots.write(out / name, picture)
    console.print(f"{out}: pictures and {_NUMBERS}", soft_wrap=True, highlight=False)


def _folder(options: LookOptions) -> Path:
    """Where the pictures go: a folder that is new, empty, or of an earlier look."""
    if options.out is None and not options.checkpoint.is_dir():
        raise Refused(f"{str(options.checkpoint)!r} is not a run's folder; give --out")
    out = options.checkpoint / "look" if options.out is None else options.out
    if out.exists() and not out.is_dir():
        raise Refused(f"{str(out)!r} is not a folder; choose another for --out")
    if out.is_dir() and any(out.iterdir()) and not (out / _NUMBERS).exists():
        raise Refused(f"{str(out)!r} holds other things; choose another folder for --out")
    require_place(out)
    return out
