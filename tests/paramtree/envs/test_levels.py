import math

import pytest
import torch

from paramtree import rng, tree
from paramtree.envs import level_distribution

WORLDS = {  # side, walls, length, lifetime, then reward, chances to end and to reappear
    "dense": (11, 0, 500, 2500, [(1, 0, 0.05)] * 2 + [(-1, 0.5, 0.1), (-1, 0, 0.5)]),
    "sparse": (13, 0, 50, 2500, [(1, 1, 0), (-1, 1, 0)]),
    "long": (11, 0, 1000, 2500, [(1, 0, 0.01)] * 2 + [(-1, 0.5, 1)] * 2),
    "longer": (9, 2 * 9 + 7, 2000, 2500, [(1, 0.1, 0.01)] * 2 + [(-1, 0.8, 1)] * 5),
    "long_dense": (11, 9 + 9 - 1, 2000, 2500, [(1, 0, 0.005)] * 4),
    "rand_dense": (11, 0, 500, 25000, [(1, 0, 0.05)] * 2 + [(-1, 0.5, 0.1), (-1, 0, 0.5)]),
    "rand_long": (11, 0, 1000, 25000, [(1, 0, 0.01)] * 2 + [(-1, 0.5, 1)] * 2),
    "rand_long_dense": (11, 9 + 9 - 1, 2000, 25000, [(1, 0, 0.005)] * 4),
    "rand_small": (7, 2 * 7 + 2, 500, 25000, [(1, 0, 0.05)] * 2 + [(-1, 0.5, 0.1)] * 2),
    "rand_sparse": (7, 2 * 7, 50, 25000, [(1, 1, 1)] + [(-1, 1, 1)] * 2),
    "rand_very_dense": (11, 0, 2000, 25000, [(1, 0, 1)]),
}
FAMILIES = {  # length, objects, side, walls, lifetime
    "small": ((20, 100), (1, 3), (4, 6), 7, 250),
    "medium": ((100, 250), (2, 4), (6, 8), 10, 1000),
    "large": ((250, 750), (2, 5), (8, 10), 15, 2500),
    "all": ((20, 750), (1, 5), (4, 10), 15, 1000),
    "all_shortlife": ((20, 750), (1, 5), (4, 10), 15, 250),
}


@pytest.mark.parametrize("name", [*WORLDS, *FAMILIES])
def test_many_keys_give_what_each_gives_alone(name):
    dist, keys = level_distribution(name), rng.split(rng.key(4), 5)
    many, mapped = dist.sample(keys), torch.func.vmap(dist.sample)(keys)
    assert many.batch_size == (5,) and many.is_locked
    for i in range(5):
        one = dist.sample(keys[i])
        rows = zip(tree.leaves(one), tree.leaves(many), tree.leaves(mapped), strict=True)
        assert all(torch.equal(a, b[i]) and torch.equal(a, c[i]) for a, b, c in rows)


@pytest.mark.parametrize("name", [*WORLDS, *FAMILIES])
def test_start_and_objects_lie_on_distinct_free_cells(name):
    levels = level_distribution(name).sample(rng.split(rng.key(5), 400))
    cells = levels["start"].unsqueeze(-1)
    if "object_cell" in levels.keys():  # noqa: SIM118
        cells = torch.cat([cells, levels["object_cell"]], -1)
        exists = torch.arange(cells.shape[-1] - 1) < levels["n_objects"].unsqueeze(-1)
        cells = torch.where(torch.cat([exists[:, :1] | True, exists], -1), cells, cells[:, :1])
        there = cells[:, 1:].sort(-1).values
        repeated = (there.diff(dim=-1) == 0) & (there[:, 1:] != cells[:, :1])
        assert not repeated.any()
        assert not (exists & (levels["object_cell"] == cells[:, :1])).any()
    assert not levels["walls"].gather(-1, cells).any()
    assert (cells < levels["side"].unsqueeze(-1) ** 2).all()


@pytest.mark.parametrize("name", WORLDS)
def test_worlds_of_the_paper(name):
    side, n_walls, length, lifetime, objects = WORLDS[name]
    dist = level_distribution(name)
    levels = dist.sample(rng.split(rng.key(5), 300))
    assert (dist.max_steps, dist.lifetime, dist.n_actions) == (length, lifetime, 5)
    assert (levels["side"] == side).all() and (levels["max_steps"] == length).all()
    assert levels["walls"].shape == (300, side * side)
    assert (levels["walls"].sum(-1) == n_walls).all()
    for column, field in enumerate(("reward", "p_terminate", "p_respawn")):
        wanted = torch.tensor([float(row[column]) for row in objects])
        assert torch.equal(levels[field], wanted.expand(300, -1))
    k, types = len(objects), len(set(objects))
    assert (levels["n_objects"] == k).all()
    if name.startswith("rand"):
        assert (dist.n_states, dist.observation_shape) == (None, (1 + types, side * side))
        assert "object_cell" not in levels.keys()  # noqa: SIM118
    else:
        assert (dist.n_states, dist.observation_shape) == (side * side * 2**k, ())
        free = side * side - n_walls
        counts = torch.bincount(levels["object_cell"].flatten(), minlength=side * side)
        assert (counts > 0).sum() > 0.9 * free  # everywhere


def test_walls_of_the_longer_world_leave_two_gaps():
    level = level_distribution("longer").sample(rng.key(0))
    rows = level["walls"].view(9, 9)
    assert rows[:7, 4].tolist() == [True, False, True, True, True, False, True]
    assert rows[3].tolist() == [False] * 3 + [True] * 3 + [False] * 3
    assert rows[7:].all()


@pytest.mark.parametrize("name", FAMILIES)
def test_families_keep_their_bounds_and_laws(name):
    length, objects, side, n_walls, lifetime = FAMILIES[name]
    n, size, k = 4000, side[1], objects[1]
    dist = level_distribution(name)
    levels = dist.sample(rng.split(rng.key(6), n))
    assert (dist.max_steps, dist.lifetime) == (length[1], lifetime)
    assert (dist.n_states, dist.observation_shape) == (size * size * 2**k, ())
    assert levels["walls"].shape == (n, size * size)
    assert (levels["walls"].sum(-1) == n_walls).all()
    share = levels["walls"].double().mean(0)
    assert (share - n_walls / size**2).abs().max() < 0.035
    for field, (low, high) in (("n_objects", objects), ("side", side)):
        counts = torch.bincount(levels[field])[low:]
        assert len(counts) == high - low + 1
        expected = n / len(counts)
        assert (counts - expected).abs().max() < 4.5 * expected**0.5
    assert levels["max_steps"].min() >= length[0] and levels["max_steps"].max() <= length[1]
    reward = levels["reward"]
    assert reward.abs().max() < 1 and reward[:, 0].min() >= 0
    assert abs(reward[:, 0].mean().item() - 0.5) < 0.02
    assert reward[:, 1:].mean().abs() < 0.02
    exists = torch.arange(k) < levels["n_objects"].unsqueeze(-1)
    assert not levels["p_respawn"][~exists].any()
    laws = [
        (levels["max_steps"].double(), length),
        (levels["p_terminate"].double(), (0.01, 1.0)),
        (levels["p_respawn"].double()[exists], (0.001, 0.1)),
    ]
    for values, (low, high) in laws:
        assert values.min() >= low - 1e-9 and values.max() <= high + 1e-9
        for share in (0.1, 0.25, 0.5, 0.75, 0.9):
            quantile = math.exp(math.log(low) + share * math.log(high / low))
            error = 4 * (share * (1 - share) / len(values.flatten())) ** 0.5
            rounding = 0.5 / (quantile * math.log(high / low)) if high > 1 else 0.0
            assert abs((values < quantile).double().mean().item() - share) < error + rounding


def test_all_and_all_shortlife_are_the_same_levels():
    long, short = level_distribution("all"), level_distribution("all_shortlife")
    pairs = zip(*(tree.leaves(d.sample(rng.key(1))) for d in (long, short)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_unknown_names_are_refused_with_the_nearest():
    words = "name is 'smal', expected one of dense, .*; the nearest is 'small'"
    with pytest.raises(ValueError, match=words):
        level_distribution("smal")
