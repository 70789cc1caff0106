"""Words for what is shown: numbers, rows and marks, the same on a page and in a terminal."""

import bisect
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .reading import Node
from .readout import Readout, Shown
from .statistics import Statistics

BARS = "\N{NO-BREAK SPACE}▁▂▃▄▅▆▇█"


class Words(NamedTuple):
    """What a row says of a node.

    Attributes:
        shape: of a leaf, or the kind and batch size of a sub-tree.
        dtype: of a leaf, or the number of leaves.
        device: of a leaf.
        size: number of elements.
        share: of the memory of the whole tree.
        numbers: mean and spread.
        bars: histogram.
        change: what the second tree has otherwise.
        marks: what has to be seen: NaN and infinities.
        notes: what else there is to say.
        value: of what is no tensor.
    """

    shape: str = ""
    dtype: str = ""
    device: str = ""
    size: str = ""
    share: str = ""
    numbers: str = ""
    bars: str = ""
    change: str = ""
    marks: str = ""
    notes: str = ""
    value: str = ""


def words(node: Node, readout: Readout) -> Words:
    """Words for a row.

    Args:
        node: a leaf, a sub-tree or what is neither.
        readout: what it is part of.

    Returns:
        Texts; those that say nothing are empty.
    """
    if node.kind == "other":
        return Words(notes=", ".join(node.notes), value=node.text)
    size, whole = f"{node.size:,}", readout.root.bytes
    share = percent(node.bytes / whole if whole else 0.0, 0.1)
    if node.kind != "leaf":
        kind = {"tree": "TensorDict", "class": "tensorclass"}.get(node.kind, node.kind)
        shape = f"batch {list(node.batch)}" if node.batch else kind
        leaves = "1 leaf" if node.leaves == 1 else f"{node.leaves:,} leaves"
        broken = readout.broken.get(id(node), 0)
        marks = f"⚠ NaN or infinity in {broken:,} of them" if broken else ""
        return Words(shape, leaves, "", size, share, marks=marks, notes=", ".join(node.notes))
    shown, sides = readout.shown[id(node)], [side for side in node.sides if side]
    shape = " → ".join(dict.fromkeys([str(list(side.shape)) for side in sides]))
    dtype = " → ".join(dict.fromkeys([side.dtype for side in sides]))
    device = " → ".join(dict.fromkeys([side.device for side in sides]))
    pairs = zip(shown.panes, node.sides, strict=False)
    numbers = " → ".join(_numbers(s, side.size) for s, side in pairs if s and side)
    bars = spark(shown.panes[0]) if shown.panes[0] else ""
    notes = dict.fromkeys(note for side in sides for note in side.notes)
    notes = ", ".join(filter(None, [*notes, *node.notes, shown.trouble]))
    marks = ", ".join(filter(None, _marks(shown, readout.names)))
    change = _change(node, shown, readout.names) if len(readout.names) == 2 else ""
    return Words(shape, dtype, device, size, share, numbers, bars, change, marks, notes)


def _change(node: Node, shown: Shown, names: tuple[str, ...]) -> str:
    left, right = node.sides
    if left is None or right is None:
        return f"only in {names[1 if left is None else 0]}"
    if left.shape != right.shape:
        return "other shape"
    if left.dtype != right.dtype:
        return "other dtype"
    if shown.same is None:
        return "not compared"
    if shown.same:
        return "same"
    difference = shown.panes[2]
    about = "≈ " if difference and difference.seen < left.size else ""
    return f"differs by {about}{percent(shown.change)}" if shown.change else "differs"


def _marks(shown: Shown, names: tuple[str, ...]) -> Iterator[str]:
    for name, s in zip(names, shown.panes, strict=False):  # the third one is of the difference
        where = f" in {name}" if len(names) == 2 else ""
        for count, what in ((s.nan, "NaN"), (s.infinite, "infinite")) if s else ():
            if count:
                yield f"⚠ {count:,} {what}{where}"


def _numbers(s: Statistics, size: int) -> str:
    if s.seen == 0:
        return "empty"
    if math.isnan(s.mean):
        return "nothing finite" if math.isnan(s.low) else "nothing finite in the sample"
    if s.seen == 1 and s.scanned:
        return number(s.mean)
    about = "≈ " if s.seen < size else ""
    return f"{about}{number(s.mean)} ± {number(s.spread)}"


def details(s: Statistics, size: int) -> str:
    """What a row has no room for.

    Args:
        s: the statistics.
        size: number of elements of the tensor.

    Returns:
        Smallest, largest, zeros, and how many entries were read.
    """
    if not s.seen:
        return "no entries"
    sampled = s.seen < size
    zeros = percent(s.zeros / s.seen)
    parts = [] if math.isnan(s.low) else [f"min {number(s.low)}", f"max {number(s.high)}"]
    parts.append(f"zeros {zeros}" if sampled or not s.zeros else f"zeros {s.zeros:,} ({zeros})")
    if sampled:
        exact = "" if s.scanned else ", min and max too"
        parts.append(f"sampled: {s.seen:,} of {size:,}{exact}")
    return " · ".join(parts)


def number(x: float) -> str:
    """Three digits of a number."""
    size = abs(x)
    if 999.5 <= size < 999_999.5:
        return f"{x:,.0f}"
    if 999_999.5 <= size < math.inf or 0 < size < 1e-4:
        digits, power = f"{x:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{x:.3g}"


def percent(x: float, least: float = 0.001) -> str:
    """A share in two digits; below the least one, it says so."""
    x *= 100
    if 0 < x < least:
        return f"<{least:g}%"
    return f"{x:,.0f}%" if x == 0 or x >= 9.95 else f"{x:.2g}%"


def memory(size: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError


def spark(s: Statistics) -> str:
    """Histogram in one line; nothing where all entries are one number."""
    if not s.low < s.high:
        return ""
    return "".join([BARS[height] for height in s.bars])


def title(readout: Readout) -> str:
    """What the whole tree is, in one line without its name."""
    root = readout.root
    parts = [words(root, readout).shape] if root.kind != "leaf" else []
    if root.kind != "leaf" and root.batch:
        parts.insert(0, "TensorDict" if root.kind == "tree" else "tensorclass")
    sides = [side for node in root.walk() for side in node.sides if side]
    parts += ["1 leaf" if root.leaves == 1 else f"{root.leaves:,} leaves"]
    parts += ["1 element" if root.size == 1 else f"{root.size:,} elements", memory(root.bytes)]
    for name in ("dtype", "device"):
        kinds = list(dict.fromkeys(getattr(side, name) for side in sides))
        parts += [", ".join(kinds[:4]) + (" …" if len(kinds) > 4 else "")] if kinds else []
    if len(readout.names) == 2:
        parts.append(f"{sum(leaf.same is False for leaf in readout.shown.values()):,} differ")
    return " · ".join([*parts, *root.notes])


def expanded(root: Node, room: int, cost: Callable[[Node, Node], int]) -> dict[int, int]:
    """How many children of each node there is room for, level by level.

    Args:
        root: the tree.
        room: for all of them.
        cost: room that a node with a given parent takes.

    Returns:
        The number by the node's ``id``; a node that isn't there has room for none.
    """
    counts, waiting = {}, deque([root])
    while waiting:
        node, kept = waiting.popleft(), 0
        costs = list(itertools.accumulate(cost(child, node) for child in node.children))
        if costs and costs[-1] <= room:
            kept = len(costs)
        elif node is root:
            kept = bisect.bisect_right(costs, room)
        room -= costs[kept - 1] if kept else 0
        counts[id(node)] = kept
        waiting.extend(child for child in node.children[:kept] if child.children)
    return counts
