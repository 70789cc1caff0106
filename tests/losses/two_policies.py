"""Trajectories of two policies for the tests of PPO, with targets."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Categorical

from losses import (
    discovered_policy_loss,
    independent_normal,
    ppo_clip_loss,
    ppo_kl_penalty_loss,
    ppo_loss,
)

D = torch.float64
N, A = 24, 3
ALL = [ppo_loss, ppo_clip_loss, ppo_kl_penalty_loss, discovered_policy_loss]
every = pytest.mark.parametrize("reducer", ALL, ids=lambda f: f.__name__)


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def finished(*batch, continuous=False, seed=0):
    """A td [*batch] with targets, of ratios to both sides of every bound."""
    names = iter(range(seed * 100, seed * 100 + 100))

    def draw(*more):
        return normal(*batch, *more, seed=next(names))

    if continuous:
        old = {"loc": draw(2), "scale": draw(2).exp()}
        new = {"loc": old["loc"] + 0.3 * draw(2), "scale": old["scale"] * (0.2 * draw(2)).exp()}
        action = old["loc"] + old["scale"] * draw(2)
        log_mu = independent_normal(**old).log_prob(action)
    else:
        old = {"logits": draw(A)}
        new = {"logits": old["logits"] + 0.5 * draw(A)}
        action = draw(A).argmax(-1)
        log_mu = Categorical(**old).log_prob(action)
    entries = {
        **new,
        "action": action,
        "action_log_prob": log_mu,
        "state_value": draw(),
        "advantage": draw(),
        "value_target": draw(),
    }
    value = {"state_value": entries["state_value"] + 0.4 * draw()}
    return TensorDict({**entries, "behavior": TensorDict({**old, **value}, batch)}, batch)


def replaced(td, **entries):
    out = td.copy()
    for key, value in entries.items():
        out.set(key, value)
    return out


def cast(td, dtype):
    return td.apply(lambda x: x.to(dtype) if x.is_floating_point() else x)


def log_ratio(td):
    return Categorical(logits=td["logits"]).log_prob(td["action"]) - td["action_log_prob"]
