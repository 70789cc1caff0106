"""Progress on a terminal, as a bar, and elsewhere, as a line now and then."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_LINES = 20  # of a whole run, where there is no terminal
_SECONDS = 5.0  # between two of them at least

Show = Callable[[int, str], None]


@contextlib.contextmanager
def progress(console: Console, what: str, total: int, done: int = 0) -> Iterator[Show]:
    """Show how far a job is, with its rate and the time left.

    Args:
        console: where to.
        what: name of the job.
        total: number of its steps.
        done: how many are behind it.

    Yields:
        ``show(done, text)``, to be called after each step.
    """
    bar = _bar if console.is_terminal else _lines
    with bar(console, what, total, done) as show:
        yield show


@contextlib.contextmanager
def _bar(console: Console, what: str, total: int, done: int) -> Iterator[Show]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    started, first = time.monotonic(), done
    with Progress(*columns, console=console, expand=True) as bars:
        task = bars.add_task(what, total=total, completed=done, rate="", text="")

        def show(done: int, text: str) -> None:
            rate = _rate(done - first, time.monotonic() - started)
            bars.update(task, completed=done, rate=rate, text=text)

        yield show


@contextlib.contextmanager
def _lines(console: Console, what: str, total: int, done: int) -> Iterator[Show]:
    started, first = time.monotonic(), done
    last_time, last_part = started, done * _LINES // max(total, 1)

    def show(done: int, text: str) -> None:
        nonlocal last_time, last_part
        now, part = time.monotonic(), done * _LINES // max(total, 1)
        if done < total and (part == last_part or now - last_time < _SECONDS):
            return
        last_time, last_part = now, part
        took = now - started
        left = (total - done) * took / max(done - first, 1)
        words = [f"{what}: {done}/{total}", _rate(done - first, took), text]
        words += [f"{_clock(left)} left" if done < total else f"took {_clock(took)}"]
        console.print(", ".join(word for word in words if word), soft_wrap=True, highlight=False)

    yield show


def _rate(steps: int, seconds: float) -> str:
    if not steps or seconds <= 0:
        return ""
    return f"{steps / seconds:.1f}/s" if steps > seconds else f"{seconds / steps:.2f} s each"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
