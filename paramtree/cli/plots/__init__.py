"""All pictures: of runs, of levels and of episodes, for the commands and for notebooks.

    draw_level(axes, level, walk(level, td))      a grid world or a chain, with an agent's way
    write("curve.png", lpg_figure(history, {}))   a figure to a file
    write("episode.gif", film(scenes, moments))   what agents do, side by side

``draw_*`` draws in a panel that it is given, ``*_figure`` gives a figure of its own. matplotlib is
loaded here alone, when something is drawn, without a display and without its global state.
"""

from .cells import cells_figure as cells_figure
from .cells import correlation as correlation
from .cells import targets_figure as targets_figure
from .curves import draw_band as draw_band
from .curves import draw_lives as draw_lives
from .curves import hyper_figure as hyper_figure
from .curves import lpg_figure as lpg_figure
from .curves import metrics_figure as metrics_figure
from .curves import returns_figure as returns_figure
from .episodes import Episode as Episode
from .episodes import film as film
from .episodes import first_episode as first_episode
from .episodes import moments as moments
from .intervals import Band as Band
from .intervals import over_levels as over_levels
from .intervals import over_seeds as over_seeds
from .intervals import smoothed as smoothed
from .intervals import student_t as student_t
from .levels import Walk as Walk
from .levels import draw_level as draw_level
from .levels import level_scene as level_scene
from .levels import walk as walk
from .levels import walks_figure as walks_figure
from .runs import Group as Group
from .runs import groups_figure as groups_figure
from .scenes import SCENES as SCENES
from .style import write as write
