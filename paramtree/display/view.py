"""``show``: a tree to look at, in a notebook and in a terminal."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from .. import tree
from .page import page
from .reading import join, read
from .readout import Readout, read_out
from .text import lines


class View:
    """A tree as it was when ``show`` was called: a page in a notebook, text elsewhere.

    Attributes:
        html: the page, one piece of HTML that needs nothing from outside.
    """

    def __init__(self, readout: Readout) -> None:
        self._readout = readout

    @property
    def html(self) -> str:
        """The page."""
        return page(self._readout)

    def _repr_html_(self) -> str:
        return self.html

    def __str__(self) -> str:
        width = shutil.get_terminal_size((100, 24)).columns
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        rows = lines(self._readout, width, encoding)
        return "\n".join("".join(text for text, _ in line) for line in rows)

    __repr__ = __str__

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text  # rich asks for it, so it's there

        for line in lines(self._readout, options.max_width, options.encoding):
            yield Text.assemble(*line, no_wrap=True, overflow="ellipsis")


def show(first: Any, second: Any = None, *, name: str | None = None) -> View:
    """A tree to look at, or two trees beside each other with what changed.

    In a notebook it is a page: sub-trees open and close, a box takes the patterns of
    ``tree.select``, each batch axis has an index, a matrix has a heat map, and a click copies a
    path as code. In a terminal it is text as wide as the terminal, with colors by ``rich.print``.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> params = TensorDict({"linear": {"weight": torch.eye(2), "bias": torch.zeros(2)}})
    >>> print(show(params))
    params  TensorDict · 2 leaves · 6 elements · 24 bytes · float32 · cpu
    └─ linear     TensorDict  2 leaves       6  100%
       ├─ weight  [2, 2]      float32   cpu  4   67%  0.5 ± 0.5  █              █
       └─ bias    [2]         float32   cpu  2   33%  0 ± 0

    Statistics are of all entries of small leaves, and of a sample of large ones, which then say so.

    Args:
        first: a tree, a tensor, or dictionaries, lists and tuples of them.
        second: another one, such as the tree after an update, or its gradient.
        name: what the copied code calls the first tree; default: the global variable that it is.

    Returns:
        The view. It keeps numbers and no tensor.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a nest is deeper than Python can follow, or holds itself.
    """
    if not isinstance(name, str | None):
        raise TypeError(f"show: name is a {type(name).__name__}, expected a text")
    names = []
    space = sys._getframe(1).f_globals  # a notebook's variables
    for argument, nest in (("first", first), ("second", second)):
        if argument == "second" and nest is None:
            continue
        if not isinstance(nest, Tensor | TensorDictBase | dict | list | tuple):
            if tree.as_tree(nest) is None:
                kind = type(nest).__name__
                raise TypeError(
                    f"show: {argument} is a {kind}, expected a TensorDict, a tensor, or "
                    "dictionaries, lists and tuples of them"
                )
        names.append(called(nest, space))
    names[0] = name or names[0]
    if len(names) == 2 and isinstance(first, Tensor) != isinstance(second, Tensor):
        kinds = f"a {type(first).__name__} and a {type(second).__name__}"
        raise TypeError(f"show: first and second are {kinds}, expected two trees or two tensors")
    try:
        root = read(first)
        if isinstance(first, TensorDictBase) and first.is_locked:
            root.notes.append("locked")
        if len(names) == 1:
            return View(read_out(root, (names[0] or "tree",)))
        left, right = names[0] or "first", names[1] or "second"
        if left == right:
            left, right = "first", "second"
        return View(read_out(join(root, read(second)), (left, right)))
    except RecursionError:
        where = "first" if len(names) == 1 else "first or second"
        raise ValueError(
            f"show: {where} is nested too deeply, or holds itself, expected a tree with an end"
        ) from None


def called(value: Any, space: Mapping[str, Any]) -> str | None:
    """Name of the variable that holds a value, if there is one."""
    for name, bound in list(space.items()):
        if bound is value and name.isidentifier() and not name.startswith("_"):
            return name
    return None
