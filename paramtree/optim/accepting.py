"""Transforms whose rule isn't for every leaf: a leaf that it can't take is refused by its name."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from tensordict import TensorDict
from torch import Tensor

from ..tree import Structure, show_path
from .arguments import Tree, parameters
from .base import Transform
from .leafwise import Leafwise, Work

Flaw = Callable[[Tensor], Exception | None]


def accepting(transform: Transform, flaw: Flaw) -> Transform:
    """The same transform, which looks at the params' leaves before it works on them.

    Args:
        transform: what ``leafwise`` made.
        flaw: gives the error for a leaf that the rule can't take, its text without the name of the
            leaf, such as ``ValueError("has shape (3,), expected a matrix")``; else None.

    Returns:
        The transform; ``init`` and ``update`` raise that error, with function and path in front.
    """
    return of_kind(_Accepting, transform, flaw=flaw)


def of_kind(kind: type[Leafwise], transform: Transform, **more: Any) -> Transform:
    """The same transform, its update of another kind.

    Args:
        kind: a dataclass with more fields than ``Leafwise``.
        transform: what ``leafwise`` made.
        more: those fields.

    Returns:
        The transform.
    """
    update = transform.update
    assert isinstance(update, Leafwise)
    own = {field.name: getattr(update, field.name) for field in fields(update) if field.init}
    update = kind(**own, **more)
    return Transform(update.init, update)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Accepting(Leafwise):
    flaw: Flaw

    def init(self, params: Tree) -> TensorDict:
        self._require(*parameters(self.fn, params))
        return super().init(params)

    def on_leaves(self, u: list[Tensor], state: Any, work: Work) -> tuple[list[Tensor], TensorDict]:
        self._require(work.leaves, work.structure)
        return super().on_leaves(u, state, work)

    def _require(self, leaves: list[Tensor], structure: Structure) -> None:
        for at, leaf in enumerate(leaves):
            error = self.flaw(leaf)
            if error is not None:
                path = show_path(structure.paths()[at])
                raise type(error)(f"{self.fn}: params at {path} {error}")


def complex_leaf(leaf: Tensor) -> Exception | None:
    """The error for a complex leaf.

    Args:
        leaf: leaf of the params.

    Returns:
        TypeError, or None for a real one.
    """
    if not leaf.is_complex():
        return None
    return TypeError(f"is {leaf.dtype}, expected a real dtype; partition takes it out")
