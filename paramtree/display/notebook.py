"""``%load_ext paramtree``: every TensorDict in IPython shows itself."""

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDictBase

from .view import View, called, show


def load_ipython_extension(ipython: Any) -> None:
    """Show every TensorDict that is the result of a cell as ``show`` does: ``%load_ext paramtree``.

    Args:
        ipython: the shell.
    """
    formatters = ipython.display_formatter.formatters

    def view(tree: TensorDictBase) -> View:
        space: Mapping[str, Any] = ipython.user_ns
        return show(tree, name=called(tree, space))

    def text(tree: TensorDictBase, printer: Any, cycle: bool) -> None:
        printer.text(str(view(tree)))

    formatters["text/html"].for_type(TensorDictBase, lambda tree: view(tree).html)
    formatters["text/plain"].for_type(TensorDictBase, text)


def unload_ipython_extension(ipython: Any) -> None:
    """Show TensorDicts as before: ``%unload_ext paramtree``.

    Args:
        ipython: the shell.
    """
    for kind in ("text/html", "text/plain"):
        ipython.display_formatter.formatters[kind].pop(TensorDictBase, None)
