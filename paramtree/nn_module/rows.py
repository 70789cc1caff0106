"""What stands for calls of torch: rows of a function of torch and what is called instead of it.

A row is ``instead(guard, func, *args, **kwargs)``, with the arguments of ``func``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Row = Callable[..., Any]


class Rows(dict[str, tuple[tuple[Any, Row], ...]]):
    """Rows by the name of the function."""

    def of(self, *functions: Any) -> Callable[[Row], Row]:
        """Decorator that makes a row for each function."""

        def register(instead: Row) -> Row:
            for function in functions:
                name = function.__name__
                self[name] = (*self.get(name, ()), (function, instead))
            return instead

        return register


def joined(*parts: Rows) -> Rows:
    """The rows of all parts."""
    whole = Rows()
    for part in parts:
        for name, rows in part.items():
            whole[name] = (*whole.get(name, ()), *rows)
    return whole


def given(args: Sequence[Any], kwargs: dict[str, Any], wanted: dict[str, Any]) -> list[Any]:
    """Arguments of a call.

    Args:
        args: those given by place.
        kwargs: those given by name.
        wanted: names, in the order in which they may be given by place, and defaults.

    Returns:
        One for each name.
    """
    found = {**wanted, **{name: value for name, value in kwargs.items() if name in wanted}}
    found.update(zip(wanted, args, strict=False))
    return list(found.values())


def operators(name: str) -> list[Any]:
    """The operators of torch.ops that a function of torch of this name calls."""
    packet = getattr(torch.ops.aten, name, None)
    return [] if packet is None else [packet, *[getattr(packet, x) for x in packet.overloads()]]
