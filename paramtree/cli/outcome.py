"""How a command can end other than well: exceptions whose text is all that the user is to read."""

import contextlib
from collections.abc import Iterator


class Ended(Exception):
    """A command's end before its time, told in one paragraph."""

    status = 1


class Refused(Ended):
    """Wrong use."""

    status = 2


class Stopped(Ended):
    """The user asked for an end; the text says how to go on."""

    status = 130


class Diverged(Ended):
    """A number is no longer finite."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Take what the library says about its arguments as being about the user's.

    Yields:
        None.

    Raises:
        Refused: the library refused.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise Refused(str(error)) from error
