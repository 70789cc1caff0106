"""The ``paramtree`` command: the main jobs, with progress, checkpoints, resume and a picture."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

_NEEDED = ("matplotlib", "rich", "safetensors", "tyro")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, if what commands need is installed.

    Args:
        argv: its words; those of the process without its name when None.

    Returns:
        The exit status, as in ``command``.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        what = f"the command needs {', '.join(missing)}: pip install 'paramtree[cli]'"
        print(f"paramtree: {what}", file=sys.stderr)
        return 2
    from . import command

    return command.main(argv)
