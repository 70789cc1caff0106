"""What every layer asks of its arguments, and how it says no."""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from .. import tree


def sizes(layer: str, **given: int) -> None:
    """Refuses sizes that are not integers of at least 1."""
    for name, size in given.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{layer}: {name} is a {type(size).__name__}, expected an int")
        if size < 1:
            raise ValueError(f"{layer}: {name} is {size}, expected at least 1")


def functions(layer: str, **given: Callable[..., Any] | None) -> None:
    """Refuses what can't be called; None is allowed."""
    for name, function in given.items():
        if function is not None and not callable(function):
            raise TypeError(f"{layer}: {name} is a {type(function).__name__}, expected a function")


def parameters(
    layer: str, made: str, params: Any, wanted: dict[str, tuple[int, ...]]
) -> list[Tensor]:
    """Reads a layer's parameters by name.

    Args:
        layer: its name.
        made: the call that made it, where the sizes come from.
        params: the tree.
        wanted: the shape of each parameter.

    Returns:
        The parameters, in the order of `wanted`.
    """
    entries = level(layer, "params", params, wanted)
    for name, shape in wanted.items():
        value = entries[name]
        if not isinstance(value, Tensor):
            got = type(value).__name__
            raise TypeError(f"{layer}: params.{name} is a {got}, expected a tensor {list(shape)}")
        if value.shape != shape:
            hint = "; map over stacked parameters with vmap" if value.dim() > len(shape) else ""
            raise ValueError(
                f"{layer}: params.{name} has shape {tuple(value.shape)}, expected {shape} "
                f"(from {made}){hint}"
            )
        wanted_dtype = entries[next(iter(wanted))].dtype
        if not value.is_floating_point() or value.dtype != wanted_dtype:
            raise TypeError(
                f"{layer}: params.{name} has dtype {value.dtype}, expected one float dtype for all "
                f"({', '.join(wanted)})"
            )
    return [entries[name] for name in wanted]


def level(layer: str, argument: str, given: Any, wanted: Any) -> dict[str, Any]:
    """One level of a tree as a dictionary, after a look at its names."""
    if not isinstance(given, TensorDictBase):
        got = type(given).__name__
        raise TypeError(f"{layer}: {argument} is a {got}, expected a TensorDict as init makes it")
    entries = tree.entries(given)
    if len(entries) != len(wanted) or any(name not in entries for name in wanted):
        lacks = [name for name in wanted if name not in entries]
        extra = [name for name in entries if name not in wanted]
        texts = [f"lack {', '.join(lacks)}"] * bool(lacks)
        texts += [f"hold an unknown {', '.join(extra)}"] * bool(extra)
        known = f"expected {', '.join(wanted)}" if wanted else "expected no entry"
        raise ValueError(f"{layer}: {argument} {' and '.join(texts)}; {known}")
    return entries


def floats(layer: str, made: str, x: Any, size: int, dtype: torch.dtype) -> None:
    """Refuses inputs that are not float [*batch, size] of the parameters' dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{layer}: x is a {type(x).__name__}, expected a tensor [*batch, {size}]")
    if x.dim() == 0 or x.shape[-1] != size:
        raise ValueError(
            f"{layer}: x has shape {tuple(x.shape)}, expected [*batch, {size}] (from {made})"
        )
    same_dtype(layer, "x", x, dtype)


def shape(layer: str, name: str, x: Tensor, wanted: tuple[int, ...], source: str) -> None:
    """Refuses a tensor of another shape."""
    if x.shape != wanted:
        got = tuple(x.shape)
        raise ValueError(f"{layer}: {name} has shape {got}, expected {wanted} (from {source})")


def same_dtype(layer: str, name: str, x: Tensor, dtype: torch.dtype) -> None:
    """Refuses a tensor that would be promoted or not fit; autocast may mix floats."""
    if x.dtype != dtype:
        if not (x.is_floating_point() and autocasts(x)):
            raise TypeError(f"{layer}: {name} has dtype {x.dtype}, expected {dtype} as the params")


def autocasts(tensor: Tensor) -> bool:
    """Tells whether autocast is on for a tensor's device."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def values(tensor: Tensor) -> Tensor | None:
    """A tensor's values where they can be read at no cost, from below any transform; else None."""
    if torch.compiler.is_compiling():
        return None
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor if type(tensor) is Tensor and tensor.device.type == "cpu" else None
