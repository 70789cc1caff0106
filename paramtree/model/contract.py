"""The pair itself, and what every model says when something does not fit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree


class Model(NamedTuple):
    """A pair of pure functions, ``init(key)`` and ``apply(params, buffers, batch)``.

    Calling the pair, ``model(params, buffers, batch)``, is ``apply(...)[0]`` for models that leave
    their buffers as they are.
    """

    init: Callable[[Tensor], tuple[TensorDict, TensorDict]]
    apply: Callable[[Any, Any, Any], tuple[Any, Any]]

    def __call__(self, params: Any, buffers: Any, batch: Any) -> Any:
        """Output alone, of a model that leaves its buffers as they are.

        Args:
            params: parameters, as ``init`` makes them.
            buffers: buffers, as ``init`` makes them.
            batch: a TensorDict, or a layer's tensors.

        Returns:
            ``apply(params, buffers, batch)[0]``.

        Raises:
            ValueError: the buffers that came back are not the ones given, and would be lost.
        """
        out, after = self.apply(params, buffers, batch)
        if after is not buffers:
            old, structure = tree.flatten(buffers)
            fresh, other = tree.flatten(after)
            tree.require_same("model", ("the buffers", structure), ("what came back", other))
            rows = zip(structure.paths(), old, fresh, strict=True)
            changed = [_bare(path) for path, a, b in rows if a is not b]
            if changed:
                raise ValueError(
                    f"model: this model updates its buffers ({', '.join(changed)}); use apply"
                )
        return out


def located(error: Exception, name: str) -> None:
    """Write into an error which part of a model it comes from; its text ends ``in actor.linear_0``.

    A model of named parts calls it on what a part raises, and raises the same error again.

    Args:
        error: a ValueError, TypeError or RuntimeError; one of another kind stays as it is.
        name: of the part.
    """
    if type(error) not in (RuntimeError, TypeError, ValueError):
        return
    text, path = getattr(error, "_located", (str(error), ()))
    path = (name, *path)
    error._located = text, path  # pyright: ignore[reportAttributeAccessIssue]
    error.args = (f"{text}; in {_bare(path)}",)


def _bare(path: tuple[str, ...]) -> str:
    """A path without quotes, where it needs none."""
    return tree.show_path(path).strip("'")


def require_key(fn: str, key: Any) -> None:
    """Refuse what is not one key.

    Args:
        fn: name of the function that was called.
        key: int64 [2].

    Raises:
        TypeError: it's not an int64 tensor.
        ValueError: it has another shape.
    """
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        got = key.dtype if isinstance(key, Tensor) else type(key).__name__
        raise TypeError(f"{fn}: key is {got}, expected an int64 tensor [2] from rng.key")
    if key.shape != (2,):
        hint = "; map init over keys with vmap" if key.dim() > 1 and key.shape[-1] == 2 else ""
        raise ValueError(f"{fn}: key has shape {tuple(key.shape)}, expected [2]{hint}")


def require_model(fn: str, argument: str, value: Any) -> None:
    """Refuse what is not a pair of functions.

    Args:
        fn: name of the function that was called.
        argument: what it calls the value.
        value: a Model.

    Raises:
        TypeError: it's something else.
    """
    if not (isinstance(value, tuple) and len(value) == 2 and all(map(callable, value))):
        kind = type(value).__name__
        raise TypeError(f"{fn}: {argument} is a {kind}, expected a Model(init, apply)")
