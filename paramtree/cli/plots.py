"""The pictures; matplotlib is loaded here alone, without a display and without its global state."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import folder as files

# Okabe and Ito (2008): colors that stay apart for every kind of sight.
_STYLE = {
    "trained": ("trained rule", "#0072B2"),
    "a2c": ("tuned A2C", "#D55E00"),
    "untrained": ("untrained rule", "#737373"),
}
_INK, _GRID = "#333333", "#E6E6E6"
_SIZE, _DPI = (9.0, 3.6), 200  # readable at half of its width, as a README shows it


def draw(path: Path, *, history: list[dict[str, Any]], results: dict[str, Tensor]) -> None:
    """Draw how a rule was trained, and what the agents that it trains learn.

    Args:
        path: the picture, a png.
        history: metrics of the meta-training by step, ``step`` and ``reward`` among them; or none.
        results: rewards by name, ``[n, U]`` or ``[n]``, from ``evaluation.contest``; or none.
    """
    figure, axes = _figure(bool(history) + bool(results))
    if history:
        _meta_training(axes.pop(0), history)
    if results:
        _lives(axes.pop(0), results)
    for empty in axes:
        _furnish(empty, "no steps yet", "meta-step", "")
    _write(path, figure)


def draw_returns(
    path: Path, title: str, *, history: list[dict[str, Any]], evaluated: float | None
) -> None:
    """Draw the returns of the episodes that an agent was trained in.

    Args:
        path: the picture, a png.
        title: what it was trained for.
        history: metrics of the training, ``step`` and a list ``returns`` among them; or none.
        evaluated: mean return after the last step, if there was an evaluation.
    """
    figure, (axes,) = _figure(1)
    ended = [(row["step"], x) for row in history for x in row.get("returns", [])]
    if ended:
        step, returns = torch.tensor(ended, dtype=torch.float64).unbind(1)
        color = _STYLE["trained"][1]
        axes.plot(step, returns, ".", color=color, alpha=0.3, markersize=4, markeredgewidth=0)
        calm = _smoothed(returns, max(1, len(returns) // 20))
        last = torch.cat([step.diff() > 0, torch.tensor([True])])  # of the episodes at each step
        axes.plot(step[last], calm[last], color=color, linewidth=2.0)
    _furnish(axes, title if history else "no steps yet", "step", "return of an episode")
    if evaluated is not None:
        axes.axhline(evaluated, color=_INK, linewidth=1.0, linestyle="--")
        last = history[-1]["step"] if history else 1
        _label(axes, last, [(evaluated, f"evaluated: {evaluated:.4g}", _INK)])
    _write(path, figure)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    """A figure with so many panels side by side, at least one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = _SIZE[0] if panels > 1 else _SIZE[0] * 0.55
    figure = Figure(figsize=(wide, _SIZE[1]), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, max(panels, 1), squeeze=False)[0])


def _write(path: Path, figure: Any) -> None:
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white")
    files.write(path, out.getvalue())


def _meta_training(axes: Any, history: list[dict[str, Any]]) -> None:
    step = torch.tensor([row["step"] for row in history])
    reward = torch.tensor([row.get("reward", float("nan")) for row in history], dtype=torch.float64)
    color = _STYLE["trained"][1]
    axes.plot(step, reward, color=color, alpha=0.25, linewidth=1.0)
    axes.plot(step, _smoothed(reward, max(1, len(reward) // 30)), color=color, linewidth=2.0)
    _furnish(axes, "Meta-training", "meta-step", "reward per step of the agents it trains")


def _lives(axes: Any, results: dict[str, Tensor]) -> None:
    curves = {name: curve for name, curve in results.items() if name in _STYLE}
    n, updates = next(iter(curves.values())).shape
    x, ends = torch.arange(1, updates + 1), []
    for name, curve in curves.items():
        text, color = _STYLE[name]
        calm = _smoothed(curve, max(1, updates // 50))
        low, high = _band(calm)
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(x, calm.mean(0), color=color, linewidth=2.0)
        ends.append((float(calm[:, -1].mean()), text, color))
    lines = [("optimal_rate", "best possible", "--"), ("random", "random policy", ":")]
    for name, text, dashes in lines:
        if name in results:
            height = float(results[name].mean())
            axes.axhline(height, color=_INK, linewidth=1.0, linestyle=dashes)
            ends.append((height, text, _INK))
    _furnish(
        axes, f"Agents that learn from scratch, {n} held-out levels", "update", "reward per step"
    )
    _label(axes, updates, ends)


def _label(axes: Any, x: int, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of the lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, last = 0.075 * (high - low), float("-inf")
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
        )
    axes.set_xlim(0, x)
    axes.set_ylim(low, max(high, last))


def _furnish(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_xlabel(x, fontsize=10, color=_INK)
    axes.set_ylabel(y, fontsize=10, color=_INK)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_INK)


def _smoothed(curve: Tensor, width: int) -> Tensor:
    """Mean over the last ``width`` entries along the last axis, over fewer at the start."""
    total = torch.cat([torch.zeros_like(curve[..., :1]), curve.cumsum(-1)], -1)
    stop = torch.arange(1, curve.shape[-1] + 1)
    start = (stop - width).clamp(min=0)
    return (total[..., stop] - total[..., start]) / (stop - start)


def _band(curve: Tensor) -> Tensor:
    """95% bootstrap interval of the mean over levels, ``[2, U]``, of ``[n, U]``."""
    from .summary import resampling

    levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return (resampling(len(curve))[:2000] @ curve).quantile(levels, dim=0)
