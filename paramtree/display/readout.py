"""What is shown of a tree: its nodes, the statistics of each leaf and each index, and pictures."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .pictures import Picture, cells, pictures
from .reading import Node
from .statistics import ENTRIES, SCANNED, Statistics, distinct, sample, scan, share, statistics

HTML = 2_600_000  # bytes that a page may take, about
_ROW = 260  # bytes of one line, about
_RECORD = 60  # bytes of the statistics of one index
_INDICES = 1000  # of one axis, at most


class Shown(NamedTuple):
    """What is shown of one leaf.

    Attributes:
        panes: statistics of its tensor, or of the left one, the right one and their difference;
            None for one that isn't there, or has no values.
        indices: sizes of the leading batch axes whose indices are told apart.
        records: statistics for each pane and index, "all" being the first index of each axis.
        pictures: heat maps for each pane.
        change: norm of the difference over that of the left one; None without a difference.
        same: whether two sides are equal throughout; None where nothing can be compared.
        trouble: why there are no statistics, where that isn't plain.
    """

    panes: tuple[Statistics | None, ...] = ()
    indices: tuple[int, ...] = ()
    records: tuple[list[Statistics], ...] = ()
    pictures: tuple[Picture | None, ...] = ()
    change: float | None = None
    same: bool | None = False
    trouble: str = ""


class Readout(NamedTuple):
    """A tree that has been read.

    Attributes:
        root: its nodes.
        shown: what is shown of each leaf, by the leaf's ``id``.
        names: of the one or two trees.
        limits: what was left out, in words.
        length: longest batch axis whose indices are told apart.
        broken: number of leaves with a NaN or an infinity in each sub-tree, by its ``id``.
    """

    root: Node
    shown: dict[int, Shown]
    names: tuple[str, ...]
    limits: list[str]
    length: int
    broken: dict[int, int]


def read_out(root: Node, names: tuple[str, ...]) -> Readout:
    """Numbers and pictures of a tree.

    Args:
        root: its nodes.
        names: of the one or two trees.

    Returns:
        The readout: numbers and text; the nodes no longer hold their tensors.
    """
    guard = torch._C._DisableFuncTorch()  # as torch does when it prints a tensor
    with torch.no_grad(), _disable_current_modes(), torch._C.DisableTorchFunction():
        readout = _read_out(root, names)
    del guard
    return readout


def _read_out(root: Node, names: tuple[str, ...]) -> Readout:
    found = [(node, batch) for node, batch in _batches(root, ()) if node.kind == "leaf"]
    leaves = [node for node, _ in found]
    tensors = [[side.values if side else None for side in node.sides] for node in leaves]
    limits: list[str] = []
    n_panes = 2 * len(names) - 1
    spare = max(0, HTML - len(leaves) * (_ROW + 40 * (n_panes - 1)))
    length = _indexed([batch for _, batch in found], n_panes * _RECORD, min(600_000, spare // 3))
    batches = [_short(batch, length) for _, batch in found]
    if any(max(batch, default=0) > length for _, batch in found):
        limits.append(f"batch axes of more than {length} have no index here: show a part of them")
    most = share([x.numel() for pair in tensors for x in pair if x is not None], ENTRIES)
    sampled = [_panes(pair, batch, most) for pair, batch in zip(tensors, batches, strict=True)]
    records = _records([panes for panes, _ in sampled], batches)
    drawn = _pictures(tensors, batches, n_panes, min(1_000_000, spare // 2), limits)
    shown, scanned, unscanned = {}, 0, 0
    for i, (node, pair, (panes, trouble)) in enumerate(zip(leaves, tensors, sampled, strict=True)):
        whole = [record[0] if record else None for record in records[i]]
        for k, x in enumerate(pair):
            s = whole[k]
            if x is None or s is None or s.seen == x.numel():
                continue
            scanned += distinct(x).numel()
            ends = scan(x) if scanned <= SCANNED else None
            unscanned += ends is None and (x.is_floating_point() or x.is_complex())
            whole[k] = _scanned(s, ends)
        if len(whole) == 3 and whole[2] is not None:
            whole[2] = whole[2]._replace(scanned=whole[2].seen == node.size)
        same = len(pair) == 2 and _same(node, pair, panes[2])
        change = _change(panes[0], panes[2]) if len(panes) == 3 else None
        shown[id(node)] = Shown(
            tuple(whole), batches[i], records[i], drawn[i], change, same, trouble
        )
    if unscanned:
        limits.append(f"NaN was looked for in a sample only, in {unscanned} of the largest leaves")
    for node in leaves:
        for side in node.sides:
            if side:
                side.values = None
    broken: dict[int, int] = {}
    _count_broken(root, shown, broken)
    return Readout(root, shown, names, limits, length, broken)


def _records(
    panes: list[list[Tensor | None]], batches: list[tuple[int, ...]]
) -> list[tuple[list[Statistics], ...]]:
    """Statistics of each pane for each index of its batch, all of an axis before its first."""
    rows: list[Tensor] = []
    spans = []
    for group, batch in zip(panes, batches, strict=True):
        for entries in group:
            start = len(rows)
            if entries is not None:
                entries = entries.abs() if entries.is_complex() else entries
                for at in itertools.product(*[(_ALL, *range(n)) for n in batch]):
                    rows.append(entries[at].reshape(-1))
            spans.append((start, len(rows)))
    numbers, taken = statistics(rows), iter(spans)
    return [tuple([numbers[slice(*next(taken))] for _ in group]) for group in panes]


_ALL = slice(None)


def _count_broken(node: Node, shown: dict[int, Shown], counts: dict[int, int]) -> int:
    if node.kind == "leaf":
        return int(any(s and s.nan + s.infinite for s in shown[id(node)].panes[:2]))
    counts[id(node)] = sum(_count_broken(child, shown, counts) for child in node.children)
    return counts[id(node)]


def _batches(node: Node, batch: tuple[int, ...]) -> Iterator[tuple[Node, tuple[int, ...]]]:
    """Each node, and the batch size that it has from the tree that it is in."""
    for side in node.sides:
        if side and (side.mapped or side.shape[: len(batch)] != batch):
            batch = ()
    yield node, batch
    for child in node.children:
        yield from _batches(child, node.batch)


def _indexed(batches: list[tuple[int, ...]], cost: int, room: int) -> int:
    """Longest batch axis whose indices are told apart, so that their statistics have room."""
    kinds = Counter(batches)
    for length in sorted({n for batch in kinds for n in batch if n <= _INDICES}, reverse=True):
        kept = {batch: _short(batch, length) for batch in kinds}
        records = [
            math.prod(n + 1 for n in kept[batch]) * kinds[batch] for batch in kinds if kept[batch]
        ]
        if sum(records) * cost <= room:
            return length
    return 0


def _short(batch: tuple[int, ...], length: int) -> tuple[int, ...]:
    """The leading axes up to the first that is empty or too long."""
    return tuple(itertools.takewhile(lambda n: 0 < n <= length, batch))


def _panes(
    pair: list[Tensor | None], batch: tuple[int, ...], most: int
) -> tuple[list[Tensor | None], str]:
    """Entries of the tensors, and of the second less the first; or why there are none."""
    panes: list[Tensor | None] = []
    try:
        for x in pair:
            panes.append(None if x is None else sample(x, batch, most))
    except (RuntimeError, TypeError) as error:  # a dtype or a subclass that torch can't convert
        trouble = f"no statistics: {str(error).splitlines()[0][:80]}"
        return [None] * (2 * len(pair) - 1), trouble
    if len(pair) == 2:
        (x, y), (left, right) = pair, panes
        fits = x is not None and y is not None and x.shape == y.shape
        panes.append(right - left if fits and left is not None and right is not None else None)
    return panes, ""


def _scanned(found: Statistics, ends: tuple[float, float, int, int] | None) -> Statistics:
    if ends is None:
        return found._replace(scanned=False)
    low, high, nan, infinite = ends
    return found._replace(low=low, high=high, nan=nan, infinite=infinite)


def _same(node: Node, pair: list[Tensor | None], difference: Tensor | None) -> bool | None:
    left, right = node.sides
    if left is None or right is None or (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    x, y = pair
    if x is None or y is None:
        return None
    if difference is not None and bool((difference[difference.isfinite()] != 0).any()):
        return False
    if x.data_ptr() == y.data_ptr() and x.stride() == y.stride() and x.device == y.device:
        return True
    y = y.to(x.device)
    try:
        return bool(((x == y) | ((x != x) & (y != y))).all())
    except RuntimeError:  # such as float8: its bytes say it
        pass
    try:
        return torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))
    except RuntimeError:
        return None


def _change(left: Tensor | None, difference: Tensor | None) -> float | None:
    """Norm of the difference over that of what was there before, of the finite entries."""
    if left is None or difference is None:
        return None
    finite = difference.isfinite()
    scale = left[finite].abs().amax().item() if finite.any() else 0.0  # squares stay in range
    if not scale:
        return None
    before, after = ((x[finite] / scale).norm().item() for x in (left, difference))
    return after / before if math.isfinite(after) else None


def _pictures(
    tensors: list[list[Tensor | None]],
    batches: list[tuple[int, ...]],
    n_panes: int,
    room: int,
    limits: list[str],
) -> list[tuple[Picture | None, ...]]:
    """Heat maps of all leaves that have one, as fine as there is room for."""
    wanted = []
    for i, (pair, batch) in enumerate(zip(tensors, batches, strict=True)):
        x = next((x for x in pair if x is not None), None)
        if x is not None and x.ndim > 1:
            wanted.append((i, x.shape, batch))
    kinds = Counter((shape, batch) for _, shape, batch in wanted)
    price: dict[Any, int] = {}
    for most in _CELLS:
        for shape, batch in kinds:
            n_cells = cells(shape, batch, most) or cells(shape, (), most)
            price[shape, batch] = n_cells * n_panes * 4 // 3
        if sum(price[kind] * n for kind, n in kinds.items()) <= room:
            break
    out: list[tuple[Picture | None, ...]] = [()] * len(tensors)
    left_out = 0
    for i, shape, batch in sorted(wanted, key=lambda item: -item[1].numel()):
        cost = price[shape, batch]
        if not cost:
            continue
        if cost > room:
            left_out += 1
            continue
        room -= cost
        batch = batch if cells(shape, batch, most) else ()
        pair = tensors[i]
        given = [x for x in pair if x is not None]
        if len(given) == 2 and given[0].shape != given[1].shape:
            given = given[:1]
        try:
            maps = pictures(given, len(batch), most)
        except (RuntimeError, TypeError):
            continue
        if len(pair) == 1 or len(given) == 2:
            out[i] = tuple(maps)
        else:
            out[i] = tuple(maps[0] if x is given[0] else None for x in pair) + (None,)
    if left_out:
        limits.append(f"no heat map for {left_out:,} of the matrices: show a part to see them")
    return out


_CELLS = (16384, 4096, 1024, 256)  # of one picture: the first with which all have room
