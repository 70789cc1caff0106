"""``%load_ext paramtree``: every TensorDict in IPython shows itself."""

from typing import Any

from tensordict import TensorDictBase

from .view import called, show


def load_ipython_extension(ipython: Any) -> None:
    """Show every TensorDict that is the result of a cell as ``show`` does: ``%load_ext paramtree``.

    Args:
        ipython: the shell.
    """
    formatter = ipython.display_formatter

    def bundle(tree: TensorDictBase) -> dict[str, str]:
        view = show(tree, name=called(tree, ipython.user_ns))
        texts = {"text/plain": str(view)}
        if formatter.formatters["text/html"].enabled:  # a terminal has no use for it
            texts["text/html"] = view.html
        return texts

    formatter.mimebundle_formatter.for_type(TensorDictBase, bundle)


def unload_ipython_extension(ipython: Any) -> None:
    """Show TensorDicts as before: ``%unload_ext paramtree``.

    Args:
        ipython: the shell.
    """
    ipython.display_formatter.mimebundle_formatter.pop(TensorDictBase, None)
