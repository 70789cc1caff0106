"""Grid worlds as levels and as the oracle's dictionaries."""

import numpy as np
import pytest
import torch

from paramtree import rng, tree
from paramtree.envs import grid_level, level_distribution

FIELDS = ("object_cell", "reward", "p_terminate", "p_respawn")


def to_world(level):
    """The oracle's dictionary of one level."""
    world = {name: level[name].tolist() for name in ("walls", *FIELDS)}
    world["n_actions"] = level["table", "landing"].shape[-1] // len(world["walls"])
    return world | {name: int(level[name]) for name in ("side", "start", "max_steps", "n_objects")}


def random_levels(n, side=4, k=2, max_steps=7, seed=0, n_actions=5):
    """Small levels in float64, padded to a grid one larger than they are."""
    draw, size = np.random.default_rng(seed), side + 1
    walls = np.zeros((n, size * size), dtype=bool)
    cells = np.zeros((n, k + 1), dtype=np.int64)
    for i in range(n):
        order = draw.permutation(side * side)
        cells[i] = order[: k + 1]
        walls[i, order[k + 1 : k + 1 + side]] = True
    walls[:, side * side :] = draw.random((n, size * size - side * side)) < 0.5
    values = draw.uniform([[[-1.0]], [[0.1]], [[0.1]]], 1.0, (3, n, k))
    return grid_level(
        walls=torch.tensor(walls),
        side=side,
        start=torch.tensor(cells[:, 0]),
        max_steps=torch.tensor(draw.integers(2, max_steps + 1, n)),
        reward=torch.tensor(values[0]),
        p_terminate=torch.tensor(values[1]),
        p_respawn=torch.tensor(values[2]),
        object_cell=torch.tensor(cells[:, 1:]),
        n_objects=torch.tensor(draw.integers(1, k + 1, n)),
        n_actions=n_actions,
    )


@pytest.fixture
def golden_level(golden_lpg):
    """Level of a recorded one, by the beginning of its names."""

    def load(name):
        params = {
            path.rpartition("/")[2]: torch.as_tensor(array)
            for path, array in golden_lpg.items()
            if path.startswith(f"{name}/params/")
        }
        types = params["obj_ids"].long()
        return grid_level(
            walls=params["walls"],
            side=params["grid_size"],
            start=params["start_pos"],
            max_steps=params["max_steps_in_episode"],
            reward=params["obj_rewards"][types].double(),
            p_terminate=params["obj_p_terminate"][types].double(),
            p_respawn=params["obj_p_respawn"][types].double(),
            object_cell=params["static_obj_poss"],
            object_type=types,
            n_objects=params["n_objs"],
        )

    return load


@pytest.fixture
def world_of():
    return to_world


@pytest.fixture
def make_levels():
    return random_levels


@pytest.fixture(params=["small", "rand_small"])
def stage(request):
    """A distribution, three levels, noise of 11 steps for four workers on each, first states."""
    dist = level_distribution(request.param)
    keys = rng.split(rng.key(11), 3)
    levels = dist.sample(keys)
    noise = dist.env.noise(levels, keys, (3, 11, 4))
    state = dist.env.reset(levels, dist.env.noise(levels, rng.fold_in(keys, "reset"), (3, 4)))
    return dist, levels, noise, state


class Untouched:
    """Holds trees against copies that were made of them."""

    def __init__(self, *trees):
        self.trees = trees

    def __enter__(self):
        self.copies = [[leaf.clone() for leaf in tree.leaves(t)] for t in self.trees]

    def __exit__(self, *_):
        for original, copies in zip(self.trees, self.copies, strict=True):
            for leaf, copy in zip(tree.leaves(original), copies, strict=True):
                assert torch.equal(leaf, copy)


@pytest.fixture
def untouched():
    return Untouched
