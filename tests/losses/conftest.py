"""Trajectories, and the variants that every function is run in."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close


def make_trajectory(*batch, steps=6, actions=3, m=4, seed=0):
    """A td [*batch, steps] in float64 with every key that a loss reads, but no advantage."""
    draw = np.random.default_rng(seed)
    size = (*batch, steps)

    def normal(*more):
        return torch.tensor(draw.normal(size=(*size, *more)))

    done = torch.tensor(draw.random(size) < 0.4)
    entries = {
        "logits": normal(actions),
        "action": torch.tensor(draw.integers(0, actions, size)),
        "state_value": normal(),
        "pi_hat": normal(),
        "prediction": normal(m),
        "y_hat": normal(m).softmax(-1),
        "next": TensorDict(
            {
                "reward": normal(),
                "state_value": normal(),
                "done": done,
                "terminated": done & torch.tensor(draw.random(size) < 0.5),
            },
            size,
        ),
    }
    return TensorDict(entries, size)


def central_difference(fn, x, h=1e-6):
    """Gradient of a scalar function of one float64 tensor, entry by entry."""
    flat = x.detach().clone().reshape(-1)
    out = torch.zeros_like(flat)
    for i in range(flat.numel()):
        step = torch.zeros_like(flat)
        step[i] = h
        high, low = (fn((flat + s * step).reshape(x.shape)) for s in (1, -1))
        out[i] = (high - low) / (2 * h)
    return out.reshape(x.shape)


def eager(fn):
    return fn


def compiled(fn):
    torch.compiler.reset()
    return torch.compile(fn, fullgraph=True, backend="aot_eager")


def vmapped(fn):
    """Maps over copies of the arguments that differ by a little, and gives the first result."""

    def run(*args):
        many = [torch.stack([x, x * 0.9, x * 0.8]) for x in args]
        return torch.func.vmap(fn)(*many)[0]

    return run


@pytest.fixture(params=[eager, vmapped, compiled], ids=lambda v: v.__name__)
def variant(request):
    return request.param


@pytest.fixture
def trajectory():
    return make_trajectory


@pytest.fixture
def central():
    return central_difference


class Untouched:
    """Holds a td against a copy that was made of it."""

    def __init__(self, *tds):
        self.tds = tds

    def __enter__(self):
        self.copies = [td.clone() for td in self.tds]

    def __exit__(self, kind, error, trace):
        if kind is None:
            for td, copy in zip(self.tds, self.copies, strict=True):
                keys = set(td.keys(include_nested=True))
                assert keys == set(copy.keys(include_nested=True))
                for key in td.keys(include_nested=True, leaves_only=True):
                    assert_close(td.get(key), copy.get(key), rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def untouched():
    return Untouched
