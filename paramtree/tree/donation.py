"""Trees that are given up: their memory goes to a new owner, and reading the old one is refused."""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from .structure import lock


def moved(fn: str, tree: TensorDictBase) -> TensorDict:
    """The same tree for a new owner; who still holds the old one, or a part of it, can't read it.

    Args:
        fn: name of the function that the tree was donated to, for the message.
        tree: the tree that is given up.

    Returns:
        A locked tree with the same leaves. Reading the old one raises a RuntimeError.
    """
    if type(tree) is not TensorDict or torch.compiler.is_compiling():
        return lock(tree)  # nothing that could be taken away, or nobody to take it from
    return _moved(tree, _DONATED.setdefault(fn, _Donated(fn)))


def movable(tree: TensorDictBase) -> bool:
    """Whether ``moved`` keeps the leaves themselves, and takes all of the tree from its old owner.

    Args:
        tree: the tree.

    Returns:
        False for a tree with a part that isn't a plain TensorDict, such as a lazy stack.
    """
    if type(tree) is not TensorDict:
        return False
    values = tree._tensordict.values()
    return all([movable(x) for x in values if not isinstance(x, Tensor)])


def _moved(tree: TensorDict, rest: "_Donated") -> TensorDict:
    source = tree._tensordict
    if type(source) is _Donated:
        return tree
    for name, value in source.items():
        if type(value) is TensorDict:
            source[name] = _moved(value, rest)
    twin = object.__new__(TensorDict)
    twin._device, twin._tensordict = tree._device, source  # pyright: ignore
    twin._batch_size, twin._td_dim_names = tree._batch_size, tree._td_dim_names  # pyright: ignore
    twin._is_locked = True
    tree._tensordict = rest  # pyright: ignore
    return twin


class _Donated(dict):
    """What is left of a tree that was given up: whatever reads it hears why it can't."""

    def __init__(self, fn: str) -> None:
        super().__init__()
        self.fn = fn

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"{self.fn}: this tree was donated, so its memory holds other values now; use the tree "
            "that came back, or call without donate=True"
        )

    __getitem__ = __contains__ = __iter__ = __len__ = __setitem__ = __eq__ = _refuse  # pyright: ignore
    get = keys = values = items = copy = pop = setdefault = update = _refuse  # pyright: ignore


_DONATED: dict[str, _Donated] = {}
