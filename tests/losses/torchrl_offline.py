"""Networks and data that TorchRL's losses of offline learning and imitation are fed with."""

import numpy as np
import torch
from tensordict import TensorDict

D = torch.float64
B, A = 6, 3  # steps, and discrete actions


def normal(*shape, seed=0):
    """Numbers of a standard normal distribution, in float64."""
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


class Given(torch.nn.Module):
    """A network whose output is its parameter, whatever it is given."""

    def __init__(self, x):
        super().__init__()
        self.x = torch.nn.Parameter(x.clone())

    def forward(self, *inputs):
        return self.x * 1.0


class Mapped(torch.nn.Module):
    """A linear network; small enough to be written out by hand."""

    def __init__(self, n, m, seed):
        super().__init__()
        self.w = torch.nn.Parameter(normal(n, m, seed=seed))

    def forward(self, *inputs):
        return torch.cat(inputs, -1) @ self.w


def following(**more):
    done = torch.arange(B) % 3 == 0
    entries = {"reward": normal(B, 1, seed=7), "done": done[:, None], "terminated": done[:, None]}
    return TensorDict({"observation": normal(B, 4, seed=6), **entries, **more}, [B])


def observed(action):
    entries = {"observation": normal(B, 4, seed=5), "action": action, "next": following()}
    return TensorDict(entries, [B])


def of_module(loss, parameters):
    return torch.autograd.grad(loss, list(parameters), allow_unused=True)


def leaves(tree):
    return list(tree.values(True, True))
