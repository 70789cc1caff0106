"""State of what adapts while an agent learns: a TensorDict of floats that goes in and comes out."""

from collections.abc import Sequence
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from ._batch import locked
from ._check import check_float, kind, missing


def new_state(**entries: Tensor) -> TensorDictBase:
    """The td of these entries."""
    return locked(TensorDict(entries, batch_size=[]))


def entries(
    function: str, state: Any, keys: Sequence[str], source: str, name: str = "state"
) -> list[Tensor]:
    """Floats of the state, an argument of this name that comes from the function ``source``."""
    if not isinstance(state, TensorDictBase):
        raise TypeError(f"{function}: {name} is {kind(state)}, expected a TensorDict")
    for key in keys:
        if state.get(key, None) is None:
            raise missing(function, state, key, f"{name} comes from {source}.")
    return [check_float(function, f"{name}'s {key}", state.get(key)) for key in keys]
