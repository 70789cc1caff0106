"""Paths of params that tests/fixtures/optax_wrappers.py recorded, and ours to hold against them."""

import json
from pathlib import Path

import numpy as np
import torch
from torch.testing import assert_close

from paramtree import tree
from paramtree.optim import apply_updates

FILE = Path(__file__).parents[2] / "data" / "optax_wrappers.npz"


def recorded():
    """Arrays by group and name."""
    out = {}
    with np.load(FILE) as file:
        for group, entries in json.loads(file["layout"].tobytes()).items():
            sizes = [int(np.prod(shape)) for _, _, shape in entries]
            pieces = np.split(file[group], np.cumsum(sizes)[:-1])
            for (name, _, shape), piece in zip(entries, pieces, strict=True):
                out[group, name] = torch.tensor(piece.reshape(shape))
    return out


OPTAX = recorded()


def tree_of(vector):
    return tree.new({"bias": vector[:2], "weight": vector[2:]})


def walk(optimizer, grads="grads", value=False, read=None):
    """Params after each step, from the recorded start and for the recorded gradients."""
    params = tree_of(OPTAX["in", "start"])
    state, path = optimizer.init(params), [params]
    for t, g in enumerate(OPTAX["in", grads]):
        extra = {"value": OPTAX["in", "value"][t]} if value else {}
        updates, state = optimizer.update(tree_of(g), state, params, **extra)
        params = apply_updates(params, updates)
        path.append(params if read is None else read(state))
    return torch.stack([torch.cat(tree.leaves(params)) for params in path])


def assert_path(name, optimizer, **options):
    assert_close(walk(optimizer, **options), OPTAX["path", name], rtol=1e-10, atol=1e-12)
