"""Statistics of many tensors at once: all entries where they are few, a sample where they are many.

Small tensors are read whole; of the others a stride takes as many entries as ``ENTRIES`` leaves
for each. Then the smallest and the largest entry, and whether there is a NaN or an infinity, still
come from all entries, up to ``SCANNED`` of them in the whole tree.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ENTRIES = 2**21  # read of all tensors together
SCANNED = 2**29  # looked at for the smallest, the largest and what is not finite
BARS = 16
_CHUNK = 2**22


class Statistics(NamedTuple):
    """Numbers of a tensor, or of a part of it.

    Attributes:
        seen: number of entries that were read.
        mean: of the finite entries; NaN where there are none.
        spread: their standard deviation.
        low: the smallest of them.
        high: the largest.
        zeros: number of zeros seen.
        nan: number of NaNs.
        infinite: number of infinities.
        bars: histogram of the finite entries from low to high, as heights from 0 to 8.
        scanned: whether low, high, nan and infinite are of all entries.
    """

    seen: int
    mean: float
    spread: float
    low: float
    high: float
    zeros: int
    nan: int
    infinite: int
    bars: tuple[int, ...]
    scanned: bool


def share(sizes: Sequence[int], total: int) -> int:
    """Largest number of entries for each of some tensors so that all together take no more.

    Args:
        sizes: number of elements of each tensor.
        total: what they may take together.

    Returns:
        The number, at least 16.
    """
    left, ordered = total, sorted(sizes)
    for i, size in enumerate(ordered):
        equal = left // (len(ordered) - i)
        if size > equal:
            return max(equal, 16)
        left -= size
    return max([16, *ordered])


def sample(x: Tensor, rows: Sequence[int], most: int) -> Tensor:
    """Entries of a tensor, evenly spread over it, as many of each row as of the others.

    Args:
        x: [*rows, ...] the tensor.
        rows: leading shape that is kept.
        most: number of entries above which a sample is taken.

    Returns:
        [*rows, n] float64, or complex128; all entries, in order, where x has at most ``most``.
    """
    n_rows = math.prod(rows)
    n = x.numel() // n_rows if n_rows else 0
    step = max(1, -(-n * n_rows // most))
    if step == 1 or n < 2:
        taken = x.reshape(*rows, n)
    else:
        while math.gcd(step, n) > 1:  # so that it doesn't stay in some columns
            step += 1
        if x.is_contiguous():
            taken = x.view(*rows, n)[..., ::step]
        else:
            where, index = [], torch.arange(0, n, step, device=x.device)
            for length in reversed(x.shape[len(rows) :]):
                where.append(index % length)
                index = index // length
            taken = x[(..., *reversed(where))]
    return taken.to(device="cpu", dtype=torch.complex128 if x.is_complex() else torch.float64)


def distinct(x: Tensor) -> Tensor:
    """One of the equal rows along each axis that ``expand`` has made.

    Args:
        x: the tensor.

    Returns:
        A view of it.
    """
    return x[tuple(slice(0, 1) if s == 0 else slice(None) for s in x.stride())]


def scan(x: Tensor) -> tuple[float, float, int, int] | None:
    """Smallest and largest finite entry, and how many NaNs and infinities, of all entries.

    Args:
        x: the tensor, not empty.

    Returns:
        ``(low, high, nan, infinite)``, low and high NaN where nothing is finite; None where torch
        can't say for this dtype.
    """
    n = x.numel()
    x = distinct(x)
    copies = n // x.numel()
    if not x.is_complex():
        try:
            low, high = (v.item() for v in torch.aminmax(x))
        except RuntimeError:  # such as float8
            return None
        if math.isfinite(low) and math.isfinite(high):
            return low, high, 0, 0
    low, high, nan, infinite = math.inf, -math.inf, 0, 0
    for part in x.reshape(-1).split(_CHUNK):
        part = part.abs() if part.is_complex() else part
        finite = part[part.isfinite()]
        nan += int(part.isnan().sum())
        infinite += int(part.isinf().sum())
        if finite.numel():
            ends = torch.aminmax(finite)
            low, high = min(low, ends.min.item()), max(high, ends.max.item())
    if low > high:
        low = high = math.nan
    return low, high, nan * copies, infinite * copies


def statistics(rows: Sequence[Tensor]) -> list[Statistics]:
    """Statistics of each of many vectors.

    Args:
        rows: [n] float64 each.

    Returns:
        Theirs, in order; ``scanned`` as if the vectors were all there is.
    """
    if not rows:
        return []
    sizes = torch.tensor([len(row) for row in rows], device="cpu")
    v = torch.cat(list(rows))
    finite = v.isfinite()
    nan = infinite = torch.zeros(len(rows), dtype=torch.float64, device="cpu")
    count, zeros = sizes.double(), _sum(v == 0, sizes)
    if not finite.all():
        nan, infinite = _sum(v.isnan(), sizes), _sum(v.isinf(), sizes)
        v, kept = v[finite], _sum(finite, sizes)
        count, sizes_kept = kept, kept.long()
    else:
        sizes_kept = sizes
    owner = torch.repeat_interleave(sizes_kept)
    low = torch.segment_reduce(v, "min", lengths=sizes_kept)
    high = torch.segment_reduce(v, "max", lengths=sizes_kept)
    scale = torch.maximum(low.abs(), high.abs()).clamp(min=1e-300)  # squares stay in range
    v /= scale[owner]
    mean = _sum(v, sizes_kept) / count
    spread = (_sum((v - mean[owner]).square_(), sizes_kept) / count).sqrt()
    bottom, top = low / scale, high / scale
    place = (v - bottom[owner]).div_((top - bottom)[owner]).mul_(BARS)
    place = place.nan_to_num_(0.0).clamp_(0, BARS - 1)
    counts = torch.bincount(place.long() + owner * BARS, minlength=len(rows) * BARS)
    counts = counts.view(-1, BARS).double()
    bars = (counts / counts.amax(1, keepdim=True).clamp(min=1) * 8).ceil().long()
    columns = (
        count + nan + infinite,
        mean * scale,
        spread * scale,
        low,
        high,
        zeros,
        nan,
        infinite,
    )
    lists = [column.tolist() for column in columns]
    out = []
    for seen, m, s, a, b, z, n, i, heights in zip(*lists, bars.tolist(), strict=True):
        if seen == n + i:
            m = s = a = b = math.nan
        out.append(Statistics(int(seen), m, s, a, b, int(z), int(n), int(i), tuple(heights), True))
    return out


def _sum(v: Tensor, sizes: Tensor) -> Tensor:
    return torch.segment_reduce(v.double(), "sum", lengths=sizes)
