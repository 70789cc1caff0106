"""What all pictures share: colors, panels, texts, and how a figure becomes a file."""

import io
from pathlib import Path
from typing import Any

from .. import folder as files

# Okabe and Ito (2008): colors that stay apart for every kind of sight.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#737373")
INK, FAINT, GRID = "#333333", "#737373", "#E6E6E6"
DPI = 200  # readable at half of its width, as a README shows it
_HIGH = 0.075  # of a panel, a line of text beside it


def new_figure(width: float, height: float, dpi: int = DPI) -> Any:
    """An empty figure that no display and no global list knows of.

    Args:
        width: in inches.
        height: in inches.
        dpi: pixels an inch.

    Returns:
        The figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(figure: Any, count: int, columns: int) -> list[Any]:
    """So many panels of a figure or of a part of it, in rows.

    Args:
        figure: the figure.
        count: how many; for none, nothing is made.
        columns: how many in a row.

    Returns:
        The panels, from left to right and from top to bottom.
    """
    if not count:
        return []
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for empty in axes[count:]:
        empty.set_axis_off()
    return axes[:count]


def furnish(axes: Any, title: str, x: str, y: str, note: str = "") -> None:
    """Give a panel its texts and its looks.

    Args:
        axes: the panel.
        title: above it.
        x: below it.
        y: beside it.
        note: what is to be known of the lines, in a smaller line under the title.
    """
    caption(axes, title, note)
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)


def caption(axes: Any, title: str, note: str = "") -> None:
    """Give a panel its title, and a note in a smaller line under it.

    Args:
        axes: the panel.
        title: the title.
        note: the note.
    """
    lines = note.count("\n") + 1 if note else 0
    pad = 6 + 12 * lines
    # names of folders and environments may be among the texts
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=pad, parse_math=False)
    if note:
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "xytext": (0, 4)}
        text = {"fontsize": 9, "color": FAINT, "va": "bottom", "parse_math": False}
        axes.annotate(note, (0.0, 1.0), annotation_clip=False, **place, **text)


def label_ends(axes: Any, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Put names at the right ends of lines, moved apart where they would overlap.

    Args:
        axes: the panel, which then reaches from 0 to x.
        x: where the lines end.
        ends: height, text and color of each.
    """
    low, high = axes.get_ylim()
    gap, last = _HIGH * (high - low), float("-inf")
    for y, text, color in sorted(ends):
        last = max(y, last + gap)
        axes.annotate(
            text,
            (1.0, last),
            xycoords=axes.get_yaxis_transform(),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=10,
            annotation_clip=False,
            parse_math=False,  # names of folders are among them
        )
    axes.set_xlim(0, x)
    axes.set_ylim(low, max(high, last))


def write(path: Path | str, picture: Any) -> None:
    """Write a picture, whole or not at all; the same picture gives the same bytes.

    Args:
        path: where; a png for a figure, a gif for a film.
        picture: a figure, or the bytes that ``film`` gave.
    """
    if not isinstance(picture, bytes):
        out = io.BytesIO()
        picture.savefig(out, format="png", facecolor="white")
        picture = out.getvalue()
    files.write(Path(path), picture)
