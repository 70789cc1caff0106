"""A Gymnasium environment that says where it is, and what plays in it."""

from contextlib import closing

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.distributions import Categorical

from paramtree import Model, rng, tree
from paramtree.interop.gymnasium import reset, rollout

MODES = list(AutoresetMode)
NOTHING = tree.new({})


def policy(function):
    """Model without parameters, of a function of a step that gives its outputs."""

    def apply(params, buffers, batch):
        out = function(batch)
        return tree.new({**tree.entries(batch), **out}, batch.batch_size), buffers

    return Model(lambda key: (NOTHING, NOTHING), apply)


FAIR = policy(lambda x: {"logits": torch.zeros(*x.batch_size, 2)})


class Counter(gymnasium.Env):
    """Shows (episode, step); pays 100 episode + 10 step + action; ends as its plan says."""

    def __init__(self, plan, action_space=None, show=None, shown=None):
        self.plan, self.show = plan, show or (lambda e, t: np.array([e, t], dtype=np.float64))
        self.observation_space = shown or spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = action_space or spaces.Discrete(2)
        self.episode, self.time, self.taken = -1, 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self.show(self.episode, 0), {}

    def step(self, action):
        self.taken.append(action)
        reward = 100 * self.episode + 10 * self.time
        if isinstance(self.action_space, spaces.Discrete):
            reward += int(action)
        self.time += 1
        length, end = self.plan[self.episode % len(self.plan)]
        over = self.time >= length
        seen = self.show(self.episode, self.time)
        return seen, reward, over and "terminated" in end, over and "truncated" in end, {}


PLANS = [
    [(3, "terminated"), (1, "truncated"), (4, "terminated and truncated")],
    [(2, "truncated"), (5, "terminated")],
    [(30, "terminated")],
]


def counters(mode, plans=PLANS, kind=SyncVectorEnv, options=None, **made):
    makers = [lambda plan=plan: Counter(plan, **made) for plan in plans]
    return kind(makers, autoreset_mode=mode, **(options or {}))


def play(envs, model=FAIR, length=14, seed=0, start=3, **options):
    with closing(envs):
        state = reset(envs, start)
        return rollout(envs, model, NOTHING, NOTHING, state, rng.key(seed), length, **options)


def likes(space, function, dist_class=Categorical, plans=PLANS, **options):
    """Trajectory of Counters with that space of actions, and what they got."""
    envs = counters(AutoresetMode.SAME_STEP, plans, action_space=space)
    td = play(envs, policy(function), dist_class=dist_class, **options)[2]
    return td, [env.taken for env in envs.envs]
