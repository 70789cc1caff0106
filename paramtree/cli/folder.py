"""A run's folder, and nothing in it is ever half written.

    config.json     what was asked for: the command, its options, the library's version
    metrics.jsonl   one line a step, or a round of several
    checkpoints/    the last two states, step_00000300.safetensors
    evaluation/     the finished parts of the evaluation, where it takes long
    summary.json    its result
    curve.png       its picture
    lock            held by the process that works here

A step's line is written before its checkpoint. Lines after the last checkpoint belong to steps that
a kill has undone; they are cut off on resume. No torch here: a run's folder stands before it loads.
"""

import contextlib
import fcntl
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import paramtree

from .outcome import Refused, refusing

_T = TypeVar("_T")

CONFIG, METRICS, SUMMARY, CURVE = "config.json", "metrics.jsonl", "summary.json", "curve.png"
RESULTS = "results.json"
CHECKPOINTS, EVALUATION, LOCK = "checkpoints", "evaluation", "lock"
_TEMPORARY = ".{}.tmp"
_KEPT = 2  # checkpoints, so that there is one to go back to
_FIRST = "lpg"  # the command that is meant where none is named


def resume_command(folder: Path) -> str:
    """What to type to go on with a run."""
    command = _FIRST
    with contextlib.suppress(Refused):
        command = read_config(folder)["command"]
    return f"paramtree {command} --resume {shlex.quote(str(folder))}"


# ------------------------------------------------------------------------- whose folder it is


def read_config(folder: Path, command: str = _FIRST) -> dict[str, Any]:
    """What a run was started with.

    Args:
        folder: its folder.
        command: the command that would start one.

    Returns:
        ``{"paramtree": version, "command": ..., "options": {...}}``.

    Raises:
        Refused: the folder holds no run.
    """
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        if {"paramtree", "command", "options"} <= set(config):
            return config
        why = f"{CONFIG} is not one of paramtree's"
    except OSError as error:
        why = f"{CONFIG}: {error.strerror}"
    except (ValueError, TypeError):
        why = f"{CONFIG} is damaged"
    raise Refused(
        f"{str(folder)!r} holds no run ({why}); start one with paramtree {command} --out "
        f"{shlex.quote(str(folder))}"
    )


def claim(
    folder: Path,
    options: dict[str, Any],
    fresh: bool,
    build: Callable[[], _T],
    command: str = _FIRST,
) -> _T:
    """Make a locked folder that of a new run, if what it is to do can be built.

    Args:
        folder: the folder, as ``locked`` has it.
        options: what the run is started with.
        fresh: whether a run that is there is removed first.
        build: gives what the run needs, or raises ``Refused``.
        command: the command whose run it is.

    Returns:
        What ``build`` gave.

    Raises:
        Refused: the folder is not free, or by ``build``; then it is as it was before.
    """
    require_free(folder, fresh)
    config = {"paramtree": paramtree.__version__, "command": command, "options": options}
    anew = not (folder / CONFIG).exists()
    if anew:  # at once, so that a kill during the slow start leaves a run that can be resumed
        write_json(folder / CONFIG, config)
    try:
        built = build()
    except Refused:
        if anew:
            (folder / CONFIG).unlink()
            (folder / LOCK).unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    if not anew:
        _clear(folder)
        write_json(folder / CONFIG, config)
    return built


def require_free(folder: Path, fresh: bool = False) -> None:
    """Refuse a folder that holds something.

    Args:
        folder: where a run is to be started.
        fresh: whether it may be a run, which is then removed.

    Raises:
        Refused: the folder holds a run, or something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise Refused(f"{str(folder)!r} is not a folder; choose another for --out")
    held = {path.name for path in folder.iterdir()} - {LOCK, _TEMPORARY.format(CONFIG)}
    if not held:
        return
    try:
        read_config(folder)
    except Refused:
        some = ", ".join(sorted(held)[:3]) + (", ..." if len(held) > 3 else "")
        text = f"{str(folder)!r} holds files, but no run ({some}); choose another folder for --out"
        raise Refused(text) from None
    if not fresh:
        raise Refused(
            f"{str(folder)!r} already holds a run; go on with it by {resume_command(folder)}, or "
            "choose another folder for --out (--fresh would remove this run and start anew)"
        )


def _clear(folder: Path) -> None:
    """Remove a run and nothing else; its configuration goes last."""
    for name in (METRICS, SUMMARY, RESULTS, CURVE):
        for path in (folder / name, folder / _TEMPORARY.format(name)):
            path.unlink(missing_ok=True)
    for name, pattern in ((CHECKPOINTS, "step_*"), (EVALUATION, "*")):
        inner = folder / name
        if inner.is_symlink() or not inner.is_dir():
            continue
        ours = [*inner.glob(pattern + ".safetensors"), *inner.glob(f".{pattern}.safetensors.*.tmp")]
        for path in ours:
            path.unlink()
        with contextlib.suppress(OSError):  # somebody else's files are in it
            inner.rmdir()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the one process that works in a folder; the lock of a dead process is none.

    Args:
        folder: the folder, which is made when it is missing.

    Yields:
        None.

    Raises:
        Refused: another process works there, or the folder can't be written to.
    """
    with refusing():
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked_file(folder)
    with lock:
        os.truncate(lock.fileno(), 0)
        os.write(lock.fileno(), b"%d\n" % os.getpid())
        yield


def _locked_file(folder: Path) -> Any:
    while True:
        lock = open(folder / LOCK, "a+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().decode(errors="replace").strip() or "unknown"
            lock.close()
            raise Refused(
                f"{str(folder)!r} is in use by another process ({owner}), which holds its lock; "
                "wait for it to end, or stop it with Ctrl-C"
            ) from None
        if os.fstat(lock.fileno()).st_nlink:
            return lock
        lock.close()  # its owner removed it with the folder in between


# -------------------------------------------------------------------------- what is in it


def write(path: Path, data: bytes) -> None:
    """Write a file; a kill at any moment leaves the old one or the new one, whole.

    Args:
        path: the file, in a folder that is locked.
        data: all of it.
    """
    temporary = path.with_name(_TEMPORARY.format(path.name))
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, as ``write`` does.

    Args:
        path: the file.
        value: what JSON knows.
    """
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, the oldest first."""
    return sorted((folder / CHECKPOINTS).glob("step_*.safetensors"))


def newest(folder: Path) -> Path:
    """Newest checkpoint of a run.

    Raises:
        Refused: there is none.
    """
    found = checkpoints(folder)
    if not found:
        raise Refused(
            f"{str(folder)!r} has no checkpoint yet; go on with the run by {resume_command(folder)}"
        )
    return found[-1]


def last_step(folder: Path) -> int:
    """Step of the newest checkpoint of a run, 0 where there is none."""
    found = checkpoints(folder)
    return int(found[-1].stem.removeprefix("step_")) if found else 0


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after a step lies; its folder is made."""
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    return folder / CHECKPOINTS / f"step_{step:08d}.safetensors"


def remove_old_checkpoints(folder: Path) -> None:
    """Keep the last two."""
    for path in checkpoints(folder)[:-_KEPT]:
        path.unlink()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Metrics of a run, a dictionary a step.

    Args:
        folder: the run's folder.

    Returns:
        ``[{"step": 1, ..., "seconds": ...}, ...]``, without a last line that a kill cut short.
    """
    rows = []
    with contextlib.suppress(FileNotFoundError, ValueError):
        with open(folder / METRICS, "rb") as file:
            rows.extend(json.loads(line) for line in file)
    return rows


def cut_metrics(folder: Path, step: int) -> float:
    """Cut a run's metrics back to what its checkpoint knows of.

    Args:
        folder: the run's folder.
        step: the last step to keep.

    Returns:
        The seconds that the run had taken by then.
    """
    rows = [row for row in read_metrics(folder) if row["step"] <= step]
    if (folder / METRICS).exists():
        write(folder / METRICS, b"".join(line(row) for row in rows))
    return rows[-1]["seconds"] if rows else 0.0


def line(row: dict[str, Any]) -> bytes:
    """A step's metrics as a line."""
    return (json.dumps(row) + "\n").encode()
