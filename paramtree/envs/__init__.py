"""Environments: pure functions over trees, many levels and many workers at once."""

from .base import Env as Env
from .classic import cart_pole as cart_pole
from .classic import cart_pole_level as cart_pole_level
from .classic import pendulum as pendulum
from .classic import pendulum_level as pendulum_level
from .gridlevel import grid_level as grid_level
from .gridworld import grid_world as grid_world
from .gridworld import random_grid_world as random_grid_world
from .levels import LevelDistribution as LevelDistribution
from .levels import level_distribution as level_distribution
from .optimal import optimal_return as optimal_return
from .optimal import optimal_reward_rate as optimal_reward_rate
from .replay import ReplayBuffer as ReplayBuffer
from .replay import replay_buffer as replay_buffer
from .rollout import rollout as rollout
