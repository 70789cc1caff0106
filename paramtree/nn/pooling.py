"""Pools over the last one, two or three dims: plain functions of x, and so layers of `sequential`.

A factory makes the function, `max_pool2d(2)`; the function takes any axes before the dims that its
windows slide over: x is float [*batch, L], [*batch, H, W] or [*batch, D, H, W].
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from . import _check, _window
from ._window import Padding, Pairs, Sizes

Pool = Callable[[Tensor], Tensor]

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVG: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_ADAPTIVE_MAX = {
    1: functional.adaptive_max_pool1d,
    2: functional.adaptive_max_pool2d,
    3: functional.adaptive_max_pool3d,
}
_ADAPTIVE_AVG = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


def max_pool2d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Pool:
    """Maximum over windows of an image.

        y[i, j] = max_uv x[s i + d u - p, s j + d v - p]

    Args:
        kernel_size: k, how many entries a window has; an int for all dims or one of a tuple.
        stride: s; default: the kernel size.
        padding: p, an int for both ends or a pair (before, after), less than the window's extent
            d (k - 1) + 1; or "valid", none, or "same": ceil(H / s) outputs, as in JAX. What is
            beyond the ends is never a maximum.
        dilation: d.
        ceil_mode: whether a last window may reach beyond the end; it begins before it.

    Returns:
        Function from x float [*batch, H, W] to [*batch, H', W'].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range, or, when called, x is smaller than a window.
    """
    return _max("max_pool2d", 2, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool1d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Pool:
    """Maximum over windows of a sequence x [*batch, L]; all else as in `max_pool2d`."""
    return _max("max_pool1d", 1, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool3d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Pool:
    """Maximum over windows of a volume x [*batch, D, H, W]; all else as in `max_pool2d`."""
    return _max("max_pool3d", 3, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Pool:
    """Mean over windows of an image.

        y[i, j] = mean_uv x[s i + u - p, s j + v - p]

    Args:
        kernel_size: k, how many entries a window has; an int for all dims or one of a tuple.
        stride: s; default: the kernel size.
        padding: p, an int for both ends or a pair (before, after), less than k; or "valid", none,
            or "same": ceil(H / s) outputs, as in JAX.
        ceil_mode: whether a last window may reach beyond the end; it begins before it.
        count_include_pad: whether padding counts, as zeros, in the means.

    Returns:
        Function from x float [*batch, H, W] to [*batch, H', W'].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is out of range, or, when called, x is smaller than a window.
    """
    return _avg("avg_pool2d", 2, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool1d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Pool:
    """Mean over windows of a sequence x [*batch, L]; all else as in `avg_pool2d`."""
    return _avg("avg_pool1d", 1, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool3d(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Pool:
    """Mean over windows of a volume x [*batch, D, H, W]; all else as in `avg_pool2d`."""
    return _avg("avg_pool3d", 3, kernel_size, stride, padding, ceil_mode, count_include_pad)


def adaptive_max_pool2d(output_size: int | Sequence[int | None]) -> Pool:
    """Maximum over windows of an image that give an output of some size.

    Window i of n over H entries is [floor(i H / n), ceil((i + 1) H / n)).

    Args:
        output_size: n, an int for all dims or one of a tuple; None leaves a dim as it is.

    Returns:
        Function from x float [*batch, H, W] to [*batch, n, n].

    Raises:
        TypeError: a size is of another kind.
        ValueError: a size is below 1.
    """
    return _adaptive("adaptive_max_pool2d", 2, _ADAPTIVE_MAX[2], output_size)


def adaptive_max_pool1d(output_size: int | Sequence[int | None]) -> Pool:
    """Maximum over windows of a sequence x [*batch, L]; else as in `adaptive_max_pool2d`."""
    return _adaptive("adaptive_max_pool1d", 1, _ADAPTIVE_MAX[1], output_size)


def adaptive_max_pool3d(output_size: int | Sequence[int | None]) -> Pool:
    """Maximum over windows of a volume x [*batch, D, H, W]; else as in `adaptive_max_pool2d`."""
    return _adaptive("adaptive_max_pool3d", 3, _ADAPTIVE_MAX[3], output_size)


def adaptive_avg_pool2d(output_size: int | Sequence[int | None]) -> Pool:
    """Mean over windows of an image that give an output of some size, as `adaptive_max_pool2d`."""
    return _adaptive("adaptive_avg_pool2d", 2, _ADAPTIVE_AVG[2], output_size)


def adaptive_avg_pool1d(output_size: int | Sequence[int | None]) -> Pool:
    """Mean over windows of a sequence x [*batch, L]; else as in `adaptive_max_pool2d`."""
    return _adaptive("adaptive_avg_pool1d", 1, _ADAPTIVE_AVG[1], output_size)


def adaptive_avg_pool3d(output_size: int | Sequence[int | None]) -> Pool:
    """Mean over windows of a volume x [*batch, D, H, W]; else as in `adaptive_max_pool2d`."""
    return _adaptive("adaptive_avg_pool3d", 3, _ADAPTIVE_AVG[3], output_size)


def global_max_pool(spatial: int) -> Pool:
    """Maximum over all of the last dims, which go.

    Args:
        spatial: how many they are, 2 for images.

    Returns:
        Function from x float [*batch, *spatial] to [*batch]. Entries that are equal share the
        gradient.

    Raises:
        TypeError: it is not an int.
        ValueError: it is below 1.
    """
    dims = _last("global_max_pool", spatial)

    def pool(x: Tensor) -> Tensor:
        _require("global_max_pool", x, spatial)
        return x.amax(dims)

    return pool


def global_avg_pool(spatial: int) -> Pool:
    """Mean over all of the last dims, which go; all else as in `global_max_pool`."""
    dims = _last("global_avg_pool", spatial)

    def pool(x: Tensor) -> Tensor:
        _require("global_avg_pool", x, spatial)
        return x.mean(dims)

    return pool


def _last(name: str, spatial: int) -> tuple[int, ...]:
    _check.sizes(name, spatial=spatial)
    return tuple(range(-spatial, 0))


def _require(name: str, x: Any, n: int) -> None:
    """Refuses what is no float tensor of at least n dims."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: x is {got}, expected a float tensor of at least {n} dims")
    if x.dim() < n or 0 in x.shape[x.dim() - n :]:
        raise ValueError(
            f"{name}: x has shape {tuple(x.shape)}, expected at least {n} dims, the last {n} not "
            "empty"
        )


def _fold(x: Tensor, n: int) -> tuple[Tensor, tuple[int, ...]]:
    """[*batch, *size] as the [N, C, *size] that torch's pools take, and what batch was."""
    batch = x.shape[: x.dim() - n]
    if len(batch) != 2 or batch[1] == 0:  # N may be 0, but C not
        x = _window.fold(x, n)[0].unsqueeze(1)
    return x, batch


def _unfold(x: Tensor, batch: tuple[int, ...]) -> Tensor:
    return x if x.shape[:2] == batch else x.reshape(*batch, *x.shape[2:])


def _windows(
    name: str,
    n: int,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil_mode: bool,
) -> tuple[tuple[int, ...], tuple[int, ...], Pairs | None, tuple[int, ...], tuple[int, ...]]:
    """Kernel, strides, padding unless it is "same", dilations and extent of the windows."""
    kernel = _window.per_dim(name, "kernel_size", kernel_size, n)
    strides = kernel if stride is None else _window.per_dim(name, "stride", stride, n)
    dilations = _window.per_dim(name, "dilation", dilation, n)
    fixed, extent = _window.padding_of(name, padding, n), _window.extents(kernel, dilations)
    for pair, wide in zip(fixed or (), extent, strict=False):
        if max(pair) >= wide:
            raise ValueError(
                f"{name}: padding is {padding}, expected less than {wide}, the extent of a window"
            )
    if ceil_mode and fixed is not None and not _is_torchs(fixed, extent):
        raise ValueError(
            f"{name}: padding is {padding}, expected ints of at most half of the extent of a "
            f"window, {extent}, with ceil_mode"
        )
    return kernel, strides, fixed, dilations, extent


def _is_torchs(pairs: Pairs, extent: Sequence[int]) -> bool:
    """Whether torch's pools know a padding: the same at both ends and at most half a window."""
    both = zip(pairs, extent, strict=True)
    return all([before == after and 2 * before <= wide for (before, after), wide in both])


def _max(
    name: str,
    n: int,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil_mode: bool,
) -> Pool:
    windows = _windows(name, n, kernel_size, stride, padding, dilation, ceil_mode)
    kernel, strides, fixed, dilations, extent = windows
    made, reduce = f"{name}({kernel_size})", _MAX[n]

    def pool(x: Tensor) -> Tensor:
        _require(name, x, n)
        pairs = _window.same(x.shape[-n:], extent, strides) if fixed is None else fixed
        _window.require_fit(name, made, x, pairs, extent)
        x, batch = _fold(x, n)
        own = [before for before, _ in pairs]
        if not _is_torchs(pairs, extent):
            x, own = _window.pad(x, pairs, value=float("-inf")), [0] * n
        return _unfold(reduce(x, kernel, strides, own, dilations, ceil_mode), batch)

    return pool


def _avg(
    name: str,
    n: int,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Pool:
    windows = _windows(name, n, kernel_size, stride, padding, 1, ceil_mode)
    kernel, strides, fixed, _, extent = windows
    made, reduce = f"{name}({kernel_size})", _AVG[n]

    def pool(x: Tensor) -> Tensor:
        _require(name, x, n)
        pairs = _window.same(x.shape[-n:], extent, strides) if fixed is None else fixed
        _window.require_fit(name, made, x, pairs, extent)
        x, batch = _fold(x, n)
        if _is_torchs(pairs, extent):
            own = [before for before, _ in pairs]
            out = reduce(x, kernel, strides, own, ceil_mode, count_include_pad)
        else:
            out = reduce(_window.pad(x, pairs), kernel, strides, 0, ceil_mode)
            if not count_include_pad:
                there = _window.pad(x.new_ones(1, 1, *x.shape[-n:]), pairs)
                out = out / reduce(there, kernel, strides, 0, ceil_mode)
        return _unfold(out, batch)

    return pool


def _adaptive(
    name: str, n: int, reduce: Callable[..., Any], output_size: int | Sequence[int | None]
) -> Pool:
    each = output_size if isinstance(output_size, tuple | list) else (output_size,) * n
    given = [1 if size is None else size for size in each]
    _window.per_dim(name, "output_size", given if len(each) == n else output_size, n)

    def pool(x: Tensor) -> Tensor:
        _require(name, x, n)
        x, batch = _fold(x, n)
        pairs = zip(each, x.shape[-n:], strict=True)
        size = [have if wanted is None else wanted for wanted, have in pairs]
        return _unfold(reduce(x, size), batch)

    return pool
