"""Worlds whose levels are plain numbers: levels made of them, and what each step needs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..tree import entries, new
from .gridlevel import readable


def plain_level(
    fn: str,
    values: Mapping[str, Any],
    max_steps: int | Tensor,
    positive: Sequence[str],
    not_negative: Sequence[str],
    *,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> TensorDict:
    """Level of numbers and tensors, brought to one batch size and dtype, and checked.

    Args:
        fn: on whose behalf, for messages.
        values: numbers, or float tensors ``[*L]``, by name.
        max_steps: int, or int64 ``[*L]``.
        positive: names of those that have to be above 0.
        not_negative: of those that must not be below it.
        dtype: of the numbers; None for that of the tensors, or float32.
        device: of all; None for that of the tensors.

    Returns:
        Tree of batch size ``[*L]``.

    Raises:
        ValueError: shapes don't fit, or a value is out of its range.
        TypeError: a dtype doesn't fit, or a value is no number.
    """
    given = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    for name, value in values.items():
        if isinstance(value, Tensor) and not value.is_floating_point():
            raise TypeError(f"{fn}: {name} is {value.dtype}, expected floats")
        if not isinstance(value, Tensor | float | int) or isinstance(value, bool):
            kind = type(value).__name__
            raise TypeError(f"{fn}: {name} is a {kind}, expected a number or a tensor")
    dtypes = {value.dtype: name for name, value in given.items()}
    if dtype is None and len(dtypes) > 1:
        got = " and ".join(f"{name} is {kind}" for kind, name in dtypes.items())
        raise TypeError(f"{fn}: {got}, expected one dtype; give dtype= to have all of one")
    dtype = dtype or next(iter(dtypes), torch.float32)
    if isinstance(max_steps, bool) or not isinstance(max_steps, Tensor | int):
        raise TypeError(f"{fn}: max_steps is a {type(max_steps).__name__}, expected an int")
    if isinstance(max_steps, Tensor) and max_steps.dtype != torch.int64:
        raise TypeError(f"{fn}: max_steps is {max_steps.dtype}, expected torch.int64")
    tensors = [*given.values(), *([max_steps] if isinstance(max_steps, Tensor) else [])]
    if device is None and tensors:
        device = tensors[0].device
    level = {name: torch.as_tensor(x, dtype=dtype, device=device) for name, x in values.items()}
    level["max_steps"] = torch.as_tensor(max_steps, dtype=torch.int64, device=device)
    batch = _batch_size(fn, level)
    _require_ranges(fn, level, positive, not_negative)
    return new({name: value.expand(batch) for name, value in level.items()}, batch)


def aligned(level: TensorDict, ndim: int) -> dict[str, Tensor]:
    """Entries of a level, ready to meet workers.

    Args:
        level: of batch size ``[*L]``.
        ndim: number of axes of levels and workers.

    Returns:
        Its entries as ``[*L, *ones]``, with ndim axes.
    """
    depth, own = len(level.batch_size), entries(level)
    if depth in (0, ndim):
        return own
    ones = (1,) * (ndim - depth)
    return {name: value.reshape(*value.shape, *ones) for name, value in own.items()}


def require_step(
    fn: str, state: TensorDict, action: Tensor, shape: tuple[int, ...], noise: TensorDict
) -> None:
    """Refuse actions and noise that don't fit the state.

    Args:
        fn: on whose behalf, for messages.
        state: the state.
        action: the actions.
        shape: what their shape has to be.
        noise: the noise.

    Raises:
        ValueError: they don't fit.
    """
    if tuple(action.shape) != shape:
        got, size = tuple(action.shape), tuple(state.batch_size)
        wanted = f"{shape} (the state's batch size is {size})"
        raise ValueError(f"{fn}: action has shape {got}, expected {wanted}")
    if noise.batch_size != state.batch_size:
        got, wanted = tuple(noise.batch_size), tuple(state.batch_size)
        raise ValueError(f"{fn}: noise has batch size {got}, expected {wanted} (the state's)")


def _batch_size(fn: str, level: Mapping[str, Tensor]) -> torch.Size:
    try:
        return torch.broadcast_shapes(*[value.shape for value in level.values()])
    except RuntimeError:
        shapes = {name: tuple(x.shape) for name, x in level.items() if x.ndim}
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{fn}: the shapes are {got}, expected them to broadcast") from None


def _require_ranges(
    fn: str, level: Mapping[str, Tensor], positive: Sequence[str], not_negative: Sequence[str]
) -> None:
    """Raise where a value is out of its range, if values can be looked at."""
    rows = [(name, 0, True) for name in positive] + [(name, 0, False) for name in not_negative]
    for name, bound, strict in [*rows, ("max_steps", 1, False)]:
        value = level[name].detach()
        if value.is_meta or not readable(value):
            continue
        bad = ~(value > bound if strict else value >= bound)
        if bad.any():
            wanted = f"{'above' if strict else 'at least'} {bound}"
            got = value[bad].flatten()[0].item()
            raise ValueError(f"{fn}: {name} holds {got}, expected values {wanted}")
