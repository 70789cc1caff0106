"""Options of ``look``; nothing here loads torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .options import Folder


@dataclass(frozen=True)
class LookOptions:
    """Draw what a saved rule tells agents, and what their predictions have come to mean."""

    checkpoint: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a run of lpg, or one of its checkpoints."""
    levels: str = "small"
    """Distribution over levels, by name; a tabular one."""
    count: int = 3
    """Number of held-out levels, an agent on each."""
    ages: tuple[int, ...] = (1, 50, 250)
    """Updates after which the agents are looked at; their predictions after the last."""
    gamma: float = 0.99
    """Discount of the returns and of the values' errors."""
    gammas: tuple[float, ...] = (0.5, 0.9, 0.99)
    """Discounts of the values that are read from the predictions."""
    workers: int | None = None
    """Copies of its world in which each agent acts; None for the number in the rule's training."""
    seed: int = 0
    """Seed of the levels and of everything else."""
    out: Folder = None
    """Folder for the pictures and look.json, made anew each time; None for look in the run's."""
    threads: int | None = None
    """Threads of each operation; None for one a processor."""
    device: str = "cpu"
    """Where the work is done: cpu, cuda, cuda:1."""
