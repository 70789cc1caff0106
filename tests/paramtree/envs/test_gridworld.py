import numpy as np
import pytest
import torch

from paramtree import rng, tree
from paramtree.envs import grid_level, grid_world, level_distribution, random_grid_world
from tests.oracles.gridworld import Simulator

ENV = grid_world()


def walk(env, level, state, actions, noise, axis):
    """Timesteps and states of some steps, stacked first."""
    states, timesteps = [], []
    for t in range(actions.shape[axis]):
        state, timestep = env.step(level, state, actions.select(axis, t), noise[t])
        states.append(state)
        timesteps.append(timestep)
    return tree.stack(states), tree.stack(timesteps)


def equal(left, right):
    rows = zip(tree.paths(left), tree.leaves(left), tree.leaves(right), strict=True)
    return all(torch.equal(a, b) for _, a, b in rows)


def test_level_transitions_are_those_of_golden_lpg(golden_lpg, golden_level):
    names = sorted({path.split("/")[0] for path in golden_lpg if path.startswith("level")})
    assert names
    for name in names:
        level = golden_level(name)
        fields = ("action", "obs_index", "reward", "done", "pos")
        recorded = {field: golden_lpg[f"{name}/out/{field}"] for field in fields}
        actions = torch.as_tensor(recorded["action"])
        noise = ENV.noise(level, rng.key(3), actions.shape)
        _, timesteps = walk(ENV, level, ENV.reset(level, noise[0]), actions, noise, 0)
        assert timesteps["observation", "index"].tolist() == recorded["obs_index"].tolist()
        assert timesteps["done"].tolist() == recorded["done"].tolist()
        scale = 1e-5 * np.abs(recorded["reward"]).max() + 1e-6
        assert np.abs(timesteps["reward"].numpy() - recorded["reward"]).max() <= scale
        cell = timesteps["observation", "index"] % level["walls"].shape[-1]
        assert cell.tolist() == recorded["pos"].tolist()


@pytest.mark.parametrize("n_actions", [5, 9, 18])
def test_steps_and_auto_resets_are_the_oracles(make_levels, world_of, n_actions):
    n, workers, length = 6, 5, 60 if n_actions == 5 else 40
    levels = make_levels(n, side=3, k=2, max_steps=6, n_actions=n_actions)
    noise = ENV.noise(levels, rng.key(1), (n, length, workers))
    actions = rng.randint(rng.key(2), (n, length, workers), 0, n_actions)
    state = ENV.reset(levels, noise[:, 0])
    steps = []
    for t in range(length):
        state, timestep = ENV.step(levels, state, actions[:, t], noise[:, t])
        steps.append((timestep, state))
    ends, cuts = 0, 0
    for i in range(n):
        for w in range(workers):
            agent = Simulator(world_of(levels[i]))
            for t, (timestep, state) in enumerate(steps):
                bits = int(noise["respawn"][i, t, w])
                respawn = [bits >> j & 1 for j in range(2)]
                seen = agent.step(int(actions[i, t, w]), respawn, float(noise["end"][i, t, w]))
                reward, done, terminated, index, time = seen
                row = timestep[i, w]
                assert float(row["reward"]) == pytest.approx(reward)
                assert (bool(row["done"]), bool(row["terminated"])) == (done, terminated)
                assert row["observation", "index"] == index
                assert row["observation", "time"] == time
                after = state[i, w]
                fresh = Simulator({**agent.world, "n_actions": 5}).step(4, [0, 0], 2.0)
                assert bool(after["is_init"]) == done
                assert after["observation", "time"] == (0 if done else time)
                assert after["observation", "index"] == (fresh[3] if done else index)
                ends += terminated
                cuts += done and not terminated
    assert ends > 30 and cuts > 30  # both kinds of end were seen


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_chances_of_zero_and_one_are_certain(chance):
    level = grid_level(
        walls=torch.zeros(4, dtype=torch.bool),
        side=2,
        start=0,
        max_steps=3,
        reward=torch.ones(1),
        p_terminate=torch.tensor([chance]),
        p_respawn=torch.tensor([chance]),
        object_cell=torch.tensor([1]),
    )
    lowest = tree.replace(ENV.noise(level, rng.key(0), ()), {"end": torch.tensor(0.0)})
    highest = tree.replace(lowest, {"end": torch.tensor(1 - 2.0**-24)})
    noise = lowest if chance == 0 else highest
    _, timestep = ENV.step(level, ENV.reset(level, noise), torch.tensor(3), noise)
    assert timestep["reward"] == 1 and timestep["terminated"] == chance
    assert ENV.noise(level, rng.key(0), (1000,))["respawn"].unique().tolist() == [int(chance)]


def test_noise_has_the_levels_chances():
    level = level_distribution("dense").sample(rng.key(0))
    noise = ENV.noise(level, rng.key(1), (40_000,))
    for j, chance in enumerate((0.05, 0.05, 0.1, 0.5)):
        seen = ((noise["respawn"] >> j) & 1).double().mean().item()
        assert abs(seen - chance) < 4 * (chance * (1 - chance) / 40_000) ** 0.5
    assert abs(noise["end"].mean().item() - 0.5) < 4 * (1 / 12 / 40_000) ** 0.5


def test_stacked_vmapped_and_looped_steps_agree(stage):
    dist, levels, noise, state = stage
    env = dist.env
    actions = rng.randint(rng.key(5), (3, 11, 4), 0, 5)
    keys = rng.split(rng.key(11), 3)

    def run(level, state, actions, key):
        noise = env.noise(level, key, (11, 4))
        return walk(env, level, state, actions, noise, 0)

    looped = [run(levels[i], state[i], actions[i], keys[i]) for i in range(3)]
    vmapped = torch.func.vmap(run)(levels, state, actions, keys)
    stacked = walk(env, levels, state, actions, [noise[:, t] for t in range(11)], 1)
    for part in range(2):
        rows = tree.stack([outcome[part] for outcome in looped])
        assert equal(rows, vmapped[part])
        assert equal(rows, tree.map(lambda leaf: leaf.movedim(0, 1), stacked[part]))


@pytest.mark.parametrize("workers", [(), (3,), (2, 3)])
def test_workers_are_any_number_of_axes(stage, workers):
    dist, levels, _, _ = stage
    noise = dist.env.noise(levels, rng.key(1), (3, *workers))
    state = dist.env.reset(levels, noise)
    actions = rng.randint(rng.key(2), (3, *workers), 0, 5)
    after, timestep = dist.env.step(levels, state, actions, noise)
    for i in range(3):
        one, row = dist.env.step(levels[i], state[i], actions[i], noise[i])
        assert equal(one, after[i]) and equal(row, timestep[i])
    assert timestep.batch_size == after.batch_size == (3, *workers)


def test_inputs_stay_as_they_are(stage, untouched):
    dist, levels, noise, state = stage
    actions = rng.randint(rng.key(5), (3, 4), 0, 5)
    with untouched(levels, noise, state):
        dist.env.noise(levels, rng.key(1), (3, 4))
        dist.env.reset(levels, noise[:, 0])
        after, timestep = dist.env.step(levels, state, actions, noise[:, 0])
    assert after.is_locked and timestep.is_locked


def test_states_have_the_same_form_at_a_reset_and_after_a_step(stage):
    dist, levels, noise, state = stage
    after, _ = dist.env.step(levels, state, torch.zeros(3, 4, dtype=torch.int64), noise[:, 0])
    assert tree.paths(state) == tree.paths(after)
    for a, b in zip(tree.leaves(state), tree.leaves(after), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def crowd(side=3, n_walls=1, k=3, **changes):
    """Random-position level with little room."""
    return grid_level(
        walls=torch.arange(16) < n_walls,
        side=side,
        start=side,
        max_steps=9,
        reward=torch.ones(k),
        p_terminate=torch.full((k,), 0.1),
        p_respawn=torch.full((k,), 0.5),
        **changes,
    )


@pytest.mark.parametrize("side", [3, 4])
def test_random_objects_keep_to_free_cells(side):
    level, env = crowd(side), random_grid_world(3)
    noise = env.noise(level, rng.key(1), (50, 40))
    state = env.reset(level, noise[0])
    actions = rng.randint(rng.key(2), (50, 40), 0, 5)
    moved = 0
    for t in range(50):
        before = state
        state, timestep = env.step(level, state, actions[t], noise[t])
        for w in range(40):
            cells = state["object_cell"][w].tolist()
            bits = int(state["objects"][w])
            there = [bits >> j & 1 for j in range(3)]
            assert len(set(cells)) == 3  # so that no two objects share a cell
            assert all(1 <= c < side * side for c in cells)  # cell 0 is a wall
            if state["is_init"][w]:
                assert bits == 7 and int(state["cell"][w]) == side and side not in cells
                continue
            old, gone = before["object_cell"][w].tolist(), int(before["objects"][w])
            for j in range(3):
                fresh = there[j] and not gone >> j & 1
                moved += fresh
                if fresh:
                    assert cells[j] != int(state["cell"][w]) and cells[j] not in old
                else:
                    assert cells[j] == old[j]
    assert moved > 50


def test_random_objects_lie_uniformly():
    level, env = crowd(3), random_grid_world(3)
    draws = 20_000
    noise = env.noise(level, rng.key(1), (draws,))
    cells = env.reset(level, noise)["object_cell"]
    allowed = torch.tensor([1, 2, 4, 5, 6, 7, 8])  # cell 0 is a wall, 3 the start
    for j in range(3):
        counts = torch.bincount(cells[:, j], minlength=9)
        assert counts[allowed].sum() == draws
        assert (counts[allowed] - draws / 7).abs().max() < 4.5 * (draws / 7) ** 0.5
    pairs = torch.bincount(cells[:, 0] * 9 + cells[:, 2], minlength=81)
    assert (pairs > 0).sum() == 42
    assert (pairs[pairs > 0] - draws / 42).abs().max() < 4.5 * (draws / 42) ** 0.5
    candidates = noise["candidates"].sort(-1).values  # seven of the eight free cells
    assert (candidates.diff(dim=-1) > 0).all() and candidates.min() == 1 and candidates.max() == 8
    for place in (0, 3, 6):
        counts = torch.bincount(noise["candidates"][:, place], minlength=9)[1:]
        assert (counts - draws / 8).abs().max() < 4.5 * (draws / 8) ** 0.5


def test_objects_without_room_stay_away():
    level, env = crowd(2, n_walls=1, k=3), random_grid_world(3)  # three free cells, one the start
    noise = env.noise(level, rng.key(1), (30, 20))
    state = env.reset(level, noise[0])
    assert (state["objects"] == 3).all()
    for t in range(30):
        state, _ = env.step(level, state, rng.randint(rng.key(t), (20,), 0, 5), noise[t])
        there = (state["objects"].unsqueeze(-1) >> torch.arange(3)) & 1 == 1
        for flags, cells in zip(there, state["object_cell"], strict=True):
            used = cells[flags].tolist()
            assert len(set(used)) == len(used) and all(0 < c < 4 for c in used)


def test_image_shows_the_agent_and_each_type():
    types = torch.tensor([0, 1, 0])
    level, env = crowd(3, object_type=types), random_grid_world(2)
    noise = env.noise(level, rng.key(1), (6, 10))
    state = env.reset(level, noise[0])
    for t in range(6):
        state, timestep = env.step(level, state, rng.randint(rng.key(t), (10,), 0, 5), noise[t])
        for w in range(10):
            image = np.zeros((3, 16), dtype=np.float32)
            image[0, int(state["cell"][w])] = 1
            for j in range(3):
                if int(state["objects"][w]) >> j & 1:
                    image[1 + int(types[j]), int(state["object_cell"][w, j])] = 1
            assert np.array_equal(state["observation", "image"][w], image)
            if not timestep["done"][w]:
                assert np.array_equal(timestep["observation", "image"][w], image)


@pytest.mark.parametrize("n_actions", [5, 9, 18])
def test_collecting_is_the_same_with_random_positions(n_actions):
    level, env = crowd(3, n_walls=0, n_actions=n_actions), random_grid_world(3)
    noise = env.noise(level, rng.key(1), (200, 30))
    state = env.reset(level, noise[0])
    total, left = 0, 0
    for t in range(200):
        before, action = state, rng.randint(rng.key(t), (30,), 0, n_actions)
        state, timestep = env.step(level, state, action, noise[t])
        landed = timestep["observation", "image"][:, 0].argmax(-1)
        on = (before["object_cell"] == landed.unsqueeze(-1)) & (
            (before["objects"].unsqueeze(-1) >> torch.arange(3)) & 1 == 1
        )
        if n_actions == 18:
            leaves = (action < 9).unsqueeze(-1)
            there = (state["objects"].unsqueeze(-1) >> torch.arange(3)) & 1 == 1
            assert there[on & leaves & ~timestep["done"].unsqueeze(-1)].all()
            left += int((on & leaves).sum())
            on = on & ~leaves
        assert torch.equal(timestep["reward"], on.sum(-1).float())
        assert torch.equal(timestep["terminated"], noise["end"][t] < 0.1 * on.sum(-1))
        there = (state["objects"].unsqueeze(-1) >> torch.arange(3)) & 1 == 1
        assert not (there & on)[~timestep["done"]].any()  # gone for this step at least
        total += int(on.sum())
    assert total > 500
    assert (left > 500) == (n_actions == 18)


def test_an_object_underfoot_waits_until_it_is_collected():
    level = grid_level(
        walls=torch.zeros(4, dtype=torch.bool),
        side=2,
        start=0,
        max_steps=9,
        reward=torch.ones(1),
        p_terminate=torch.zeros(1),
        p_respawn=torch.zeros(1),
        object_cell=torch.tensor([3]),
        n_actions=18,
    )
    noise = ENV.noise(level, rng.key(0), ())
    state, rewards = ENV.reset(level, noise), []
    for action in (7, 8, 17, 17):  # down-right, stay, stay and collect, again
        state, timestep = ENV.step(level, state, torch.tensor(action), noise)
        rewards.append(float(timestep["reward"]))
    assert rewards == [0, 0, 1, 0]
    assert state["observation", "index"] == 3


def test_rewards_carry_gradient(make_levels):
    names = ("walls", "side", "start", "max_steps", "p_terminate", "p_respawn", "object_cell")
    fields = {name: make_levels(1, seed=2)[0][name] for name in names}

    def total(reward):
        level = grid_level(reward=reward, n_objects=2, **fields)
        noise = ENV.noise(level, rng.key(1), (30, 20))
        state, rewards = ENV.reset(level, noise[0]), torch.zeros(())
        for t in range(30):
            state, timestep = ENV.step(level, state, rng.randint(rng.key(t), (20,), 0, 5), noise[t])
            rewards = rewards + timestep["reward"].sum()
        return rewards

    reward = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(total(reward), reward)
    counts = [float(total(torch.eye(2, dtype=torch.float64)[j])) for j in range(2)]
    assert grad.tolist() == pytest.approx(counts)
    assert min(counts) > 0


def test_wrong_actions_noise_and_levels_are_refused(stage):
    dist, levels, noise, state = stage
    with pytest.raises(TypeError, match="step: action is torch.float32, expected torch.int64"):
        dist.env.step(levels, state, torch.zeros(3, 4), noise[:, 0])
    with pytest.raises(ValueError, match=r"action has shape \(4,\), expected \(3, 4\)"):
        dist.env.step(levels, state, torch.zeros(4, dtype=torch.int64), noise[:, 0])
    with pytest.raises(ValueError, match=r"shape is \(4, 3\), expected it to begin with \(3,\)"):
        dist.env.noise(levels, rng.key(0), (4, 3))
    with pytest.raises(ValueError, match=r"noise has batch size \(3, 1\), expected \(3, 4\)"):
        dist.env.step(levels, state, torch.zeros(3, 4, dtype=torch.int64), noise[:, 0, :1])
    with pytest.raises(TypeError, match="sample: key is int"):
        dist.sample(3)
    other = random_grid_world(2) if dist.name == "small" else ENV
    with pytest.raises(ValueError, match="object_cell, so it is one for"):
        other.noise(levels, rng.key(0), (3,))
    with pytest.raises(TypeError, match="n_types is a str"):
        random_grid_world("2")
    with pytest.raises(ValueError, match="n_types is 0"):
        random_grid_world(0)
