"""What a learned rule does, in numbers: targets against facts, and maps of a grid world's cells."""

import math
from typing import Any

import torch
from torch import Tensor

from .style import COLORS, INK, furnish, new_figure, panels

_HEAT, _SIGNED = "viridis", "RdBu_r"
_DPI = 120
_MOST = 4  # maps in a line
_NAMES = {
    "td_error": "TD error of the exact values",
    "return": "return",
    "pi_hat": r"$\hat\pi$",
    "y_hat": r"linear reading of $\hat y$",
}


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation of two samples.

    Args:
        x: any shape.
        y: the same.

    Returns:
        The number; NaN where one doesn't vary.
    """
    dx, dy = (v.double().flatten() - v.double().mean() for v in (x, y))
    scale = float(dx.norm() * dy.norm())
    return float(dx @ dy) / scale if scale > 0 else math.nan


def targets_figure(pairs: dict[tuple[str, str], tuple[Tensor, Tensor]]) -> Any:
    """What the rule tells agents against what happened.

    Args:
        pairs: for the names (below, beside) of the axes the samples, of one shape each; the names
            are those of ``probe_trajectories``, or text of your own.

    Returns:
        The figure: for each pair the density of the samples, their least squares line, and their
        correlation.
    """
    figure = new_figure(9.0, 3.4 * -(-len(pairs) // 2), _DPI)
    for panel, ((below, beside), (x, y)) in zip(
        panels(figure, len(pairs), 2), pairs.items(), strict=True
    ):
        x, y = x.double().flatten().cpu(), y.double().flatten().cpu()
        options = {"gridsize": 40, "mincnt": 1, "cmap": "Blues", "linewidths": 0}
        panel.hexbin(x, y, bins="log", vmin=0.2, **options)  # below 1, which would be white
        title = f"correlation {correlation(x, y):.2f}, {len(x)} steps"
        if float(x.std(correction=0)) > 0:
            slope = correlation(x, y) * float(y.std() / x.std()) if float(y.std()) > 0 else 0.0
            ends = torch.stack([x.min(), x.max()])
            panel.plot(ends, y.mean() + slope * (ends - x.mean()), color=COLORS[1], linewidth=2.0)
        furnish(panel, title, _NAMES.get(below, below), _NAMES.get(beside, beside))
    return figure


def cells_figure(
    rows: list[tuple[str, list[tuple[str, Tensor]]]],
    mask: Tensor,
    marks: dict[int, str] | None = None,
) -> Any:
    """Numbers by cell of a grid of side g, a row of maps for each subject.

    Args:
        rows: a title for each row, and its maps, by title: ``[g * g]``. Maps of a row share their
            colors; a row with numbers of both signs has white at 0.
        mask: bool ``[g * g]``, cells that are drawn; the others are gray.
        marks: text on some cells, such as where the objects are.

    Returns:
        The figure.
    """
    lines = [-(-len(maps) // _MOST) for _, maps in rows]
    columns = [-(-len(maps) // n) for (_, maps), n in zip(rows, lines, strict=True)]
    widest, side = max(columns), math.isqrt(mask.numel())
    figure = new_figure(1.75 * widest + 1.0, 1.95 * sum(lines), _DPI)
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=lines)[:, 0]
    for part, (title, maps), high, wide in zip(parts, rows, lines, columns, strict=True):
        # of the same size in all rows: lines with fewer maps have empty places at their ends
        grid = part.subplots(high, widest, squeeze=False)
        places = list(grid[:, :wide].flat)
        seen = torch.cat([values.double().cpu()[mask.cpu()] for _, values in maps])
        low, top = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)
        signed = low < 0 < top
        bounds = (-max(-low, top), max(-low, top)) if signed else (low, top)
        colors = {"cmap": _SIGNED if signed else _HEAT, "vmin": bounds[0], "vmax": bounds[1]}
        shown = None
        for panel, (name, values) in zip(places, maps, strict=False):
            picture = values.double().cpu().masked_fill(~mask.cpu(), torch.nan).reshape(side, side)
            shown = panel.imshow(picture.numpy(), **colors)
            panel.set_title(name, fontsize=10, color=INK)
            panel.set(xticks=[], yticks=[], facecolor="#BBBBBB")
            _mark(panel, marks or {}, side)
        for panel in [*places[len(maps) :], *grid[:, wide:].flat]:
            panel.set_axis_off()
        grid[0, 0].set_ylabel(title, fontsize=10, color=INK)
        bar = part.colorbar(shown, ax=list(grid.flat), shrink=0.8, aspect=12 * high)
        bar.ax.tick_params(labelsize=9)
    return figure


def _mark(panel: Any, marks: dict[int, str], side: int) -> None:
    """Texts on cells, with a light edge: they lie on dark colors, too."""
    from matplotlib.patheffects import withStroke

    edge = [withStroke(linewidth=2.5, foreground="white")]
    for cell, text in marks.items():
        place = {"ha": "center", "va": "center", "fontsize": 9, "path_effects": edge}
        panel.text(cell % side, cell // side, text, **place)
