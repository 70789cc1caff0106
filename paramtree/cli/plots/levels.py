"""Levels as pictures: grid worlds, tabular or with objects at random cells, and delayed chains.

A *walk* is an agent's first episode in plain numbers: where it was, what lay where, what it took.
Pictures and films are drawn from it.

Symbols: T steps of the walk, K kinds of objects (in a tabular world each object is one, else their
types are), S the side of the largest grid, g the level's own.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ... import tree
from .chains import chain_scene, draw_chain, places
from .episodes import Scene, first_episode, teller, time_colors, trail
from .style import COLORS, FAINT, GRID, INK, caption, new_figure, panels

_WALL, _START = "#555555", "#DDDDDD"
_GOLDEN = 2.4  # radians: visits to one cell spread evenly on a spiral
_NAMES = "ABCDEFGHIJKL"
_HEAD = "reward, chance to end the episode,\nchance to be back after each step"


class Walk(NamedTuple):
    """An agent's first episode on a level.

    Attributes:
        cell: where it was, int64 ``[T + 1]``; in a chain 0, then 2 t + 1 on the right one, 2 t on
            the other.
        things: bool ``[T + 1, K, S * S]``, where each kind of object lay; K is 0 in a chain.
        taken: (step, kind) of each object that it collected, steps from 1 on.
        reward: ``[T]``.
        over: whether the episode ended.
    """

    cell: Tensor
    things: Tensor
    taken: list[tuple[int, int]]
    reward: Tensor
    over: bool


def walk(level: TensorDictBase, td: TensorDictBase) -> Walk:
    """First episode of a trajectory, as a walk on its level.

    Args:
        level: a level of ``grid_level`` or ``chain_level``, of batch size ``[]``.
        td: what a worker did on it, ``[T]``, as a rollout has it.

    Returns:
        The walk.

    Raises:
        ValueError: a batch size is another, or it is no such level.
    """
    own = _entries("walk", level)
    episode = first_episode(td)
    seen = tree.entries(episode.observation)
    if "walls" not in own:
        cell = places(seen)
        nothing = torch.zeros((len(cell), 0, 0), dtype=torch.bool)
        return Walk(cell, nothing, [], episode.reward, episode.over)
    if "object_cell" in own:
        cells, k = own["walls"].shape[-1], int(own["n_objects"])
        cell, there = seen["index"] % cells, seen["index"] // cells
        there = (there.unsqueeze(-1) >> torch.arange(k)) & 1 == 1  # [T + 1, k]
        on = torch.arange(cells) == own["object_cell"][:k].unsqueeze(-1)  # [k, S * S]
        things = there.unsqueeze(-1) & on
    else:
        image = seen["image"] > 0
        cell, things = image[:, 0].int().argmax(-1), image[:, 1:]
    gone = things[:-1] & ~things[1:]  # [T, K, S * S]
    at = cell[1:, None, None].expand(-1, gone.shape[1], 1)
    taken = [(t + 1, kind) for t, kind in gone.gather(-1, at).squeeze(-1).nonzero().tolist()]
    return Walk(cell, things, taken, episode.reward, episode.over)


def draw_level(axes: Any, level: TensorDictBase, path: Walk | None = None, until: int = 0) -> None:
    """Draw a level, and an agent's way on it, colored by time.

    Round objects have a positive reward, square ones none or a negative one; a ring is around those
    that the agent took, pale where they weren't at first; the list below says what they are worth,
    how likely they end the episode when they're taken, how likely they're back after a step, and
    when they were taken. Visits to one cell lie side by side.

    Args:
        axes: a panel.
        level: a level of ``grid_level`` or ``chain_level``, of batch size ``[]``.
        path: a walk on it, which also says where objects lie that lie at random; or None.
        until: steps at which the colors end; when 0, those of the walk.

    Raises:
        ValueError: the batch size is another, or it is no such level.
    """
    own = _entries("draw_level", level)
    if "walls" not in own:
        way = None if path is None else (path.cell, path.reward)
        return draw_chain(axes, own, way, until)
    side = int(own["side"])
    size = _floor(axes, own, side)
    things = _at_first(own) if path is None else path.things[0]
    for kind in range(len(things)):
        _put(axes, own, kind, size)(things[kind], side)
    if path is not None:
        x, y = _spread(path.cell, side)
        steps = len(path.reward)
        trail(axes, x, y, until or steps)(steps)
        _ring(axes, own, path, until or steps, size)
    _list(axes, own, path, size)


def walks_figure(level: TensorDictBase, walks: Mapping[str, Walk]) -> Any:
    """Several agents' ways on one level, side by side and with the same colors.

    Args:
        level: as in ``draw_level``.
        walks: the walks, by title.

    Returns:
        The figure.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    kinds = max(path.things.shape[1] for path in walks.values())
    figure = new_figure(3.75 * len(walks) + 0.8, 4.6 + 0.22 * kinds if kinds else 4.2)
    figure.set_layout_engine("compressed")  # panels are squares
    axes = panels(figure, len(walks), len(walks))
    until = max(len(path.reward) for path in walks.values())
    for panel, (title, path) in zip(axes, walks.items(), strict=True):
        draw_level(panel, level, path, until)
        steps = len(path.reward)
        told = f"over at step {steps}" if path.over else f"the first {steps} steps"
        caption(panel, title, f"return {float(path.reward.sum()):.4g}, {told}")
    colors = ScalarMappable(Normalize(0, until), time_colors())
    bar = figure.colorbar(colors, ax=axes, shrink=0.6, aspect=25)
    bar.set_label("step of the episode", fontsize=10, color=INK)
    bar.ax.tick_params(labelsize=9, colors=INK, length=0)
    bar.outline.set_visible(False)
    return figure


def level_scene(level: TensorDictBase, path: Walk) -> Scene:
    """A walk as a scene of a film.

    Args:
        level: as in ``draw_level``.
        path: the walk.

    Returns:
        The scene.

    Raises:
        ValueError: as in ``draw_level``.
    """
    own = _entries("level_scene", level)
    if "walls" not in own:
        return chain_scene(own, path.cell, path.reward, path.over)

    def scene(axes: Any) -> Callable[[int], None]:
        side, steps = int(own["side"]), len(path.reward)
        size = _floor(axes, own, side)
        kinds = [_put(axes, own, kind, size) for kind in range(path.things.shape[1])]
        show = trail(axes, *_spread(path.cell, side), steps)
        tell = teller(axes, path.reward, path.over)

        def turn(moment: int) -> None:
            at = min(moment, steps)
            for kind, lay in enumerate(kinds):
                lay(path.things[at, kind], side)
            show(at)
            tell(at)

        return turn

    return scene


# ------------------------------------------------------------------------------------- parts


def _entries(fn: str, level: TensorDictBase) -> dict[str, Any]:
    """A level's entries on the CPU, after a look at what it is."""
    tree.require_tree(fn, "level", level)
    if level.batch_size:
        sizes = f"{list(level.batch_size)}, expected [], one level"
        raise ValueError(f"{fn}: level has batch size {sizes}")
    own = tree.entries(tree.map(lambda x: x.detach().cpu(), level))
    if "walls" not in own and not {"length", "right"} <= set(own):
        names = ", ".join(sorted(own))
        raise ValueError(f"{fn}: level has {names}, expected one of grid_level or chain_level")
    return own


def _floor(axes: Any, own: dict[str, Any], side: int) -> float:
    """Walls, cells and the start; gives points that a cell is wide, about."""
    from matplotlib.colors import ListedColormap

    walls = own["walls"][: side * side].int()
    start = int(own["start"])
    walls[start] = 2
    colors = ListedColormap(["white", _WALL, _START])
    axes.imshow(walls.reshape(side, side).numpy(), cmap=colors, vmin=0, vmax=2, zorder=0)
    for edge in range(1, side):
        axes.axhline(edge - 0.5, color=GRID, linewidth=0.8, zorder=1)
        axes.axvline(edge - 0.5, color=GRID, linewidth=0.8, zorder=1)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
    for spine in axes.spines.values():
        spine.set_color(_WALL)
    box, dpi = axes.get_window_extent(), axes.figure.dpi
    size = min(box.width, box.height) * 72 / dpi / side
    corner = {"ha": "left", "va": "top", "fontsize": min(9, 0.4 * size), "color": INK}
    axes.text(start % side - 0.44, start // side - 0.42, "S", zorder=1.5, **corner)
    return size


def _kinds(own: dict[str, Any]) -> list[list[int]]:
    """Numbers of the objects of each kind."""
    count = int(own["n_objects"])
    if "object_cell" in own:
        return [[j] for j in range(count)]
    types = own["object_type"][:count].tolist()
    return [[j for j in range(count) if types[j] == kind] for kind in range(1 + max(types))]


def _at_first(own: dict[str, Any]) -> Tensor:
    """Where objects lie that lie where they always do, ``[K, S * S]``; else nowhere."""
    cells, kinds = own["walls"].shape[-1], len(_kinds(own))
    if "object_cell" not in own:
        return torch.zeros((kinds, cells), dtype=torch.bool)
    return torch.arange(cells) == own["object_cell"][:kinds].unsqueeze(-1)


def _look(own: dict[str, Any], kind: int, size: float) -> dict[str, Any]:
    """Shape and color of a kind of object."""
    good = any(float(own["reward"][j]) > 0 for j in _kinds(own)[kind])
    wide = min(20.0, 0.62 * size)
    shape = {"marker": "o", "color": COLORS[0]} if good else {"marker": "s", "color": COLORS[1]}
    return {**shape, "markersize": wide if good else 0.88 * wide, "linestyle": "none"}


def _letter(kind: int, look: dict[str, Any]) -> dict[str, Any]:
    """A kind's name, in the middle of its shape."""
    text = {"marker": rf"$\mathrm{{{_NAMES[kind]}}}$", "color": "white", "linestyle": "none"}
    return {**text, "markersize": 0.5 * look["markersize"], "markeredgewidth": 0.3}


def _put(axes: Any, own: dict[str, Any], kind: int, size: float) -> Callable[[Tensor, int], None]:
    """A kind of object with its letter; what it gives lays them on the cells ``[S * S]``."""
    look = _look(own, kind, size)
    (shape,) = axes.plot([], [], zorder=3, **look)
    (name,) = axes.plot([], [], zorder=4, **_letter(kind, look))

    def lay(on: Tensor, side: int) -> None:
        cells = on.nonzero().flatten()
        for line in (shape, name):
            line.set_data(cells % side, cells // side)

    return lay


def _ring(axes: Any, own: dict[str, Any], path: Walk, until: int, size: float) -> None:
    """Rings around what was taken, in the color of the first time; pale what came later."""
    colors, found = time_colors(), {}
    for step, kind in path.taken:
        found.setdefault((int(path.cell[step]), kind), step)
    side = int(own["side"])
    for (cell, kind), step in found.items():
        x, y = cell % side, cell // side
        look = _look(own, kind, size)
        if not path.things[0, kind, cell]:
            axes.plot([x], [y], zorder=3, **{**look, "alpha": 0.45})
            axes.plot([x], [y], zorder=4, **_letter(kind, look))
        ring = {**look, "markersize": 1.35 * look["markersize"], "markerfacecolor": "none"}
        edge = {"markeredgecolor": colors(step / until), "markeredgewidth": 2.2}
        axes.plot([x], [y], zorder=3.5, **{**ring, **edge})


def _spread(cell: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Points ``[T + 1]`` in the cells: the first visit's in the middle, later ones' around it."""
    visits: dict[int, int] = {}
    turns = torch.zeros(len(cell), dtype=torch.float64)
    for t, number in enumerate(cell.tolist()):
        if t and number == int(cell[t - 1]):
            turns[t] = turns[t - 1]  # it stays where it is
            continue
        turns[t] = visits.get(number, 0)
        visits[number] = visits.get(number, 0) + 1
    away = 0.36 * (turns / (turns + 3)).sqrt()
    x, y = cell % side, cell // side
    return x + away * (_GOLDEN * turns).cos(), y + away * (_GOLDEN * turns).sin()


def _list(axes: Any, own: dict[str, Any], path: Walk | None, size: float) -> None:
    """What each kind is, below the panel."""
    from matplotlib.lines import Line2D

    handles, texts = [], []
    for kind, objects in enumerate(_kinds(own)):
        if not objects:
            continue
        look = {**_look(own, kind, size), "markersize": 11}
        handles.append((Line2D([], [], **look), Line2D([], [], **_letter(kind, look))))
        texts.append(_told(own, objects))
        if path is not None:
            texts[-1] += _when([step for step, one in path.taken if one == kind])
        elif "object_cell" not in own:
            texts[-1] += ", anywhere"
    place = {"loc": "upper left", "bbox_to_anchor": (-0.03, 0.0), "frameon": False}
    small = {"fontsize": 9, "labelcolor": INK, "handletextpad": 0.2, "labelspacing": 0.4}
    head = {"title": _HEAD, "title_fontsize": 9, "alignment": "left"}
    axes.legend(handles, texts, **place, **small, **head).get_title().set_color(FAINT)


def _told(own: dict[str, Any], objects: list[int]) -> str:
    """Number, reward, and chances of some objects."""

    def values(name: str, form: str, times: float = 1.0) -> str:
        return "/".join(dict.fromkeys(format(times * float(own[name][j]), form) for j in objects))

    count = f"{len(objects)} \u00d7 " if len(objects) > 1 else ""
    chances = [f"{values(name, '.3g', 100.0)}%" for name in ("p_terminate", "p_respawn")]
    return f"{count}{values('reward', '+.2g')}, {', '.join(chances)}"


def _when(steps: list[int]) -> str:
    if not steps:
        return ", not taken"
    if len(steps) < 4:
        return f", taken at {', '.join(map(str, steps))}"
    return f", taken {len(steps)}\u00d7 from {steps[0]} on"
