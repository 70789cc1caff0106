"""What happens in an episode, and films of it: agents side by side, a picture a moment.

A *scene* draws in a panel what stays, and gives back what draws a moment in it, by the number of
steps so far. So a film is made of any scenes, and costs a picture a moment.

Symbols: T steps of the episode.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ... import tree
from .style import INK, new_figure, panels

Scene = Callable[[Any], Callable[[int], None]]  # panel -> (steps so far -> None)

_HIGH, _WIDE, _DPI = 3.6, 3.3, 80
_SHADES = 64  # colors of a gif: enough for edges of lines and texts
_HELD = 1500  # milliseconds that the last moment stays


class Episode(NamedTuple):
    """The start of a trajectory up to its first end.

    Attributes:
        observation: a tensor ``[T + 1, ...]`` or a tree of batch size ``[T + 1]``, with the last
            one of the episode, from before a reset.
        action: ``[T, ...]``.
        reward: ``[T]``.
        over: whether the episode ended.
    """

    observation: Any
    action: Tensor
    reward: Tensor
    over: bool


def first_episode(td: TensorDictBase) -> Episode:
    """First episode of a trajectory, as far as it goes.

    Args:
        td: what a worker did, ``[T]``, as a rollout has it.

    Returns:
        The episode.

    Raises:
        ValueError: the trajectory has another batch size.
    """
    if len(td.batch_size) != 1:
        sizes = f"{list(td.batch_size)}, expected [T], one worker's steps"
        raise ValueError(f"first_episode: td has batch size {sizes}")
    done = td["next", "done"].reshape(-1).cpu()
    over = bool(done.any())
    length = int(done.int().argmax()) + 1 if over else len(done)

    def joined(before: Any, after: Any) -> Any:
        if isinstance(before, Tensor):
            return torch.cat([before[:length], after[length - 1 : length]]).cpu()
        parts = {str(n): joined(before.get(n), after.get(n)) for n in before.keys()}
        return tree.new(parts, (length + 1,))

    reward = td["next", "reward"].reshape(-1)[:length].cpu()
    seen = joined(td.get("observation"), td.get(("next", "observation")))
    return Episode(seen, td["action"][:length].cpu(), reward, over)


def moments(lengths: Sequence[int], most: int = 100) -> list[int]:
    """Moments that a film shows: all, or so many at equal distances and the last.

    Args:
        lengths: steps of the episodes that are shown side by side.
        most: how many moments at most, beside the first.

    Returns:
        Numbers of steps, from 0 on.
    """
    last = max(lengths)
    stride = max(1, -(-last // most))
    return [*range(0, last, stride), last]


def film(scenes: Mapping[str, Scene], moments: Sequence[int], *, pause: int = 120) -> bytes:
    """Scenes side by side as an animated gif.

    Args:
        scenes: by title.
        moments: the numbers of steps so far that are shown, one after the other.
        pause: milliseconds between two of them.

    Returns:
        The file's bytes, the same each time.
    """
    from PIL import Image

    figure = new_figure(_WIDE * len(scenes), _HIGH, _DPI)
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.06)
    axes, turns = panels(figure, len(scenes), len(scenes)), []
    for panel, (title, scene) in zip(axes, scenes.items(), strict=True):
        turns.append(scene(panel))
        panel.set_title(title, fontsize=10, color=INK, parse_math=False)
    pictures = []
    for k, moment in enumerate(moments):
        for turn in turns:
            turn(moment)
        figure.canvas.draw()
        if k == 0:
            figure.set_layout_engine("none")  # nothing moves from now on
        size = figure.canvas.get_width_height()
        pictures.append(Image.frombytes("RGBA", size, bytes(figure.canvas.buffer_rgba())))
    colors = _palette(pictures)
    frames = [x.convert("RGB").quantize(palette=colors, dither=Image.Dither.NONE) for x in pictures]
    out, pauses = io.BytesIO(), [pause] * (len(frames) - 1) + [_HELD]
    options = {"format": "GIF", "save_all": True, "loop": 0, "optimize": False}
    frames[0].save(out, append_images=frames[1:], duration=pauses, **options)
    return out.getvalue()


def teller(axes: Any, reward: Tensor, over: bool) -> Callable[[int], None]:
    """What writes below a panel how far an episode is, and what it has brought.

    Args:
        axes: the panel.
        reward: ``[T]``.
        over: whether the episode ends after T steps.

    Returns:
        ``tell(moment)``.
    """
    line = axes.set_xlabel(" ", fontsize=10, color=INK)
    earned, end = [0.0, *reward.double().cumsum(0).tolist()], len(reward)

    def tell(moment: int) -> None:
        at = min(moment, end)
        text = f"over at step {at}" if over and at == end else f"step {at}"
        line.set_text(f"{text}, return {earned[at]:.4g}")

    return tell


def trail(axes: Any, x: Tensor, y: Tensor, until: int) -> Callable[[int], None]:
    """A way that is colored by time, with a dot at its end.

    Args:
        axes: a panel.
        x: ``[T + 1]``, where it leads.
        y: ``[T + 1]``.
        until: the number of steps at which the colors end.

    Returns:
        ``show(moment)``, which draws it up to that many steps.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    points = torch.stack([x, y], -1).double()
    pieces = torch.stack([points[:-1], points[1:]], 1).numpy()  # [T, 2, 2]
    options = {"norm": Normalize(0, max(until, 1)), "capstyle": "round", "linewidths": 2.2}
    way = axes.add_collection(LineCollection([], cmap=time_colors(), zorder=2, **options))
    dot = {"markersize": 7, "markeredgecolor": "white", "zorder": 2.5}  # below objects
    (end,) = axes.plot([], [], "o", color=INK, **dot)

    def show(moment: int) -> None:
        at = min(moment, len(pieces))
        way.set_segments(list(pieces[:at]))
        way.set_array(torch.arange(1, at + 1).numpy())
        end.set_data([points[at, 0]], [points[at, 1]])

    return show


def time_colors() -> Any:
    """Colors of the steps of an episode, without those that are too light for a white floor."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](torch.linspace(0, 0.88, 256).numpy()))


def _palette(pictures: list[Any]) -> Any:
    """One palette for all pictures, so that nothing flickers, made of three of them."""
    from PIL import Image

    some = [pictures[0], pictures[len(pictures) // 2], pictures[-1]]
    width, height = some[0].size
    sheet = Image.new("RGB", (width, height * len(some)), "white")
    for k, picture in enumerate(some):
        sheet.paste(picture.convert("RGB"), (0, height * k))
    sheet = sheet.quantize(colors=_SHADES, dither=Image.Dither.NONE)
    near = sheet.getpalette() or []
    rows = [near[i : i + 3] for i in range(0, len(near), 3)]
    sheet.putpalette([x for row in rows for x in ([255] * 3 if min(row) > 248 else row)])
    return sheet  # in which white is white, not a mean of light colors
