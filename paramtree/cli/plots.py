"""Pictures of a run; matplotlib is loaded here and in ``pictures`` alone.

Without a display, and without matplotlib's global state.
"""

import io
import itertools
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
    "ppo": ("PPO", "#009E73"),
    "dpo": ("DPO", "#CC79A7"),
    "reinforce": ("REINFORCE", "#E69F00"),
    "vtrace": ("V-trace", "#56B4E9"),
    "q_lambda": ("Q(lambda)", "#8C6D00"),
    "sarsa_lambda": ("SARSA(lambda)", "#5B3A8C"),
}
_OTHERS = ("#004D7A", "#7FB8DA", "#00303F")  # other learned rules
_INK, _GRID = "#333333", "#E6E6E6"
_LONGEST = 24  # letters of a name beside a line
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
        draw_lives(axes.pop(0), results)
    for empty in axes:
        furnish(empty, "no steps yet", "meta-step", "")
    write(path, figure)


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
        calm = smoothed(returns, max(1, len(returns) // 20))
        last = torch.cat([step.diff() > 0, torch.tensor([True])])  # of the episodes at each step
        axes.plot(step[last], calm[last], color=color, linewidth=2.0)
    furnish(axes, title if history else "no steps yet", "step", "return of an episode")
    if evaluated is not None:
        axes.axhline(evaluated, color=_INK, linewidth=1.0, linestyle="--")
        last = history[-1]["step"] if history else 1
        _label(axes, last, [(evaluated, f"evaluated: {evaluated:.4g}", _INK)])
    write(path, figure)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    """A figure with so many panels side by side, at least one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = _SIZE[0] if panels > 1 else _SIZE[0] * 0.55
    figure = Figure(figsize=(wide, _SIZE[1]), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, max(panels, 1), squeeze=False)[0])


def write(path: Path, figure: Any) -> None:
    """Write a figure as a png, whole or not at all.

    Args:
        path: where.
        figure: the figure.
    """
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white")
    files.write(path, out.getvalue())


def _meta_training(axes: Any, history: list[dict[str, Any]]) -> None:
    step = torch.tensor([row["step"] for row in history])
    reward = torch.tensor([row.get("reward", float("nan")) for row in history], dtype=torch.float64)
    color = _STYLE["trained"][1]
    axes.plot(step, reward, color=color, alpha=0.25, linewidth=1.0)
    axes.plot(step, smoothed(reward, max(1, len(reward) // 30)), color=color, linewidth=2.0)
    furnish(axes, "Meta-training", "meta-step", "reward per step of the agents it trains")


def draw_lives(axes: Any, results: dict[str, Tensor]) -> None:
    """Draw what agents earn that learn from scratch.

    Args:
        axes: a panel.
        results: as in ``draw``, not empty.
    """
    curves = {name: x for name, x in results.items() if x.ndim == 2 and name != "random"}
    others = [name for name in curves if name not in _STYLE]
    colors = zip(others, itertools.cycle(_OTHERS), strict=False)
    style = {**_STYLE, **{name: (_short(name), color) for name, color in colors}}
    n = len(next(iter(results.values())))
    updates = max([x.shape[1] for x in results.values() if x.ndim == 2], default=1)
    x, ends = torch.arange(1, updates + 1), []
    for name, curve in curves.items():
        text, color = style[name]
        calm = smoothed(curve, max(1, updates // 50))
        low, high = _band(calm)
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        above = 2.5 if name == "trained" else 2.0  # where it hasn't changed, it hides the untrained
        axes.plot(x, calm.mean(0), color=color, linewidth=2.0, zorder=above)
        ends.append((float(calm[:, -1].mean()), text, color))
    lines = [("optimal_rate", "best possible", "--"), ("random", "random policy", ":")]
    for name, text, dashes in lines:
        if name in results:
            height = float(results[name].mean())
            axes.axhline(height, color=_INK, linewidth=1.0, linestyle=dashes)
            ends.append((height, text, _INK))
    furnish(
        axes, f"Agents that learn from scratch, {n} held-out levels", "update", "reward per step"
    )
    _label(axes, updates, ends)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else "..." + name[3 - _LONGEST :]


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
            parse_math=False,  # names of folders are among them
        )
    axes.set_xlim(0, x)
    axes.set_ylim(low, max(high, last))


def furnish(axes: Any, title: str, x: str, y: str) -> None:
    """Give a panel its texts and its looks.

    Args:
        axes: the panel.
        title: above it.
        x: below it.
        y: beside it.
    """
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_xlabel(x, fontsize=10, color=_INK)
    axes.set_ylabel(y, fontsize=10, color=_INK)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_INK)


def smoothed(curve: Tensor, width: int) -> Tensor:
    """Mean over the last ``width`` entries along the last axis, over fewer at the start.

    Args:
        curve: ``[*, U]``.
        width: how many.

    Returns:
        ``[*, U]``.
    """
    total = torch.cat([torch.zeros_like(curve[..., :1]), curve.cumsum(-1)], -1)
    stop = torch.arange(1, curve.shape[-1] + 1)
    start = (stop - width).clamp(min=0)
    return (total[..., stop] - total[..., start]) / (stop - start)


def _band(curve: Tensor) -> Tensor:
    """95% bootstrap interval of the mean over levels, ``[2, U]``, of ``[n, U]``."""
    from .summary import resampling

    levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return (resampling(len(curve))[:2000] @ curve).quantile(levels, dim=0)
