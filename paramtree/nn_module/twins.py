"""Functions of torch that are Python inside, run so that the calls that they make are seen too.

A mode sees the call of such a function and, while it handles it, nothing of what goes on inside. A
*twin* is the same code with other globals: it doesn't hand itself to modes, and so may run where
they are looking.
"""

from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch.nn import functional, init

from .rows import Rows

ROWS = Rows()


def _never(*_: Any) -> bool:
    return False


class _Torch:
    """The module torch for a function that is to run its own body and not be handed on again."""

    overrides = SimpleNamespace(has_torch_function_variadic=_never)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _twin(function: Any) -> FunctionType:
    """The same code, whose calls are handed to modes, though it doesn't hand itself on."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    known = {**function.__globals__, **{name: _never for name in names}}
    if function.__module__ == "torch.nn.init":
        known["torch"] = _Torch()
    code, name, closure = function.__code__, function.__name__, function.__closure__
    twin = FunctionType(code, known, name, function.__defaults__, closure)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _run_twin(function: Any) -> None:
    twin = _twin(function)

    @ROWS.of(function)
    def _inside(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        with guard:
            return twin(*args, **kwargs)


for _function in (
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    functional.rrelu,
    functional.gumbel_softmax,
    functional.multi_head_attention_forward,
    init.uniform_,
    init.normal_,
    init.constant_,
    init.kaiming_uniform_,
):
    _run_twin(_function)
