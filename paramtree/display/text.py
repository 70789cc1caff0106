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

_ASCII = {
    "├": "+", "└": "`", "│": "|", "─": "-", "→": "->", "±": "+-", "≈": "~", "…": "~", "·": "-",
    "⚠": "!", **dict(zip("▁▂▃▄▅▆▇█", ".:-=+*#@", strict=True)),
}  # fmt: skip

Line = list[tuple[str, str]]  # pieces of text, and the style of each


def lines(readout: Readout, width: int, encoding: str = "utf-8") -> list[Line]:
    """Lines of a tree; levels that would take more than ``LINES`` of them stay closed.

    Args:
        readout: the tree.
        width: columns of the terminal.
        encoding: of the terminal; what it can't write is written in ASCII.

    Returns:
        The lines, as pieces with rich's names of styles.
    """

    def spelled(text: str) -> str:
        return _spelled(text.replace("\N{NO-BREAK SPACE}", " "), encoding)

    head, whole = spelled(" → ".join(readout.names)), spelled(title(readout))
    out: list[Line] = [[(head, "bold"), ("  " + whole, "")]]
    counts = expanded(readout.root, LINES, lambda node, parent: 1)
    rows = list(_rows(readout.root, readout, counts, ""))
    if readout.root.kind in ("leaf", "other"):
        rows = [("", "", words(readout.root, readout), "")]
    sampled = any("≈" in row[2].numbers for row in rows)
    longest = 3 * max(2, width // 9) + 1  # of what stands before a name
    rows = [
        (_end(guide, longest), spelled(label), Words(*map(spelled, told)), style)
        for guide, label, told, style in rows
    ]
    columns = [c for c in Words._fields[:-1] if any(getattr(row[2], c) for row in rows)]
    widths = {c: max(_width(getattr(row[2], c)) for row in rows) for c in columns}
    names = max((_width(row[0] + row[1]) for row in rows), default=0)
    names = max(8, names)
    for column in _DROPPED:
        if min(names, max(8, width // 2)) + sum(widths[c] + 2 for c in columns) <= width:
            break
        columns = [c for c in columns if c != column]
    names = max(8, min(names, width - sum(widths[c] + 2 for c in columns)))
    for guide, label, told, style in rows:
        line = [(guide, "dim"), (_cut(label, names - _width(guide)), style)]
        room = names - sum(_width(piece) for piece, _ in line)
        if told.value:
            line.append((" " * room + "  " + told.value, ""))
        for column in columns if not told.value else ():
            text = getattr(told, column)
            gap = " " * (widths[column] - _width(text))
            before, after = (gap, "") if column in _RIGHT else ("", gap)
            look = "dim" if text == "same" else _STYLES.get(column, "")
            line += [(" " * room + "  " + before, ""), (text, look), (after, "")]
            room = 0
        out.append(line)
    if sampled:
        out.append([("≈ of a sample of the entries", "dim")])
    out += [[("! " + limit, "dim")] for limit in readout.limits]
    out = [_cut_line(line, width) for line in out]
    return [[(_spelled(text, encoding), style) for text, style in line] for line in out]


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


def _spelled(text: str, encoding: str) -> str:
    """A text as it is where it can be written, else in signs that can."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(str.maketrans(_ASCII))
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def _end(guide: str, longest: int) -> str:
    return guide if len(guide) <= longest else "…" + guide[1 - longest :]


def _width(text: str) -> int:
    """Columns that a terminal gives a text."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    kept, room = 0, width - 1
    for sign in text:
        room -= _width(sign)
        if room < 0:
            break
        kept += 1
    return text[:kept] + "…"


def _cut_line(line: Line, width: int) -> Line:
    out, left = [], width
    for text, style in line:
        piece = _cut(text, left) if left > 0 else ""
        out.append((piece, style))
        left -= _width(piece)
    while out and not out[-1][0].rstrip():
        out.pop()
    return [*out[:-1], (out[-1][0].rstrip(), out[-1][1])] if out else out
