"""What to do with a loss: add up its parts, or wrap it as a module."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ._check import kind


def total(td: TensorDictBase) -> Tensor:
    """Sum of all top-level entries whose name starts with ``loss_``: what is to be minimized.

    Args:
        td: result of a reducer.

    Returns:
        A scalar, or ``[*B]`` for a result without reduction; differentiable.

    Raises:
        ValueError: no name starts with ``loss_``.
        TypeError: the argument is not a TensorDict.
    """
    if not isinstance(td, TensorDictBase):
        raise TypeError(f"total: td is {kind(td)}, expected a TensorDict")
    parts = [td.get(name) for name in td.keys() if name.startswith("loss_")]
    if not parts:
        names = ", ".join(sorted(td.keys())) or "none"
        raise ValueError(f"total: no key of the td starts with 'loss_'; its keys are {names}")
    return sum(parts[1:], start=parts[0])


class HyperModule(torch.nn.Module):
    """A module some of whose names are hyper-parameters, which may be of any kind at any time."""

    def is_hyper(self, name: str) -> bool:
        """Whether the name is a hyper-parameter's."""
        raise NotImplementedError

    def keep(self, name: str, value: Any) -> None:
        """Takes a hyper-parameter that is no tensor."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        """A hyper-parameter replaces the one of its name, whatever kind that was."""
        if not self.is_hyper(name):
            super().__setattr__(name, value)
        elif isinstance(value, torch.nn.Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Tensor):
            self.register_buffer(name, value)
        else:
            self.keep(name, value)

    def forget(self, name: str) -> None:
        """Drops what is registered under the name, if that is a hyper-parameter's."""
        if self.is_hyper(name):
            self._buffers.pop(name, None)
            self._parameters.pop(name, None)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As torch's; a hyper-parameter of that name is replaced."""
        self.forget(name)
        super().register_buffer(name, tensor, persistent)

    def register_parameter(self, name: str, param: torch.nn.Parameter | None) -> None:
        """As torch's; a hyper-parameter of that name is replaced."""
        self.forget(name)
        super().register_parameter(name, param)


class LossModule(HyperModule):
    """A loss as a module without networks, made by ``as_module``."""

    def __init__(
        self, loss: Callable[..., TensorDictBase], args: tuple[Any, ...], hyper: dict[str, Any]
    ) -> None:
        """Takes the hyper-parameters: tensors are registered, the rest is kept as it is."""
        super().__init__()
        self.loss = loss
        self.args = args
        self.fixed: dict[str, Any] = {}
        self.names = frozenset({*hyper, *_keywords(loss)})
        for name, value in hyper.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        """A hyper-parameter that is no tensor, else what every module has."""
        fixed = self.__dict__.get("fixed", {})
        return fixed[name] if name in fixed else super().__getattr__(name)

    def is_hyper(self, name: str) -> bool:
        """Whether the name is a hyper-parameter's."""
        return name in self.__dict__.get("names", ())

    def keep(self, name: str, value: Any) -> None:
        """Keeps a hyper-parameter that is no tensor as it is."""
        self.forget(name)
        self.fixed[name] = value

    def forget(self, name: str) -> None:
        """Drops what stands under the name, if that is a hyper-parameter's."""
        super().forget(name)
        if self.is_hyper(name):
            self.fixed.pop(name, None)

    def hyper(self) -> dict[str, Any]:
        """The hyper-parameters as they stand: what was given or registered last."""
        known = {**self.fixed, **self._parameters, **self._buffers}
        return {name: known[name] for name in sorted(self.names) if name in known}

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """The loss of a td, under the hyper-parameters as they stand."""
        return self.loss(td, *self.args, **self.hyper())

    def extra_repr(self) -> str:
        """The loss and its hyper-parameters."""
        values = [f"{name}={value}" for name, value in self.hyper().items()]
        return ", ".join([getattr(self.loss, "__name__", repr(self.loss)), *values])


def as_module(loss: Callable[..., TensorDictBase], *args: Any, **hyper: Any) -> LossModule:
    """A reducer as a ``torch.nn.Module``, for ``torch.nn.Sequential`` and its like.

    It owns hyper-parameters and no networks. A ``torch.nn.Parameter`` becomes a parameter of the
    module, another tensor a buffer, as it is: a non-leaf tensor keeps its graph. All are read at
    each call, so any of them can be replaced at any time, by ``module.gamma = tensor`` or
    ``module.register_buffer("gamma", tensor)``.

    Args:
        loss: reducer, ``loss(td, *args, **hyper)``.
        *args: positional arguments after the td, such as ``dist_class``.
        **hyper: hyper-parameters of the loss.

    Returns:
        A module from a td to the td of losses.

    Raises:
        TypeError: the loss takes no such hyper-parameter, or is no function.
        ValueError: a hyper-parameter has the name of an attribute that each module has.

    Example:
        >>> import losses
        >>> losses.as_module(losses.a2c_loss, gamma=0.99, lmbda=0.95)
        LossModule(a2c_loss, gamma=0.99, lmbda=0.95)
    """
    if not callable(loss):
        raise TypeError(f"as_module: loss is {kind(loss)}, expected a function")
    try:
        inspect.signature(loss).bind(None, *args, **hyper)
    except TypeError as error:
        name = getattr(loss, "__name__", repr(loss))
        known = ", ".join(_keywords(loss))
        raise TypeError(f"as_module: {name}: {error}; its hyper-parameters are {known}") from None
    module = LossModule(loss, args, {})
    taken = [name for name in module.names if hasattr(module, name)]
    if taken:
        raise ValueError(f"as_module: {taken[0]!r} is an attribute of every module; rename it")
    return LossModule(loss, args, hyper)


def _keywords(loss: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(loss).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
