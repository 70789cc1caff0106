"""Pictures of what a learned rule does, of plain numbers: for the command and for notebooks.

Each function draws one figure and gives it back; ``write`` makes a png of it. matplotlib is loaded
here and in ``plots`` alone, without a display and without its global state.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import plots

_LINE, _FIT = "#0072B2", "#D55E00"
_HEAT, _SIGNED = "viridis", "RdBu_r"
_DPI = 120
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


def draw_targets(pairs: dict[tuple[str, str], tuple[Tensor, Tensor]]) -> Any:
    """Draw what the rule tells agents against what happened.

    Args:
        pairs: for the names (below, beside) of the axes the samples, of one shape each; the names
            are those of ``probe_trajectories``, or text of your own.

    Returns:
        The figure: for each pair the density of the samples, their least squares line, and their
        correlation.
    """
    figure = _figure(9.0, 3.4 * -(-len(pairs) // 2))
    for panel, ((below, beside), (x, y)) in zip(
        _panels(figure, len(pairs), 2), pairs.items(), strict=True
    ):
        x, y = x.double().flatten().cpu(), y.double().flatten().cpu()
        options = {"gridsize": 40, "mincnt": 1, "cmap": "Blues", "linewidths": 0}
        panel.hexbin(x, y, bins="log", vmin=0.2, **options)  # below 1, which would be white
        title = f"correlation {correlation(x, y):.2f}, {len(x)} steps"
        if float(x.std(correction=0)) > 0:
            slope = correlation(x, y) * float(y.std() / x.std()) if float(y.std()) > 0 else 0.0
            ends = torch.stack([x.min(), x.max()])
            panel.plot(ends, y.mean() + slope * (ends - x.mean()), color=_FIT, linewidth=2.0)
        plots.furnish(panel, title, _NAMES.get(below, below), _NAMES.get(beside, beside))
    return figure


def draw_cells(
    rows: list[tuple[str, list[tuple[str, Tensor]]]],
    mask: Tensor,
    marks: dict[int, str] | None = None,
) -> Any:
    """Draw numbers by cell of a grid world, a row of maps for each subject.

    Args:
        rows: a title for each row, and its maps, by title: ``[S * S]``. Maps of a row share their
            colors; a row with numbers of both signs has white at 0.
        mask: bool ``[S * S]``, cells that are drawn; the others are gray.
        marks: text on some cells, such as where the objects are.

    Returns:
        The figure.
    """
    widest, side = max(len(maps) for _, maps in rows), math.isqrt(mask.numel())
    figure = _figure(1.4 * widest + 1.0, 1.7 * len(rows))
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, (title, maps) in zip(parts, rows, strict=True):
        # of the same size in all rows: a row with fewer maps has empty places at its end
        panels = list(part.subplots(1, widest, squeeze=False)[0])
        seen = torch.cat([values.double().cpu()[mask.cpu()] for _, values in maps])
        low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)
        signed = low < 0 < high
        bounds = (-max(-low, high), max(-low, high)) if signed else (low, high)
        shown = None
        for panel, (name, values) in zip(panels, maps, strict=False):
            picture = values.double().cpu().masked_fill(~mask.cpu(), torch.nan).reshape(side, side)
            options = {"cmap": _SIGNED if signed else _HEAT, "vmin": bounds[0], "vmax": bounds[1]}
            shown = panel.imshow(picture.numpy(), **options)
            panel.set_title(name, fontsize=9)
            panel.set(xticks=[], yticks=[], facecolor="#BBBBBB")
            for cell, text in (marks or {}).items():
                place = {"ha": "center", "va": "center", "fontsize": 7}
                panel.text(cell % side, cell // side, text, **place)
        for panel in panels[len(maps) :]:
            panel.set_axis_off()
        panels[0].set_ylabel(title, fontsize=9)
        part.colorbar(shown, ax=panels, shrink=0.8, aspect=12).ax.tick_params(labelsize=7)
    return figure


def draw_training(history: list[dict[str, Any]], results: dict[str, Tensor]) -> Any:
    """Draw all metrics of a meta-training, and the agents that learned from scratch after it.

    Args:
        history: metrics by step, as ``folder.read_metrics`` gives them, of which numbers are drawn;
            or none, where there are results.
        results: rewards by name, as ``evaluation.contest`` gives them; or none.

    Returns:
        The figure.
    """
    left = {"step", "seconds"}
    last = history[-1] if history else {}
    names = sorted(name for name, value in last.items() if _is_number(value) and name not in left)
    heights = [2.4 * -(-len(names) // 3)] * bool(names) + [3.2] * bool(results)
    figure = _figure(12.0, sum(heights))
    parts = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    step = torch.tensor([row["step"] for row in history])
    for panel, name in zip(_panels(parts[0], len(names), 3), names, strict=True):
        got = [row[name] if _is_number(row.get(name)) else math.nan for row in history]
        curve = torch.tensor(got, dtype=torch.float64)
        panel.plot(step, curve, color=_LINE, alpha=0.3, linewidth=1.0)
        panel.plot(step, plots.smoothed(curve, max(1, len(curve) // 30)), color=_LINE, linewidth=2)
        plots.furnish(panel, name, "meta-step", "")
    if results:
        lives = {name: curve.double().cpu() for name, curve in results.items()}
        plots.draw_lives(_panels(parts[-1], 1, 1)[0], lives)
    return figure


def write(path: Path, figure: Any) -> None:
    """Write a figure as a png, whole or not at all.

    Args:
        path: where.
        figure: what one of these functions gave.
    """
    plots.write(path, figure)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panels(figure: Any, count: int, columns: int) -> list[Any]:
    """So many panels in rows."""
    if not count:
        return []
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for empty in axes[count:]:
        empty.set_axis_off()
    return axes[:count]
