"""Where a picture may go, looked at before the work that would be lost."""

import os
from pathlib import Path

from .outcome import Refused


def require_file(path: Path) -> None:
    """Refuse a path that no picture can be written to.

    Args:
        path: where it is to go.

    Raises:
        Refused: its name doesn't end in .png, it is a folder, or its folder can't be written to.
    """
    if path.suffix != ".png":
        raise Refused(f"--out is {str(path)!r}, expected a name that ends in .png")
    if path.is_dir():
        raise Refused(f"{str(path)!r} is a folder; choose a file for --out")
    require_place(path.parent)


def require_place(folder: Path) -> None:
    """Refuse a folder that can't be made or written to.

    Args:
        folder: the folder.

    Raises:
        Refused: the nearest folder above it that is there is none, or can't be written to.
    """
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise Refused(f"{str(there)!r} is not a folder; choose another place for --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Refused(f"{str(there)!r} can't be written to; choose another place for --out")
