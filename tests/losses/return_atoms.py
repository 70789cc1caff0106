"""Trajectories with distributions of returns, over atoms or by quantiles."""

# pyright: reportArgumentType=false, reportCallIssue=false
import torch
from tensordict import TensorDict

D = torch.float64
ACTIONS, K = 3, 5
SUPPORT = torch.tensor([-1.5, -0.7, 0.1, 0.9, 2.0], dtype=D)
GAMMA = 0.875  # exact in float32


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=D, generator=draw(seed))


def steps(*size, seed=0, **entries):
    """A td with rewards and flags, and entries that come in pairs, now and next."""
    g = draw(seed)
    done = torch.rand(size, generator=g) < 0.4
    after = {
        "reward": torch.randn(size, dtype=D, generator=g),
        "done": done,
        "terminated": done & (torch.rand(size, generator=g) < 0.6),
        **{name: x for name, (_, x) in entries.items()},
    }
    now = {
        "action": torch.randint(0, ACTIONS, size, generator=g),
        "next": TensorDict(after, size),
        **{name: x for name, (x, _) in entries.items()},
    }
    return TensorDict(now, size)


def pair(*shape):
    return 2 * normal(*shape, seed=11), 2 * normal(*shape, seed=12)


def states(*size):
    return steps(*size, state_value_logits=pair(*size, K))


def actions(*size):
    return steps(*size, action_value_logits=pair(*size, ACTIONS, K))


def quantiled(*size, n=4):
    return steps(*size, action_value_quantiles=pair(*size, ACTIONS, n))


def chosen(x, action):
    """Of [*B, A, ...] the action's."""
    return x.flatten(0, action.dim() - 1)[torch.arange(action.numel()), action.flatten()].reshape(
        *action.shape, *x.shape[action.dim() + 1 :]
    )


def projected(source, probs, target):
    """``categorical_projection`` by a loop."""
    out = [0.0] * len(target)
    for x, p in zip(source, probs, strict=True):
        x = min(max(x, target[0]), target[-1])
        i = max(i for i in range(len(target)) if target[i] <= x)
        if i == len(target) - 1:
            out[i] += p
        else:
            share = (x - target[i]) / (target[i + 1] - target[i])
            out[i] += p * (1 - share)
            out[i + 1] += p * share
    return out
