"""What every layer asks of its arguments, and how it says no."""

import math
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


def real(layer: str, name: str, given: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Refuses what is not a number in [low, high] or a 0-d tensor of floats, whose value may be."""
    if isinstance(given, Tensor):
        if given.dim() or not given.is_floating_point():
            raise (ValueError if given.is_floating_point() else TypeError)(
                f"{layer}: {name} is a tensor {list(given.shape)} of {given.dtype}, expected a "
                "number or a 0-d float tensor"
            )
    elif not isinstance(given, int | float) or isinstance(given, bool):
        got = type(given).__name__
        raise TypeError(f"{layer}: {name} is a {got}, expected a number or a 0-d float tensor")
    elif not low <= given <= high:
        wanted = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ValueError(f"{layer}: {name} is {given}, expected {wanted}")


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
    found = tree.values(params, wanted)
    if found is not None and _are_right(found, wanted):
        return found
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


def _are_right(found: list[Any], wanted: dict[str, tuple[int, ...]]) -> bool:
    """Whether these are float tensors of one dtype and the shapes that are wanted, told at once."""
    dtype = found[0].dtype
    for value, shape in zip(found, wanted.values()):  # noqa: B905 (a check of lengths costs time)
        if value.shape != shape or value.dtype is not dtype:
            return False
    return dtype is not None and dtype.is_floating_point


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


def inputs(layer: str, given: Any, *names: str) -> tuple[Any, ...]:
    """The parts of a layer's input, which are a tuple or the first alone; None where left out."""
    parts = given if isinstance(given, tuple) else (given,)
    if not 1 <= len(parts) <= len(names):
        wanted = ", ".join(names)
        raise ValueError(
            f"{layer}: the input is a tuple of {len(parts)}, expected ({wanted}) or less"
        )
    return *parts, *[None] * (len(names) - len(parts))


def floats(
    layer: str,
    made: str,
    x: Any,
    size: int,
    weight: Tensor,
    name: str = "weight",
    argument: str = "x",
) -> None:
    """Refuses inputs that are not float [*batch, size] of the parameters' dtype.

    Args:
        layer: its name.
        made: the call that made it.
        x: the input.
        size: of its last dim.
        weight: the parameter that the size comes from.
        name: of the parameter.
        argument: what the input is called.
    """
    if not isinstance(x, Tensor):
        got = type(x).__name__
        raise TypeError(f"{layer}: {argument} is a {got}, expected a tensor [*batch, {size}]")
    if x.dim() == 0 or x.shape[-1] != size:
        raise ValueError(
            f"{layer}: {argument} has shape {tuple(x.shape)}, expected [*batch, {size}] (from "
            f"{made}, whose {name} has shape {tuple(weight.shape)})"
        )
    if x.dtype is not weight.dtype:
        same_dtype(layer, argument, x, weight.dtype)


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
