"""Windows that slide over the last dims of a tensor, for convolutions and pools.

Padding is, as in torch, one number for both ends; or a pair (before, after) for a dim; or "valid",
none, or "same", as much as keeps ceil(size / stride) places, the odd one at the end. For strides
above 1, which torch refuses, "same" is what it is in JAX.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from . import _check

Sizes = int | Sequence[int]
Padding = int | str | Sequence[int | tuple[int, int]]
Pairs = tuple[tuple[int, int], ...]


def per_dim(layer: str, name: str, given: Any, n: int, least: int = 1) -> tuple[int, ...]:
    """One integer for each of n dims, of one for all or one for each."""
    each = tuple(given) if isinstance(given, tuple | list) else (given,) * n
    for size in each:
        if not isinstance(size, int) or isinstance(size, bool):
            got = type(size).__name__
            raise TypeError(f"{layer}: {name} holds a {got}, expected an int or {n} of them")
        if size < least:
            raise ValueError(f"{layer}: {name} is {given}, expected at least {least}")
    if len(each) != n:
        raise ValueError(f"{layer}: {name} is {given}, expected an int or {n} of them")
    return each


def padding_of(layer: str, given: Any, n: int) -> Pairs | None:
    """Padding before and after each of n dims; None for "same", which depends on their sizes."""
    if isinstance(given, str):
        if given not in ("same", "valid"):
            raise ValueError(
                f'{layer}: padding is {given!r}, expected "same", "valid" or int, (before, after)'
            )
        return None if given == "same" else ((0, 0),) * n
    each = given if isinstance(given, tuple | list) else (given,) * n
    if len(each) != n:
        raise ValueError(
            f"{layer}: padding is {given}, expected one for each of {n} dims, an int or a pair"
        )
    names = [f"padding[{i}]" for i in range(n)]
    pairs = [per_dim(layer, name, one, 2, 0) for name, one in zip(names, each, strict=True)]
    return tuple([(before, after) for before, after in pairs])


def same(size: Sequence[int], extent: Sequence[int], stride: Sequence[int]) -> Pairs:
    """Padding such that windows of some extent fit ceil(size / stride) times."""
    pairs = []
    for have, wide, step in zip(size, extent, stride, strict=True):
        total = max((-(-have // step) - 1) * step + wide - have, 0)
        pairs.append((total // 2, total - total // 2))
    return tuple(pairs)


def extents(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """How far the windows of a kernel reach."""
    return tuple([d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)])


def pad(x: Tensor, pairs: Pairs, mode: str = "constant", value: float | None = None) -> Tensor:
    """A tensor with its last dims padded."""
    flat = [amount for pair in reversed(pairs) for amount in pair]
    return functional.pad(x, flat, mode, value)


def fold(x: Tensor, n: int) -> tuple[Tensor, tuple[int, ...]]:
    """[*batch, *rest] with n dims of rest as [N, *rest], and what batch was."""
    batch, rest = x.shape[: x.dim() - n], x.shape[x.dim() - n :]
    return (x if len(batch) == 1 else x.reshape(math.prod(batch), *rest)), batch


def unfold(x: Tensor, batch: tuple[int, ...]) -> Tensor:
    """[N, *rest] as [*batch, *rest]."""
    return x if len(batch) == 1 else x.reshape(*batch, *x.shape[1:])


def require_fit(layer: str, made: str, x: Tensor, pairs: Pairs, extent: Sequence[int]) -> None:
    """Refuses dims that, padded, are smaller than a window."""
    n = len(extent)
    for i, (have, (before, after), wide) in enumerate(
        zip(x.shape[x.dim() - n :], pairs, extent, strict=True)
    ):
        if have + before + after < wide:
            raise ValueError(
                f"{layer}: x has shape {tuple(x.shape)}, whose dim {i - n} with padding "
                f"({before}, {after}) is {have + before + after}, expected at least {wide}, the "
                f"extent of the kernel (from {made})"
            )


def channels(layer: str, made: str, x: Any, size: int, spatial: int, weight: Tensor | None) -> None:
    """Refuses what is not a float [*batch, C, *spatial].

    Args:
        layer: its name.
        made: the call that made it.
        x: the input.
        size: C.
        spatial: how many dims follow the channels.
        weight: the parameter that the size comes from, if there is one.
    """
    if not isinstance(x, Tensor):
        got = type(x).__name__
        raise TypeError(f"{layer}: x is a {got}, expected a tensor {_form(size, spatial)}")
    if x.dim() <= spatial or x.shape[-1 - spatial] != size:
        whose = "" if weight is None else f", whose weight has shape {tuple(weight.shape)}"
        raise ValueError(
            f"{layer}: x has shape {tuple(x.shape)}, expected {_form(size, spatial)} (from {made}"
            f"{whose})"
        )
    float_like(layer, x, weight)


def shape_of(layer: str, name: str, given: Any) -> tuple[int, ...]:
    """A shape of at least one dim, of its sizes or of one."""
    size = tuple(given) if isinstance(given, tuple | list) else (given,)
    if not size:
        raise ValueError(f"{layer}: {name} is empty, expected at least one dim")
    for i, one in enumerate(size):
        _check.sizes(layer, **{f"{name}[{i}]" if len(size) > 1 else name: one})
    return size


def last(layer: str, made: str, x: Any, size: tuple[int, ...], weight: Tensor | None) -> None:
    """Refuses what is not a float [*batch, *size] of the params' dtype."""
    if isinstance(x, Tensor) and x.shape[max(x.dim() - len(size), 0) :] == size:
        float_like(layer, x, weight)
        return
    wanted = f"[*batch, {', '.join(map(str, size))}]"
    if not isinstance(x, Tensor):
        raise TypeError(f"{layer}: x is a {type(x).__name__}, expected a tensor {wanted}")
    whose = "" if weight is None else f", whose weight has shape {tuple(weight.shape)}"
    got = tuple(x.shape)
    raise ValueError(f"{layer}: x has shape {got}, expected {wanted} (from {made}{whose})")


def float_like(layer: str, x: Tensor, weight: Tensor | None) -> None:
    """Refuses what is not of floats, of the dtype of a parameter if there is one."""
    if weight is None:
        if not x.is_floating_point():
            raise TypeError(f"{layer}: x has dtype {x.dtype}, expected a float dtype")
    elif x.dtype is not weight.dtype:
        _check.same_dtype(layer, "x", x, weight.dtype)


def _form(size: int, spatial: int) -> str:
    dims = {0: "", 1: ", L", 2: ", H, W", 3: ", D, H, W"}.get(spatial, ", *spatial")
    return f"[*batch, {size}{dims}]"
