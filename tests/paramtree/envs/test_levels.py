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
    "rand_tiny": (3, 0, 50, 250, [(1, 0, 1)] * 2),
}
FAMILIES = {  # length, objects, side, walls, lifetime; after configs.py of GROOVE
    "small": ((20, 100), (1, 3), (4, 6), 7, 250),
    "medium": ((100, 250), (2, 4), (6, 8), 10, 1000),
    "large": ((250, 750), (2, 5), (8, 10), 15, 2500),
    "all": ((20, 750), (1, 5), (4, 10), 15, 1000),
    "all_shortlife": ((20, 750), (1, 5), (4, 10), 15, 250),
    "all_randlife": ((20, 750), (1, 5), (4, 10), 15, (50, 250)),
    "all_vrandlife": ((20, 750), (1, 5), (4, 10), 15, (10, 250)),
    "rand_all": ((20, 750), (1, 5), (4, 10), 15, 25000),
}
FIXED = ("tabular", "mazes", "sixteen_rooms")
CHAINS = {  # length, noise, what an agent sees
    "chain_short": ((5, 30), 0, 62),
    "chain_short_noisy": ((5, 30), 1, 62),
    "chain_long": ((5, 50), 0, 102),
    "chain_long_noisy": ((5, 50), 1, 102),
    "chain_distraction": ((5, 30), 0, (22,)),
}


@pytest.mark.parametrize("name", [*WORLDS, *FAMILIES, *FIXED, *CHAINS])
def test_many_keys_give_what_each_gives_alone(name):
    dist, keys = level_distribution(name), rng.split(rng.key(4), 5)
    many, mapped = dist.sample(keys), torch.func.vmap(dist.sample)(keys)
    assert many.batch_size == (5,) and many.is_locked
    for i in range(5):
        one = dist.sample(keys[i])
        rows = zip(tree.leaves(one), tree.leaves(many), tree.leaves(mapped), strict=True)
        assert all(torch.equal(a, b[i]) and torch.equal(a, c[i]) for a, b, c in rows)


@pytest.mark.parametrize("name", [*WORLDS, *FAMILIES, *FIXED])
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
    if name == "rand_all":
        assert (dist.n_states, dist.observation_shape) == (None, (6, 100))
        assert "object_cell" not in levels.keys()  # noqa: SIM118
    else:
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


@pytest.mark.parametrize("name", ["all_shortlife", "all_randlife", "all_vrandlife", "rand_all"])
def test_levels_of_all_are_the_same_whatever_the_lifetime(name):
    wanted = tree.entries(level_distribution("all").sample(rng.key(1)))
    level = tree.entries(level_distribution(name).sample(rng.key(1)))
    assert level.keys() == wanted.keys() - ({"object_cell"} if name == "rand_all" else set())
    assert all(torch.equal(level[field], wanted[field]) for field in level if field != "table")


def test_tabular_is_one_of_five_worlds():
    dist, n = level_distribution("tabular"), 2000
    names = ("dense", "sparse", "long", "longer", "long_dense")
    levels = dist.sample(rng.split(rng.key(7), n))
    assert (dist.max_steps, dist.lifetime, dist.n_states) == (2000, 2500, 169 * 2**7)
    left = torch.ones(n, dtype=torch.bool)
    for name in names:
        side, n_walls, length, _, objects = WORLDS[name]
        own = (levels["n_objects"] == len(objects)) & (levels["max_steps"] == length)
        count = int(own.sum())
        assert abs(count - n / 5) < 4.5 * (n / 5) ** 0.5
        assert (left[own]).all()
        left &= ~own
        assert (levels["side"][own] == side).all()
        assert (levels["walls"][own][:, : side * side].sum(-1) == n_walls).all()
        for column, field in enumerate(("reward", "p_terminate", "p_respawn")):
            wanted = torch.tensor([float(row[column]) for row in objects])
            wanted = torch.nn.functional.pad(wanted, (0, 7 - len(objects)))
            assert torch.equal(levels[field][own], wanted.expand(count, -1))
        cells = torch.cat([levels["start"][own], levels["object_cell"][own, 0]])
        assert len(cells.unique()) > 0.9 * (side * side - n_walls)  # everywhere
        alone = level_distribution(name).sample(rng.key(0))["walls"]
        assert torch.equal(levels["walls"][own][0, : side * side], alone)
    assert not left.any()


def test_levels_of_mazes_keep_their_laws():
    levels = level_distribution("mazes").sample(rng.split(rng.key(8), 3000))
    assert levels["reward"].min() >= 0 and levels["reward"].max() < 1
    assert (levels["reward"].mean(0) - 0.5).abs().max() < 4 / (12 * 3000) ** 0.5
    bounds = {"max_steps": (25, 50), "p_terminate": (0.01, 1.0), "p_respawn": (0.001, 0.1)}
    for field, (low, high) in bounds.items():
        values = levels[field].double()
        assert values.min() >= low - 1e-9 and values.max() <= high + 1e-9
        share = (values.log() - math.log(low)) / math.log(high / low)
        assert abs(share.mean().item() - 0.5) < 4 / (12 * values.numel()) ** 0.5


@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_the_paper(name):
    length, noise, sight = CHAINS[name]
    dist, n = level_distribution(name), 4000
    levels = dist.sample(rng.split(rng.key(9), n))
    assert (dist.n_actions, dist.max_steps, dist.lifetime) == (2, length[1], 2500)
    seen = dist.n_states if isinstance(sight, int) else dist.observation_shape
    assert seen == sight and (dist.n_states is None) != (dist.observation_shape == ())
    counts = torch.bincount(levels["length"])[length[0] :]
    expected = n / (length[1] - length[0] + 1)
    assert len(counts) == length[1] - length[0] + 1
    assert (counts - expected).abs().max() < 4.5 * expected**0.5
    assert (levels["reward"] == 1).all() and (levels["noise"] == noise).all()
    assert abs(int(levels["right"].sum()) - n / 2) < 4.5 * (n / 4) ** 0.5
    assert levels["right"].unique().tolist() == [0, 1]
    drawn = level_distribution(name, right="episode").sample(rng.split(rng.key(9), n))
    assert (drawn["right"] == -1).all() and torch.equal(drawn["length"], levels["length"])


@pytest.mark.parametrize("name", ["chain_short", "chain_long_noisy", "chain_distraction"])
@pytest.mark.parametrize("right", ["level", "episode"])
def test_agents_in_chains_see_what_their_distribution_says(name, right):
    dist = level_distribution(name, right=right)
    levels = dist.sample(rng.split(rng.key(3), 6))
    noise = dist.env.noise(levels, rng.key(1), (6, 80, 4))
    state, indices = dist.env.reset(levels, noise[:, 0]), []
    for t in range(80):
        action = rng.randint(rng.key(t), (6, 4), 0, dist.n_actions)
        state, timestep = dist.env.step(levels, state, action, noise[:, t])
        for seen in (state["observation"], timestep["observation"]):
            if dist.n_states is None:
                assert seen["image"].shape == (6, 4, *dist.observation_shape)
                assert ((seen["image"] == 0) | (seen["image"] == 1)).all()
            else:
                indices.append(seen["index"])
    if indices:
        index = torch.stack(indices)
        assert dist.n_states and index.min() == 0 and index.max() < dist.n_states
        most = 2 * int(levels["length"].max())
        assert index.max() == most + 1  # the last moment on the right chain


@pytest.mark.parametrize("n_actions", [9, 18])
@pytest.mark.parametrize("name", ["dense", "small", "rand_small", "labyrinth", "tabular"])
def test_the_number_of_actions_changes_nothing_else(name, n_actions):
    five, more = level_distribution(name), level_distribution(name, n_actions=n_actions)
    assert more._replace(n_actions=5, env=five.env, sample=five.sample) == five
    assert (five.n_actions, more.n_actions) == (5, n_actions)
    a, b = (tree.entries(dist.sample(rng.key(1))) for dist in (five, more))
    cells = a["walls"].shape[-1]
    assert all(torch.equal(a[field], b[field]) for field in a if field != "table")
    assert b["table"]["landing"].shape == (cells * n_actions,)


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match="level_distribution: n_actions is 7, expected 5, 9"):
        level_distribution("dense", n_actions=7)
    with pytest.raises(ValueError, match="n_actions is 9 and name 'chain_short', expected None"):
        level_distribution("chain_short", n_actions=9)
    with pytest.raises(ValueError, match="right is 'life', expected 'level' or 'episode'"):
        level_distribution("chain_short", right="life")
    with pytest.raises(ValueError, match="right is 'episode' and name 'dense', expected 'level'"):
        level_distribution("dense", right="episode")
    assert level_distribution("chain_short", n_actions=2).n_actions == 2


@pytest.mark.parametrize(
    ("name", "near"), [("labyrint", "labyrinth"), ("chain-short", "chain_short"), ("maze", "mazes")]
)
def test_new_names_are_among_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"expected one of .*; the nearest is '{near}'"):
        level_distribution(name)


def test_unknown_names_are_refused_with_the_nearest():
    words = "name is 'smal', expected one of dense, .*; the nearest is 'small'"
    with pytest.raises(ValueError, match=words):
        level_distribution("smal")
