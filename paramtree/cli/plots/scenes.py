"""Scenes of classic control, drawn from what an agent observes.

Sources: the sizes are those of Gymnasium's CartPole-v1 and Pendulum-v1.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .episodes import Episode, Scene, teller
from .style import COLORS, FAINT, INK

_FAR, _TILT = 2.4, math.radians(12)  # where CartPole's episodes end


def cart_pole_scene(episode: Episode) -> Scene:
    """Cart, pole, and the bounds of the cart.

    Args:
        episode: observations ``[T + 1, 4]``: place, speed, angle from upright, angular speed.

    Returns:
        The scene.
    """

    def scene(axes: Any) -> Callable[[int], None]:
        from matplotlib.patches import Rectangle

        _stage(axes, (-3.0, 3.0), (-1.6, 3.6))
        axes.plot([-3, 3], [0, 0], color=INK, linewidth=1.0)
        for x in (-_FAR, _FAR):
            axes.plot([x, x], [-0.25, 0.25], color=FAINT, linewidth=1.0, linestyle=":")
        cart = Rectangle((0, 0), 0.9, 0.5, facecolor=INK)
        axes.add_patch(cart)
        (pole,) = axes.plot([], [], color=COLORS[1], linewidth=6.0, solid_capstyle="round")
        (hinge,) = axes.plot([], [], "o", color=COLORS[5], markersize=6)
        told = teller(axes, episode.reward, episode.over)

        def turn(moment: int) -> None:
            place, _, angle, _ = _at(episode, moment).tolist()
            cart.set_xy((place - 0.45, -0.25))
            tip = (place + 2 * math.sin(angle), 0.25 + 2 * math.cos(angle))
            pole.set_data([place, tip[0]], [0.25, tip[1]])
            hinge.set_data([place], [0.25])
            told(moment)

        return turn

    return scene


def pendulum_scene(episode: Episode) -> Scene:
    """Rod, upright at the top, and the torque.

    Args:
        episode: observations ``[T + 1, 3]``: cosine and sine of the angle from upright, speed.

    Returns:
        The scene.
    """

    def scene(axes: Any) -> Callable[[int], None]:
        _stage(axes, (-1.5, 1.5), (-1.35, 1.45))
        axes.plot([0, 0], [1.12, 1.22], color=FAINT, linewidth=1.5)  # where it is to stand
        (rod,) = axes.plot([], [], color=COLORS[1], linewidth=9.0, solid_capstyle="round")
        axes.plot([0], [0], "o", color=INK, markersize=6)
        told = teller(axes, episode.reward, episode.over)

        def turn(moment: int) -> None:
            cosine, sine, _ = _at(episode, moment).tolist()
            rod.set_data([0, -sine], [0, cosine])  # angles grow to the left
            told(moment)

        return turn

    return scene


SCENES: dict[str, Callable[[Episode], Scene]] = {
    "CartPole": cart_pole_scene,
    "Pendulum": pendulum_scene,
}
"""By the name of one of Gymnasium's environments, without its version."""


def _stage(axes: Any, x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set(xlim=x, ylim=y, aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color("#CCCCCC")


def _at(episode: Episode, moment: int) -> Tensor:
    return episode.observation[min(moment, len(episode.reward))]
