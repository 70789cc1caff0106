"""Ctrl-C and SIGTERM as a wish, which whoever works looks at between two steps."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupt:
    """Whether the user asked for an end; a second time is not asked but done."""

    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # os.write, because a handler may come in the middle of a print
        os.write(2, b"\nfinishing this step, then saving; Ctrl-C again stops at once\n")


@contextlib.contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Take Ctrl-C and SIGTERM as a wish, which whoever works looks at between two steps.

    Yields:
        The ``Interrupt``.
    """
    interrupt = Interrupt()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield interrupt
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
