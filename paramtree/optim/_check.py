"""What wrappers of transforms check and convert: integers, numbers, dtypes."""

from typing import Any

import torch
from torch import Tensor

from .arguments import Hyper


def require_int(fn: str, name: str, value: Any, low: int) -> None:
    """Refuse what is not an integer from a bound on.

    Args:
        fn: name of the function that was called, for the message.
        name: name of its argument.
        value: what came in.
        low: the least integer that is welcome.

    Raises:
        ValueError: it's smaller.
        TypeError: it's of another kind.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{fn}: {name} is a {type(value).__name__}, expected an int")
    if value < low:
        raise ValueError(f"{fn}: {name} is {value}, expected at least {low}")


def number(value: Hyper, like: Tensor) -> Tensor:
    """A hyper-parameter as a tensor.

    Args:
        value: float or 0-d tensor.
        like: tensor on whose device a float goes.

    Returns:
        A tensor as it is; a float as 0-d float64, or float32 where the device has nothing wider.
    """
    if isinstance(value, Tensor):
        return value
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    return torch.full((), value, dtype=dtype, device=like.device)


def working(leaf: Tensor) -> torch.dtype:
    """The dtype in which sums over steps of a leaf are kept.

    Args:
        leaf: a leaf of float or complex dtype.

    Returns:
        float32 for float16 and bfloat16, else the leaf's own.
    """
    half = leaf.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half else leaf.dtype


def real(value: Hyper, dtype: torch.dtype) -> Hyper:
    """A real number in the precision of a dtype, so that it doesn't change that of a product.

    Args:
        value: float or 0-d tensor.
        dtype: float or complex.

    Returns:
        A float as it is, a tensor in the dtype, or the one of its real part.
    """
    if not isinstance(value, Tensor):
        return value
    return value.to(dtype.to_real() if dtype.is_complex else dtype)
