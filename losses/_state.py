"""State of what adapts while an agent learns: a TensorDict of floats that goes in and comes out."""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from ._batch import locked
from ._check import check_float, kind, missing


def check_dtype(function: str, dtype: Any) -> None:
    """Raises if a state is to be of a dtype that is not floating-point; None is torch's default."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"{function}: dtype is {kind(dtype)}, expected a torch.dtype")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"{function}: dtype is {dtype}, expected a floating-point one")


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
