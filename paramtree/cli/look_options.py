"""Options of ``look``; nothing here loads torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .options import Folder


@dataclass(frozen=True)
class LookOptions:
    """Draw what a run has learned: a rule and its agents, or an agent before and after learning."""

    checkpoint: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a run of lpg, ppo or sac, one of its checkpoints, the name of a rule that comes
    with paramtree, or the path of a rule's card."""
    levels: str = "small"
    """For lpg, distribution over levels, by name."""
    count: int = 3
    """For lpg, number of held-out levels, an agent on each."""
    ages: tuple[int, ...] = (1, 50, 250)
    """For lpg, updates after which the agents are looked at; their predictions and episodes after
    the last."""
    gamma: float = 0.99
    """For lpg, discount of the returns and of the values' errors."""
    gammas: tuple[float, ...] = (0.5, 0.9, 0.99)
    """For lpg, discounts of the values that are read from the predictions."""
    workers: int | None = None
    """For lpg, copies of its world in which each agent acts; None for the number in the rule's
    training."""
    seed: int = 0
    """Seed of the levels, of the episodes and of everything else."""
    out: Folder = None
    """Folder for the pictures and look.json, made anew each time; None for look in the run's."""
    threads: int | None = None
    """Threads of each operation; None for one a processor."""
    device: str = "cpu"
    """Where the work is done: cpu, cuda, cuda:1."""
