"""Options of ``plot``; nothing here loads torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves of runs; those that differ in their seeds alone make an interval."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
    """Folders of runs of lpg, mgrl, ppo or sac."""
    metric: str | None = None
    """What is drawn of their metrics.jsonl; None for the return of episodes, else the reward."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("curves.png")
    """The picture, a png, made anew each time."""
