"""The ``paramtree`` command: the main jobs, with progress, checkpoints, resume and a picture."""

from .command import main as main
