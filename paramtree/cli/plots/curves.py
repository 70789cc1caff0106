"""Learning curves of one run: of its training, and of agents that learn from scratch after it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..summary import titled
from .intervals import Band, over_levels, over_seeds, smoothed
from .style import COLORS, INK, furnish, label_ends, new_figure, panels

_COLORS = {
    "trained": COLORS[0],
    "a2c": COLORS[1],
    "untrained": COLORS[6],
    "ppo": COLORS[2],
    "dpo": COLORS[3],
    "reinforce": COLORS[4],
    "vtrace": COLORS[5],
    "q_lambda": "#8C6D00",
    "sarsa_lambda": "#5B3A8C",
}
_OTHERS = ("#004D7A", "#7FB8DA", "#00303F")  # other learned rules
_FLAT = {"optimal_rate": "--", "random": ":"}  # who doesn't learn
_LONGEST = 24  # letters of a name beside a line
_WIDE, _HIGH = 9.0, 3.8


def lpg_figure(history: list[dict[str, Any]], results: Mapping[str, Tensor]) -> Any:
    """How a rule was trained, and what the agents that it trains learn.

    Args:
        history: metrics of the meta-training by step, ``step`` and ``reward`` among them; or none.
        results: rewards by name, ``[n, U]`` or ``[n]``, from ``evaluation.contest``; or none.

    Returns:
        The figure, of a panel for each of the two that is there.
    """
    count = max(1, bool(history) + bool(results))
    figure = new_figure(_WIDE if count > 1 else 0.55 * _WIDE, _HIGH)
    axes = panels(figure, count, count)
    if history:
        told = "reward per step of the agents it trains"
        draw_metric(axes.pop(0), history, "reward", "Meta-training", "meta-step", told)
    if results:
        draw_lives(axes.pop(0), {name: [x] for name, x in results.items()})
    for empty in axes:
        furnish(empty, "no steps yet", "meta-step", "")
    return figure


def returns_figure(title: str, history: list[dict[str, Any]], evaluated: float | None) -> Any:
    """Returns of the episodes that an agent was trained in.

    Args:
        title: what it was trained for.
        history: metrics of the training, ``step`` and a list ``returns`` among them; or none.
        evaluated: mean return after the last step, if there was an evaluation.

    Returns:
        The figure.
    """
    figure = new_figure(0.55 * _WIDE, _HIGH)
    (axes,) = panels(figure, 1, 1)
    ended = [(row["step"], x) for row in history for x in row.get("returns", [])]
    note = ""
    if ended:
        step, returns = torch.tensor(ended, dtype=torch.float64).unbind(1)
        width, color = max(1, len(returns) // 20), COLORS[0]
        small = {"markersize": 4, "markeredgewidth": 0, "clip_on": False}
        axes.plot(step, returns, ".", color=color, alpha=0.3, **small)
        calm = smoothed(returns, width)
        last = torch.cat([step.diff() > 0, torch.tensor([True])])  # of the episodes at each step
        axes.plot(step[last], calm[last], color=color, linewidth=2.0, clip_on=False)
        note = "dots: episodes" + (f"; line: mean of the last {width}" if width > 1 else "")
    furnish(
        axes,
        title if history else "no steps yet",
        "environment steps",
        "return of an episode",
        note,
    )
    end = history[-1]["step"] if history else 1
    axes.set_xlim(0, end)
    count_by_thousands(axes)
    if evaluated is not None:
        axes.axhline(evaluated, color=INK, linewidth=1.0, linestyle="--")
        label_ends(axes, end, [(evaluated, f"evaluated: {evaluated:.4g}", INK)])
    return figure


def hyper_figure(
    title: str,
    history: list[dict[str, Any]],
    learned: Mapping[str, float | None],
    evaluated: float | None,
) -> Any:
    """How an agent fared, and what became of the hyper-parameters that it learned meanwhile.

    Args:
        title: what it was trained for.
        history: metrics of the training by step, with a number or a list for each hyper-parameter;
            or none.
        learned: their names, each with the number that the judge of the agent has for it, or None.
        evaluated: mean return after the last step, if there was an evaluation.

    Returns:
        The figure.
    """
    count = 1 + len(learned)
    figure = new_figure(0.5 * _WIDE * max(count, 1.1), _HIGH)
    first, *others = panels(figure, count, count)
    score = "return" if any(row.get("episodes", 0) for row in history) else "reward"
    told = {"return": "return of an episode", "reward": "reward per step"}[score]
    draw_metric(first, history, score, title if history else "no steps yet", "meta-step", told)
    if evaluated is not None:
        first.axhline(evaluated, color=INK, linewidth=1.0, linestyle="--")
        end = history[-1]["step"] if history else 1
        label_ends(first, end, [(evaluated, f"evaluated:\n{evaluated:.4g}", INK)])
    step = torch.tensor([row["step"] for row in history])
    for (name, reference), panel in zip(learned.items(), others, strict=True):
        rows = [row[name] if isinstance(row[name], list) else [row[name]] for row in history]
        size = len(rows[0]) if rows else 0
        for k in range(size):
            shade = COLORS[0] if size == 1 else _shade(k / (size - 1))
            panel.plot(step, [row[k] for row in rows], color=shade, linewidth=2.0)
        notes = [f"one for each of {size} updates, the first is dark"] if size > 1 else []
        if reference is not None:
            panel.axhline(reference, color=INK, linewidth=1.0, linestyle=":")
            notes.append(f"dotted: what the agent is judged by, {reference:g}")
        furnish(panel, name, "meta-step", name, "\n".join(notes))
    return figure


def metrics_figure(history: list[dict[str, Any]], results: Mapping[str, Tensor]) -> Any:
    """All metrics of a meta-training, and the agents that learned from scratch after it.

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
    heights = [2.5 * -(-len(names) // 3)] * bool(names) + [3.4] * bool(results)
    figure = new_figure(12.0, sum(heights), 120)
    parts = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    for panel, name in zip(panels(parts[0], len(names), 3), names, strict=True):
        draw_metric(panel, history, name, name, "meta-step", "")
    if results:
        (panel,) = panels(parts[-1], 1, 1)
        draw_lives(panel, {name: [curve.double().cpu()] for name, curve in results.items()})
    return figure


def draw_metric(
    axes: Any, history: list[dict[str, Any]], name: str, title: str, x: str, y: str
) -> None:
    """Draw a metric as it was at each step, and smoothed.

    Args:
        axes: a panel.
        history: metrics by step.
        name: the metric's; steps without it, or where it isn't a number, are left out.
        title: above the panel.
        x: what steps are called.
        y: what it is.
    """
    found = [(row["step"], row[name]) for row in history if _is_number(row.get(name))]
    width, note = max(1, len(found) // 30), "at each step" if found else ""
    if found:
        step, curve = torch.tensor(found, dtype=torch.float64).unbind(1)
        if width > 1:
            axes.plot(step, curve, color=COLORS[0], alpha=0.3, linewidth=1.0)
            note = f"thick: mean of the last {width} steps"
        axes.plot(step, smoothed(curve, width), color=COLORS[0], linewidth=2.0)
    furnish(axes, title, x, y, note)


def draw_lives(
    axes: Any,
    results: Mapping[str, Sequence[Tensor]],
    styles: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Draw what agents earn that learn from scratch, with 95% intervals.

    Where someone was looked at under several seeds, intervals are over seeds, of the means over
    levels; else over levels.

    Args:
        axes: a panel.
        results: by name the rewards of each seed, ``[n, U]``, or ``[n]`` of who doesn't learn; not
            empty.
        styles: colors and dashes by name, where a legend tells them; None for names beside lines.
    """
    curves = {n: x for n, x in results.items() if x[0].ndim == 2 and n not in _FLAT}
    others = [name for name in curves if name not in _COLORS]
    colors = {**_COLORS, **dict(zip(others, itertools.cycle(_OTHERS), strict=False))}
    own = {name: (color, "-") for name, color in colors.items()} if styles is None else styles
    updates = min([x.shape[1] for xs in results.values() for x in xs if x.ndim == 2], default=1)
    width, ends = max(1, updates // 50), []
    sizes = {len(xs) for xs in results.values()}
    seeds = max(sizes)
    for name, runs in curves.items():
        calm = [smoothed(x.double()[:, :updates], width) for x in runs]
        band = over_seeds(torch.stack([x.mean(0) for x in calm]))
        band = over_levels(calm[0]) if seeds == 1 else band
        above = 2.5 if name == "trained" else 2.0  # where it hasn't changed, it hides the untrained
        color, dashes = own[name]
        x = torch.arange(1, updates + 1)
        draw_band(axes, x, band, color, linestyle=dashes, zorder=above)
        ends.append((float(band.mean[-1]), _short(titled(name)), color))
    for name, dashes in _FLAT.items():
        if name in results:
            height = math.fsum(float(x.mean()) for x in results[name]) / len(results[name])
            axes.axhline(height, color=INK, linewidth=1.0, linestyle=dashes)
            ends.append((height, titled(name), INK))
    levels = "/".join(str(n) for n in sorted({len(x) for xs in results.values() for x in xs}))
    title = f"Agents that learn from scratch, {levels} held-out levels"
    sort = f"{seeds} seeds" if len(sizes) == 1 else "seeds"
    sort = "levels" if seeds == 1 else sort
    note = "one level, no interval" if (seeds, levels) == (1, "1") else ""
    note = note or f"mean with 95% interval over {sort}"
    note += f"; smoothed over {width} updates" if width > 1 else ""
    furnish(axes, title, "update", "reward per step", note)
    label_ends(axes, updates, ends if styles is None else [])


def draw_band(
    axes: Any,
    x: Tensor,
    band: Band,
    color: str,
    *,
    label: str = "",
    linestyle: str = "-",
    zorder: float = 2.0,
) -> None:
    """Draw a mean curve, and its interval as a band where there is one.

    Args:
        axes: a panel.
        x: where the points are, ``[U]``.
        band: the curve.
        color: its color.
        label: what a legend calls it; nothing when empty.
        linestyle: its dashes.
        zorder: what lies above what.
    """
    if band.low is not None:
        axes.fill_between(x, band.low, band.high, color=color, alpha=0.18, linewidth=0)
    line = {"linestyle": linestyle, "label": label or "_nolegend_", "zorder": zorder}
    axes.plot(x, band.mean, color=color, linewidth=2.0, **line)


def count_by_thousands(axes: Any) -> None:
    """Write large numbers below a panel as in 20,000, and few of them."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else "..." + name[3 - _LONGEST :]


def _shade(share: float) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.85 * share)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
