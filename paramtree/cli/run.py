"""A training in its folder: stopped, killed and gone on with, it ends with the same bits.

A training's state is one tree, and a step is a function of it alone. So the only thing to do for an
exact resume is to begin with the last state that was saved, and to cut the metrics back to it. What
a step counts is its training's matter: ``state["step"]`` says how far it is.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from tensordict import TensorDict
from torch import Tensor

from ..checkpoint import load, load_metadata, save
from ..meta import Training
from . import folder as files
from .interrupt import Interrupt
from .outcome import Diverged, Refused, Stopped, refusing
from .progress import progress


def set_up(threads: int, device: str) -> None:
    """Bring torch to a run's number of threads, and see that its device is there.

    Args:
        threads: threads of each operation.
        device: name of the device.

    Raises:
        Refused: there is no such device, or the number is below 1.
    """
    if threads < 1:
        raise Refused(f"--threads is {threads}, expected at least 1")
    torch.set_num_threads(threads)
    try:
        torch.zeros((), device=device).item()  # the meta device has no values
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(f"--device is {device!r}, which can't be used here: {reason}") from None


# ------------------------------------------------------------------------------- training


class Words(NamedTuple):
    """How a training is spoken of: its name, what metrics come to, and what helps against NaN.

    Where a training says which of its tasks are ``bad``, ``tasks`` are their names, and ``skips``
    says whether it goes on without them.
    """

    job: str
    told: Callable[[dict[str, Any]], str]
    remedy: str
    tasks: Sequence[str] = ()
    skips: bool = False


META_TRAINING = Words(
    "meta-training",
    lambda row: f"reward {row.get('reward', math.nan):.4f}",
    "a smaller --meta-rate or --meta-clip",
)


def train(
    training: Training,
    key: Tensor,
    folder: Path,
    *,
    steps: int,
    checkpoint_every: float,
    metadata: dict[str, Any],
    interrupt: Interrupt,
    console: Console,
    began: float,
    words: Words = META_TRAINING,
) -> TensorDict:
    """Train in a folder, from its last checkpoint on.

    Args:
        training: the training.
        key: key of its first state.
        folder: the run's folder, locked.
        steps: number of the last step; where a step of the training is several, it may do more.
        checkpoint_every: seconds between checkpoints.
        metadata: what is written into them, beside the ``step``.
        interrupt: whether to stop.
        console: where progress is shown.
        began: the ``time.monotonic()`` from which the run's seconds count.
        words: how the training is spoken of.

    Returns:
        The state after the last step, which is saved.

    Raises:
        Refused: the checkpoint doesn't fit.
        Stopped: the user asked for it; the state is saved.
        Diverged: a metric is not finite; the state is not saved.
    """
    state = resumed(training, key, folder)
    step = int(state["step"])
    began -= files.cut_metrics(folder, step)
    saved, due = step, time.monotonic() + checkpoint_every
    with _metrics_file(folder) as log, progress(console, words.job, steps, step) as show:
        while step < steps and not interrupt.asked:
            state, metrics = training.step(state)
            step = int(state["step"])
            row = _row(step, metrics, time.monotonic() - began, words.tasks)
            if words.skips and len(row.get("bad", ())) == len(words.tasks):
                row = _finite(row)  # there is nothing to take means of
            _require_finite(row, saved, words)
            log(row)
            if "bad" in row:
                text = f"step {step} went on without {_listed(row['bad'])}, not finite"
                console.print(text, soft_wrap=True, highlight=False)
            show(step, words.told(row))
            if time.monotonic() >= due:
                _save(folder, state, step, metadata)
                saved, due = step, time.monotonic() + checkpoint_every
    if step > saved or not files.checkpoints(folder):
        _save(folder, state, step, metadata)
    if interrupt.asked:
        raise Stopped(
            f"stopped after step {step} of {steps}; go on with: {files.resume_command(folder)}"
        )
    return state


def resumed(training: Training, key: Tensor, folder: Path) -> TensorDict:
    """State to go on with: that of the newest checkpoint, or the first.

    Args:
        training: the training.
        key: key of its first state.
        folder: the run's folder.

    Returns:
        The state.

    Raises:
        Refused: the checkpoint is damaged, or not of this training.
    """
    with refusing():  # an init that refuses speaks of the options
        first = training.init(key)
    found = files.checkpoints(folder)
    if not found:
        return first
    try:
        return load(found[-1], first)
    except (ValueError, TypeError, OSError) as error:
        back = f"; without it the run goes on from {found[-2].name}" if len(found) > 1 else ""
        raise Refused(f"{error}{back}") from error


def read_checkpoint(path: Path) -> tuple[TensorDict, dict[str, Any]]:
    """Tree of a checkpoint and what was written beside it.

    Args:
        path: the file.

    Returns:
        ``(tree, metadata)``.

    Raises:
        Refused: it can't be read.
    """
    with refusing():
        return load(path), load_metadata(path)


def _save(folder: Path, state: TensorDict, step: int, metadata: dict[str, Any]) -> None:
    with open(folder / files.METRICS, "rb") as log:
        os.fsync(log.fileno())  # a checkpoint on the disk has its lines there, too
    save(files.checkpoint_path(folder, step), state, metadata={**metadata, "step": step})
    files.remove_old_checkpoints(folder)


@contextlib.contextmanager
def _metrics_file(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    with open(folder / files.METRICS, "ab", buffering=0) as file:

        def log(row: dict[str, Any]) -> None:
            file.write(files.line(row))

        yield log


def _row(step: int, metrics: TensorDict, seconds: float, tasks: Sequence[str]) -> dict[str, Any]:
    found = {name: metrics[name] for name in sorted(map(str, metrics.keys()))}
    bad = found.pop("bad", None)
    numbers = {name: x.tolist() if x.ndim else float(x) for name, x in found.items()}
    if bad is not None and bool(bad.any()):
        marked = zip(tasks, bad.reshape(-1).tolist(), strict=True)
        numbers["bad"] = [name for name, one in marked if one]
    return {"step": step, **numbers, "seconds": round(seconds, 3)}


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row without numbers that aren't finite."""
    return {name: x for name, x in row.items() if not isinstance(x, float) or math.isfinite(x)}


def _require_finite(row: dict[str, Any], saved: int, words: Words) -> None:
    numbers = {name: value for name, value in row.items() if name != "bad"}
    lists = {n: value if isinstance(value, list) else [value] for n, value in numbers.items()}
    broken = [name for name, values in lists.items() if not all(map(math.isfinite, values))]
    if broken:
        raise Diverged(
            f"the training diverged in step {row['step']}: {', '.join(broken)} is no longer "
            f"finite; what is saved is step {saved}; start again with {words.remedy}"
        )
    if "bad" in row and not words.skips:
        raise Diverged(
            f"in step {row['step']} the numbers of {_listed(row['bad'])} are no longer finite; "
            f"what is saved is step {saved}; go on without such tasks by --resume and "
            f"--on-bad skip, or start again with {words.remedy}"
        )


def _listed(tasks: Sequence[str]) -> str:
    """Names of tasks, the first few of many."""
    more = f" and {len(tasks) - 10} more" if len(tasks) > 10 else ""
    return ("task " if len(tasks) == 1 else "tasks ") + ", ".join(tasks[:10]) + more
