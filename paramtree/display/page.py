"""A tree as a page: nested lists that open and close by themselves, and a script that adds to them.

Without the script and the style it reads as plain text. The script finds in attributes what it
needs: ``data-n`` a name that isn't plain text, ``data-c`` the code of a step that isn't a name of a
TensorDict, ``data-a`` batch axes, ``data-i`` the number of axes that a leaf's records tell apart
and the entries in each, ``data-r`` the records, ``data-p`` pictures.
"""

import base64
import json
import math
import struct
import unicodedata
from functools import cache
from html import escape
from importlib.resources import files

from .reading import Node
from .readout import Readout, Shown
from .statistics import Statistics
from .text import shown_name
from .wording import details, expanded, number, title, words

ROOM = 2_850_000  # bytes of all rows
_OPEN = 30  # rows up to which every sub-tree is open from the start
_LARGEST = 3e38


def page(readout: Readout) -> str:
    """One self-contained piece of HTML.

    Args:
        readout: the tree.

    Returns:
        The text; it holds no names of its own that another page could have too.
    """
    root, name = readout.root, escape(" → ".join(readout.names))
    code = escape(json.dumps(readout.names))
    out = [
        f'<div class="pt-view" role="group" aria-label="tree {name}" data-names="{code}" '
        f'data-lm-suppress-shortcuts="true"{_axes(root, (), readout)}><meta charset=utf-8>'
        f"<style>{_asset('page.css')}</style>"
        f"<p class=pt-head><b>{name}</b> · {escape(title(readout))}"
    ]
    marks = words(root, readout).marks if root.kind != "leaf" else ""
    out.append(f" <strong>{escape(marks)}</strong></p>" if marks else "</p>")
    out += [f"<p class=pt-limit>{escape(limit)}</p>" for limit in readout.limits]
    rows: dict[int, str] = {}

    def cost(node: Node, parent: Node) -> int:
        rows[id(node)] = row = _row(node, parent, readout)
        return len("<ul></ul></details>") + (len(row) if row.isascii() else len(row.encode()))

    counts = expanded(root, ROOM, cost)
    everything = sum(counts.values()) <= _OPEN
    out.append("<ul class=pt-tree>")
    if root.kind in ("leaf", "other"):
        out.append(_row(root, root, readout))
    _list(root, rows, counts, everything, out)
    out.append(f"</ul><script>{_asset('page.js')}</script></div>")
    return "".join(out)


@cache
def _asset(name: str) -> str:
    return files("paramtree.display").joinpath(name).read_text(encoding="utf-8")


def _list(
    node: Node, rows: dict[int, str], counts: dict[int, int], everything: bool, out: list[str]
) -> None:
    """The rows of all that a sub-tree holds."""
    kept = counts.get(id(node), 0)
    for child in node.children[:kept]:
        row = rows[id(child)]
        if child.kind in ("leaf", "other"):
            out.append(row)
            continue
        out += [row.replace("<details>", "<details open>") if everything else row, "<ul>"]
        _list(child, rows, counts, everything, out)
        out.append("</ul></details>")
    if kept < len(node.children):
        hidden = len(node.children) - kept
        out.append(f"<li class=pt-other>… {hidden:,} more: show a part of the tree to see them")


def _row(node: Node, parent: Node, readout: Readout) -> str:
    """All of a leaf, or a sub-tree's line."""
    told = words(node, readout)
    step = ' data-n="&quot;&quot;" data-c="&quot;&quot;"' if node is parent else _step(node, parent)
    name = readout.names[0] if node is parent else shown_name(node.name)
    way = " dir=auto" if any(unicodedata.bidirectional(c) in ("R", "AL") for c in name) else ""
    label = f"<b{way}>{escape(name)}</b>"
    if node.kind == "other":
        return f"<li class=pt-other{step}>{label} · {escape(told.value)}"
    cells = [cell for cell in told[:7] if cell]
    text = f"{label} · {escape(' · '.join(cells))}"
    if told.notes:
        text += f" <i>{escape(told.notes)}</i>"
    if told.change:
        text += f" <em>{escape(told.change)}</em>"
    if told.marks:
        text += f" <strong>{escape(told.marks)}</strong>"
    if node.kind != "leaf":
        step += _axes(node, parent.batch, readout)
        return f"<li class=pt-group{step}><details><summary>{text}</summary>"
    shown = readout.shown[id(node)]
    step += _numbers(shown) + _pictures(shown) + (" data-s" if shown.same else "")
    return f"<li{step}><details><summary>{text}</summary>{_details(node, shown, readout)}</details>"


def _details(node: Node, shown: Shown, readout: Readout) -> str:
    """What a leaf says when it is opened."""
    if len(readout.names) == 1:
        s, side = shown.panes[0], node.sides[0]
        return f"<p>{escape(details(s, side.size))}" if s and side else "<p>no values"
    rows = []
    labels = ("both",) if shown.same else (*readout.names, "difference")
    sizes = [side.size if side else 0 for side in node.sides]
    for label, s, size in zip(labels, shown.panes, (*sizes, sizes[0]), strict=False):
        if s is not None:
            told = s.seen and not math.isnan(s.mean)
            mean = f"mean {number(s.mean)} · spread {number(s.spread)} · " if told else ""
            rows.append(f"<p>{escape(label)}: {mean}{escape(details(s, size))}")
    return "".join(rows) or "<p>no values"


def _step(node: Node, parent: Node) -> str:
    """How a path goes on to a node, where it isn't the name that is shown."""
    name = node.name
    if parent.kind == "tree":
        plain = shown_name(name) == name
        return "" if plain else f' data-n="{escape(json.dumps(name))}"'
    if parent.kind == "class":
        code = f".{name}" if str(name).isidentifier() else f".get({json.dumps(name)})"
    else:
        code = f"[{name!r}]"
    step = json.dumps(str(name))
    return f' data-n="{escape(step)}" data-c="{escape(json.dumps(code))}"'


def _axes(node: Node, outer: tuple[int, ...], readout: Readout) -> str:
    """The batch axes that a sub-tree adds: name, size, and whether its indices are told apart."""
    if node.kind not in ("tree", "class") or len(node.batch) <= len(outer):
        return ""
    sizes, given = node.batch, []
    for i in range(len(outer), len(sizes)):
        told_apart = all(0 < n <= readout.length for n in sizes[: i + 1])
        given.append([node.axes[i] or f"axis {i}", sizes[i], int(told_apart)])
    return f' data-a="{escape(json.dumps(given))}"'


def _numbers(shown: Shown) -> str:
    """Statistics of all indices: mean, spread, low, high, zeros, NaN, infinite and bars of each."""
    if not shown.indices:
        return ""
    parts = []
    for records in shown.records:
        parts.append(base64.b64encode(b"".join(_packed(s) for s in records)).decode())
    per = next((records[-1].seen for records in shown.records if records), 0)
    return f' data-i="{len(shown.indices)} {per}" data-r="{" ".join(parts)}"'


def _packed(s: Statistics) -> bytes:
    floats = [max(min(x, _LARGEST), -_LARGEST) for x in (s.mean, s.spread, s.low, s.high)]
    if math.isnan(s.mean):
        floats = [math.nan] * 4
    pairs = [a + 16 * b for a, b in zip(s.bars[::2], s.bars[1::2], strict=True)]
    return struct.pack("<4f3I8B", *floats, s.zeros, s.nan, s.infinite, *pairs)


def _pictures(shown: Shown) -> str:
    given = []
    for p in shown.pictures[:1] if shown.same else shown.pictures:
        given.append(p and [p.images, p.height, p.width, *p.block, p.low, p.high, p.data])
    return f' data-p="{escape(json.dumps(given))}"' if any(given) else ""
