"""What the functions of returns share: checks, the factors of a step, and transformed values."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ._check import check_float, check_hyper, check_steps, kind, time_first
from .scaling import TxPair


def discounts(
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    lmbda: float | Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The factors gamma (1 - terminated) and lambda (1 - done), ``[T, *batch]``."""
    return gamma * terminated.logical_not().to(dtype), lmbda * done.logical_not().to(dtype)


def check_arguments(
    function: str,
    floats: Mapping[str, Any],
    flags: Mapping[str, Any],
    discounts: Mapping[str, float | Tensor],
) -> torch.Size:
    """The shape ``[T, *batch]`` of all tensors, to which the discounts broadcast."""
    shape = check_steps(function, floats, flags)
    for name, value in discounts.items():
        check_hyper(function, name, value, shape, next(iter(floats)), 0.0, 1.0, time_first)
    return shape


def plain_values(reward: Tensor, next_value: Tensor, tx: TxPair | None) -> dict[str, Tensor]:
    """The floats that must have the reward's shape as they come in."""
    return {"reward": reward} if tx is not None else {"reward": reward, "next_value": next_value}


def opened(
    function: str, name: str, value: Tensor, terminated: Tensor, tx: TxPair | None
) -> Tensor:
    """Values as they enter a sum: taken out of the space of ``tx``, and 0 where nothing follows.

    What stands at a terminated step does not reach the inverse either.
    """
    if tx is None:
        return value.masked_fill(terminated, 0.0)
    shape = terminated.shape
    check_float(function, name, value)
    _check_axis(function, name, value, shape)
    gone = terminated if value.shape == shape else terminated.unsqueeze(-1)
    plain = inverted(function, name, value.masked_fill(gone, 0.0), tx, shape)
    return plain.masked_fill(terminated, 0.0)


def inverted(function: str, name: str, value: Tensor, tx: TxPair, shape: torch.Size) -> Tensor:
    """Values out of the space of ``tx``, where they may have one axis more than ``shape``."""
    for side in ("apply", "inverse"):
        if not callable(getattr(tx, side, None)):
            raise TypeError(
                f"{function}: tx is {kind(tx)} without a function {side!r}, expected a pair of "
                "functions, apply and inverse"
            )
    check_float(function, name, value)
    _check_axis(function, name, value, shape)
    plain = tx.inverse(value)
    if plain.shape != shape:
        raise ValueError(
            f"{function}: tx.inverse makes of {name} a tensor of shape {tuple(plain.shape)}, "
            f"expected {tuple(shape)} (from reward)"
        )
    return plain


def _check_axis(function: str, name: str, value: Tensor, shape: torch.Size) -> None:
    if value.shape != shape and value.shape[:-1] != shape:
        raise ValueError(
            f"{function}: {name} has shape {tuple(value.shape)}, expected {tuple(shape)} (from "
            "reward), or that and one axis more"
        )


def closed(returns: Tensor, tx: TxPair | None) -> Tensor:
    """Returns in the space of ``tx``."""
    return returns if tx is None else tx.apply(returns)
