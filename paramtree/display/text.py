"""A tree as lines of text, as wide as the terminal."""

import unicodedata
from collections.abc import Iterator

from .reading import Node
from .readout import Readout
from .wording import Words, expanded, title, words

LINES = 100
_RIGHT = {"size", "share"}
_DROPPED = ("notes", "device", "bars", "share", "dtype", "numbers", "size", "shape")  # in turn
_STYLES = {
    "bars": "cyan", "change": "yellow", "device": "dim", "dtype": "dim", "marks": "bold red",
    "notes": "dim",
}  # fmt: skip

Line = list[tuple[str, str]]  # pieces of text, and the style of each


def lines(readout: Readout, width: int) -> list[Line]:
    """Lines of a tree; levels that would take more than ``LINES`` of them stay closed.

    Args:
        readout: the tree.
        width: columns of the terminal.

    Returns:
        The lines, as pieces with rich's names of styles.
    """
    name = " → ".join(readout.names)
    out: list[Line] = [[(name, "bold"), ("  " + title(readout), "")]]
    counts = expanded(readout.root, LINES, lambda node, parent: 1)
    rows = list(_rows(readout.root, readout, counts, ""))
    if readout.root.kind in ("leaf", "other"):
        rows = [("", "", words(readout.root, readout), "")]
    columns = [c for c in Words._fields[:-1] if any(getattr(row[2], c) for row in rows)]
    widths = {c: max(_width(getattr(row[2], c)) for row in rows) for c in columns}
    names = max((_width(row[0] + row[1]) for row in rows), default=0)
    names = max(8, names)
    for column in _DROPPED:
        if names + sum(widths[c] + 2 for c in columns) <= width:
            break
        columns = [c for c in columns if c != column]
    names = max(8, min(names, width - sum(widths[c] + 2 for c in columns)))
    for guide, label, told, style in rows:
        line = [(guide, "dim"), (_cut(label, names - _width(guide)), style)]
        room = names - sum(_width(piece) for piece, _ in line)
        if told.value:
            line.append((" " * room + "  " + told.value, ""))
        for column in columns if not told.value else ():
            text = getattr(told, column).replace("\N{NO-BREAK SPACE}", " ")
            gap = " " * (widths[column] - _width(text))
            before, after = (gap, "") if column in _RIGHT else ("", gap)
            look = "dim" if text == "same" else _STYLES.get(column, "")
            line += [(" " * room + "  " + before, ""), (text, look), (after, "")]
            room = 0
        out.append(line)
    if any("≈" in row[2].numbers for row in rows):
        out.append([("≈ of a sample of the entries", "dim")])
    out += [[("! " + limit, "dim")] for limit in readout.limits]
    return [_cut_line(line, width) for line in out]


def _rows(
    node: Node, readout: Readout, counts: dict[int, int], indent: str
) -> Iterator[tuple[str, str, Words, str]]:
    kept = counts.get(id(node), 0)
    hidden = len(node.children) - kept
    for i, child in enumerate(node.children[:kept]):
        last = i == len(node.children) - 1
        guide = indent + ("└─ " if last else "├─ ")
        style = "bold" if child.children else ""
        closed = " …" if child.children and not counts.get(id(child)) else ""
        yield guide, shown_name(child.name) + closed, words(child, readout), style
        yield from _rows(child, readout, counts, indent + ("   " if last else "│  "))
    if kept and hidden:
        yield indent + "└─ ", f"… {hidden:,} more", Words(), "dim"


def shown_name(name: object) -> str:
    """A name on one line: as it is where it can be read, else with its escapes."""
    text = name if isinstance(name, str) else repr(name)
    return text if text.isprintable() and text.strip() == text and text else repr(text)


def _width(text: str) -> int:
    """Columns that a terminal gives a text."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _cut_line(line: Line, width: int) -> Line:
    out, left = [], width
    for text, style in line:
        piece = _cut(text, left) if left > 0 else ""
        out.append((piece, style))
        left -= _width(piece)
    while out and not out[-1][0].rstrip():
        out.pop()
    return [*out[:-1], (out[-1][0].rstrip(), out[-1][1])] if out else out
