"""Delayed chains as pictures: time from left to right, the right chain above the other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .episodes import Scene, teller, trail
from .style import COLORS, FAINT, INK

_ROW, _BASE, _TALL = 0.5, -1.35, 0.3  # of the chains, and of the rewards below them


def places(seen: dict[str, Any]) -> Tensor:
    """Where an agent is on a chain, from what it sees.

    Args:
        seen: ``time`` ``[T + 1]``, and ``index`` or ``image``.

    Returns:
        int64 ``[T + 1]``: 0, then 2 t + 1 on the right chain and 2 t on the other.
    """
    time = seen["time"]
    if "index" in seen:
        return torch.where(time > 0, seen["index"], 0)
    return 2 * time + (seen["image"][:, 1] > 0)


def draw_chain(
    axes: Any, own: dict[str, Any], way: tuple[Tensor, Tensor] | None, until: int = 0
) -> None:
    """Draw a chain, and an agent's way on it with the rewards below.

    Args:
        axes: a panel.
        own: a level's entries.
        way: places ``[T + 1]`` and rewards ``[T]``; or None.
        until: steps at which the colors end; when 0, all of these.
    """
    _stage(axes, own)
    axes.set_xlabel("step", fontsize=10, color=INK)
    if way is None:
        return
    steps = len(way[1])
    trail(axes, *_points(way[0]), until or steps)(steps)
    _stems(axes, own, way[1])(steps)


def chain_scene(own: dict[str, Any], place: Tensor, reward: Tensor, over: bool) -> Scene:
    """A walk on a chain as a scene of a film.

    Args:
        own: a level's entries.
        place: ``[T + 1]``.
        reward: ``[T]``.
        over: whether the episode ends after T steps.

    Returns:
        The scene.
    """

    def scene(axes: Any) -> Callable[[int], None]:
        _stage(axes, own)
        steps = len(reward)
        show, rise = trail(axes, *_points(place), steps), _stems(axes, own, reward)
        tell = teller(axes, reward, over)

        def turn(moment: int) -> None:
            at = min(moment, steps)
            show(at)
            rise(at)
            tell(at)

        return turn

    return scene


def _stage(axes: Any, own: dict[str, Any]) -> None:
    length, right, last = int(own["length"]), int(own["right"]), float(own["reward"])
    time, flat = torch.arange(1, length + 1), torch.ones(length)
    for row, color in ((_ROW, COLORS[0]), (-_ROW, COLORS[1])):
        line = {"color": color, "linewidth": 1.0, "alpha": 0.5, "zorder": 1}
        axes.plot([0, *time.tolist()], [0, *(row * flat).tolist()], **line)
        dots = {"markersize": 5, "markeredgecolor": color, "markerfacecolor": "white"}
        axes.plot(time[:-1], row * flat[:-1], "o", zorder=1.5, **dots)
        shape, sign = ("o", 1) if row > 0 else ("s", -1)
        axes.plot([length], [row], shape, color=color, markersize=11, zorder=3)
        beside = {"xytext": (0, 9 * sign), "textcoords": "offset points", "ha": "center"}
        beside |= {"va": "bottom" if row > 0 else "top", "fontsize": 10, "color": color}
        axes.annotate(f"{sign * last:+.3g}", (length, row), **beside)
        action = right if row > 0 else 1 - right
        first = "the action that is shown" if row > 0 else "the other action"
        text = first if right < 0 else f"action {action}"
        place = {"ha": "left", "va": "bottom" if row > 0 else "top", "fontsize": 10}
        axes.text(1, row + 0.13 * sign, text, color=color, **place)
    axes.text(0, 0.1, "S", ha="center", va="bottom", fontsize=10, color=INK)
    axes.set(xlim=(-0.06 * length - 0.2, 1.06 * length + 0.2), ylim=(-1.8, 0.95), yticks=[])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK, length=2)


def _stems(axes: Any, own: dict[str, Any], reward: Tensor) -> Callable[[int], None]:
    """Rewards as bars below the chains; what it gives shows so many."""
    from matplotlib.collections import LineCollection

    largest = max(float(own["reward"]), float(own["noise"]), 1e-9)
    axes.axhline(_BASE, color=FAINT, linewidth=0.8)
    label = {"ha": "left", "va": "bottom", "fontsize": 9, "color": FAINT}
    axes.text(0.0, _BASE + _TALL + 0.02, "rewards", **label)
    heights = [_BASE + _TALL * x / largest for x in reward.tolist()]
    bars = [[(t, _BASE), (t, height)] for t, height in enumerate(heights, 1)]
    colors = [COLORS[0] if x > 0 else COLORS[1] for x in reward.tolist()]
    stems = axes.add_collection(LineCollection([], linewidths=3.0))

    def rise(moment: int) -> None:
        stems.set_segments(bars[:moment])
        stems.set_color(colors[:moment] or "none")

    return rise


def _points(place: Tensor) -> tuple[Tensor, Tensor]:
    time = torch.arange(len(place))
    row = torch.where(place % 2 == 1, _ROW, -_ROW)
    return time, row.masked_fill(time == 0, 0.0)
