"""Learning curves of several runs: those that differ in nothing but their seed are one group."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .curves import count_by_thousands, draw_band, draw_lives
from .intervals import over_seeds, smoothed
from .style import COLORS, INK, furnish, new_figure, panels

_DASHES = ("-", "--", ":", "-.")  # of one color after the other


class Group(NamedTuple):
    """Runs that differ in their seeds.

    Attributes:
        label: what is theirs alone.
        step: ``[K]``, the steps that all of them have.
        curves: ``[R, K]``, a metric of each run.
        lives: what agents earn that learn from scratch after it, by name a tensor ``[n, U]`` or
            ``[n]`` for each run that was evaluated; or nothing.
    """

    label: str
    step: Tensor
    curves: Tensor
    lives: dict[str, list[Tensor]]


def groups_figure(groups: Sequence[Group], title: str, x: str, y: str) -> Any:
    """A metric over training, with 95% intervals over seeds; and, where runs have it, over a life.

    Thin lines are runs, a thick one is their mean. In the second panel one group has all rules that
    were compared, several have their trained ones.

    Args:
        groups: the groups, at least one.
        title: of the metric's panel.
        x: what steps are called.
        y: what the metric is.

    Returns:
        The figure.
    """
    lives = {group.label: group.lives["trained"] for group in groups if "trained" in group.lives}
    if len(groups) == 1:
        lives = groups[0].lives
    count = 1 + bool(lives)
    rows = -(-len(groups) // count) if len(groups) > 1 else 0
    figure = new_figure(9.0 if lives else 5.6, 3.8 + 0.22 * rows)
    first, *others = panels(figure, count, count)
    width = max(1, max(len(group.step) for group in groups) // 30)
    styles = {group.label: style(k) for k, group in enumerate(groups)}
    for group in groups:
        color, dashes = styles[group.label]
        calm = smoothed(group.curves.double(), width)
        if len(calm) > 1:
            for curve in calm:
                first.plot(group.step, curve, color=color, linewidth=0.7, alpha=0.45)
        text = f"{group.label} ({_seeds(len(calm))})"
        band = over_seeds(calm)
        draw_band(first, group.step, band, color, label=text, linestyle=dashes)
    furnish(first, title, x, y, _note([len(group.curves) for group in groups], width))
    count_by_thousands(first)
    if lives:
        draw_lives(others[0], lives, styles if len(groups) > 1 else None)
    if len(groups) > 1:
        entries = {"loc": "outside lower left", "ncols": count, "fontsize": 9, "labelcolor": INK}
        figure.legend(*first.get_legend_handles_labels(), frameon=False, **entries)
    return figure


def style(k: int) -> tuple[str, str]:
    """Color and dashes of the k-th line; none comes twice among the first 28."""
    return COLORS[k % len(COLORS)], _DASHES[k // len(COLORS) % len(_DASHES)]


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _note(sizes: list[int], width: int) -> str:
    note = "one seed, no interval"
    if max(sizes) > 1:
        many = f"of {sizes[0]} seeds" if len(sizes) == 1 else "over seeds"
        note = f"thick: mean {many}, with its 95% interval (Student's t)"
    return note + (f"\neach run smoothed over {width} steps" if width > 1 else "")
