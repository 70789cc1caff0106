import pytest
import torch

from paramtree import rng, tree
from paramtree.autodiff import vmap
from paramtree.envs import (
    chain_level,
    delayed_chain,
    level_distribution,
    optimal_return,
    optimal_reward_rate,
    rollout,
)
from paramtree.model import Model
from tests.oracles.chain import Simulator, best_rate, best_return

D = torch.float64
ENVS = {"index": delayed_chain(), "image": delayed_chain(5)}


def levels(**changes):
    """Four chains: each right action, one that is shown, and one step."""
    values = {
        "length": torch.tensor([2, 5, 4, 1]),
        "right": torch.tensor([0, 1, -1, -1]),
        "reward": torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=D),
        "noise": torch.tensor([0.25, 0.0, 1.0, 1.0], dtype=D),
    }
    return chain_level(**values | changes)


def worlds(level):
    rows = tree.entries(level)
    size = len(rows["length"])
    return [{name: rows[name][i].item() for name in rows} for i in range(size)]


@pytest.fixture(params=["index", "image"])
def kind(request):
    return request.param


def walk(env, level, state, actions, noise, axis):
    steps = []
    for t in range(actions.shape[axis]):
        state, timestep = env.step(level, state, actions.select(axis, t), noise[t])
        steps.append((state, timestep))
    return tree.stack([state for state, _ in steps]), tree.stack([step for _, step in steps])


def equal(left, right):
    rows = zip(tree.paths(left), tree.leaves(left), tree.leaves(right), strict=True)
    return all(torch.equal(a, b) for _, a, b in rows)


def test_steps_and_auto_resets_are_the_oracles(kind):
    env, level, workers, length = ENVS[kind], levels(), 6, 40
    noise = env.noise(level, rng.key(1), (4, length, workers))
    first = env.noise(level, rng.key(2), (4, workers))
    actions = rng.randint(rng.key(3), (4, length, workers), 0, 2)
    state = env.reset(level, first)
    assert state["is_init"].all() and not state["observation", "time"].any()
    states, timesteps = walk(env, level, state, actions, [noise[:, t] for t in range(length)], 1)
    for i, world in enumerate(worlds(level)):
        for w in range(workers):
            agent = Simulator(world, int(first["right"][i, w]))
            if kind == "index":
                assert state["observation", "index"][i, w] == agent.index()
            else:
                assert state["observation", "image"][i, w, :2].tolist() == agent.useful_bits()
            for t in range(length):
                sign, coin = (int(noise[name][i, t, w]) for name in ("sign", "right"))
                reward, done, index, time, bits = agent.step(int(actions[i, t, w]), sign, coin)
                row, after = timesteps[t, i, w], states[t, i, w]
                assert float(row["reward"]) == reward
                assert bool(row["done"]) == bool(row["terminated"]) == done
                assert bool(after["is_init"]) == done
                assert (int(row["observation", "time"]), int(after["observation", "time"])) == (
                    time,
                    0 if done else time,
                )
                if kind == "index":
                    assert row["observation", "index"] == index
                    assert after["observation", "index"] == agent.index()
                else:
                    assert row["observation", "image"][:2].tolist() == bits
                    assert after["observation", "image"][:2].tolist() == agent.useful_bits()


def test_coins_are_fair_and_distractors_are_new_at_every_step():
    env, level = delayed_chain(40), chain_level(length=3, right=-1)
    noise = env.noise(level, rng.key(1), (4000,))
    for name in ("right", "sign"):
        values, counts = noise[name].unique(return_counts=True)
        assert values.tolist() == ([0, 1] if name == "right" else [-1, 1])
        assert abs(int(counts[0]) - 2000) < 4.5 * 1000**0.5
    both = torch.stack([noise["right"], (noise["sign"] + 1) // 2]).double()
    bits = torch.cat([both.mT, noise["bits"].flatten(1).double()], 1)  # [4000, 2 + 80]
    assert (bits.mean(0) - 0.5).abs().max() < 4.5 * (0.25 / 4000) ** 0.5
    correlation = torch.corrcoef(bits.mT).fill_diagonal_(0.0)
    assert correlation.abs().max() < 5 / 4000**0.5
    steps = [noise[0], noise[1], noise[2], noise[3]]
    states, timesteps = walk(
        env, level, env.reset(level, steps[0]), torch.zeros(4).long(), steps, 0
    )
    seen = timesteps["observation", "image"][:, 2:]
    for t in range(4):
        assert torch.equal(seen[t], noise["bits"][t, 1])
        start = noise["bits"][t, 0] if t == 2 else seen[t]
        assert torch.equal(states["observation", "image"][t, 2:], start)


def test_stacked_vmapped_and_looped_steps_agree(kind):
    env, level = ENVS[kind], levels()
    keys = rng.split(rng.key(4), 4)
    actions = rng.randint(rng.key(5), (4, 11, 3), 0, 2)
    noise = env.noise(level, keys, (4, 11, 3))

    def run(level, actions, key):
        noise = env.noise(level, key, (11, 3))
        return walk(env, level, env.reset(level, noise[0]), actions, noise, 0)

    looped = [run(level[i], actions[i], keys[i]) for i in range(4)]
    vmapped = torch.func.vmap(run)(level, actions, keys)
    state = env.reset(level, noise[:, 0])
    stacked = walk(env, level, state, actions, [noise[:, t] for t in range(11)], 1)
    for part in range(2):
        rows = tree.stack([outcome[part] for outcome in looped])
        assert equal(rows, vmapped[part])
        assert equal(rows, tree.map(lambda leaf: leaf.movedim(0, 1), stacked[part]))


def test_inputs_stay_as_they_are(kind, untouched):
    env, level = ENVS[kind], levels()
    noise = env.noise(level, rng.key(1), (4, 3))
    state, action = env.reset(level, noise), rng.randint(rng.key(5), (4, 3), 0, 2)
    with untouched(level, noise, state):
        after, timestep = env.step(level, state, action, noise)
        optimal_return(level, 3)
        optimal_reward_rate(level)
    assert after.is_locked and timestep.is_locked and level.is_locked
    assert tree.paths(after) == tree.paths(state)
    for a, b in zip(tree.leaves(state), tree.leaves(after), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert timestep["reward"].dtype == D


def test_optima_are_those_of_going_through_everything():
    level = levels()
    for horizon in (0, 1, 3, 4, 9):
        wanted = [best_return(world, horizon) for world in worlds(level)]
        assert optimal_return(level, horizon).tolist() == pytest.approx(wanted, abs=1e-12)
        if horizon:
            wanted = [best_rate(world, horizon) for world in worlds(level)]
            assert optimal_reward_rate(level, horizon).tolist() == pytest.approx(wanted, abs=1e-12)
    free = [best_rate(world, 99) for world in worlds(level)]
    assert optimal_reward_rate(level).tolist() == pytest.approx(free, abs=1e-12)
    assert optimal_return(level, 9).dtype == optimal_reward_rate(level).dtype == D
    assert vmap(optimal_reward_rate)(level).tolist() == pytest.approx(free, abs=1e-12)
    assert optimal_reward_rate(level[2]).item() == pytest.approx(free[2], abs=1e-12)


@pytest.mark.parametrize("right", ["level", "episode"])
def test_an_agent_that_knows_the_right_action_earns_the_optimum(right):
    dist = level_distribution("chain_short", right=right)
    level = dist.sample(rng.split(rng.key(3), 20))
    workers, length = 2, 600

    def apply(params, buffers, td):
        index, time = td["observation", "index"], td["observation", "time"]
        right = index if params is None else params.unsqueeze(-1).expand(index.shape)
        action = torch.where(time == 0, right, 0)  # later ones are of no matter
        return tree.new(
            {"logits": 1e9 * torch.nn.functional.one_hot(action, 2)}, td.batch_size
        ), buffers

    model = Model(lambda key: (None, tree.new({})), apply)
    state = dist.env.reset(level, dist.env.noise(level, rng.key(1), (20, workers)))
    params = level["right"] if right == "level" else None
    _, _, td = rollout(dist.env, model, params, tree.new({}), level, state, rng.key(2), length)
    reward, done = td["next", "reward"], td["next", "done"]
    assert torch.equal(reward, done.float())
    steps = level["length"].unsqueeze(-1)
    assert torch.equal(done.sum(-1), (length // steps).expand(20, workers))
    assert torch.allclose(optimal_reward_rate(level), 1 / level["length"].double())


def test_rewards_carry_gradient():
    def total(reward, noise):
        level = chain_level(length=3, right=1, reward=reward, noise=noise)
        drawn = ENVS["index"].noise(level, rng.key(1), (9, 4))
        state, rewards = ENVS["index"].reset(level, drawn[0]), torch.zeros(())
        for t in range(9):
            action = rng.randint(rng.key(t), (4,), 0, 2)
            state, timestep = ENVS["index"].step(level, state, action, drawn[t])
            rewards = rewards + timestep["reward"].sum()
        return rewards + optimal_return(level, 3) + optimal_reward_rate(level)

    points = [torch.tensor(x, dtype=D, requires_grad=True) for x in (0.7, 0.3)]
    assert torch.autograd.gradcheck(total, points)


def test_levels_broadcast_and_keep_their_dtype():
    level = chain_level(length=torch.tensor([3, 4]), right=1, noise=torch.tensor(0.5, dtype=D))
    assert level.batch_size == (2,) and level["reward"].dtype == D
    assert level["right"].tolist() == [1, 1] and level["noise"].tolist() == [0.5, 0.5]
    assert chain_level(length=3, right=0)["reward"].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"length": 0}, ValueError, "length holds 0, expected values from 1"),
        ({"right": torch.tensor([0, 1, 2, 0])}, ValueError, "right holds 2, expected .* -1 to 1"),
        ({"reward": -1.0}, ValueError, "reward holds -1.0, expected values at least 0"),
        ({"noise": float("nan")}, ValueError, "noise holds nan"),
        ({"length": 3.0}, TypeError, "length is float, expected integers"),
        ({"right": True}, TypeError, "right is bool, expected integers"),
        ({"reward": torch.tensor(1)}, TypeError, "reward is torch.int64, expected floats"),
        ({"noise": torch.ones(4)}, TypeError, "noise is torch.float32, expected floats .*float64"),
        ({"length": torch.tensor([1, 2])}, ValueError, r"shapes are length \(2,\), right \(4,\)"),
    ],
)
def test_bad_levels_are_refused(changes, error, words):
    with pytest.raises(error, match=f"chain_level: .*{words}"):
        levels(**changes)


def test_wrong_actions_noise_and_levels_are_refused(kind):
    env, level = ENVS[kind], levels()
    noise = env.noise(level, rng.key(1), (4, 3))
    state, action = env.reset(level, noise), torch.zeros(4, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match="delayed_chain.step: action is torch.float32, expected"):
        env.step(level, state, action.float(), noise)
    with pytest.raises(ValueError, match=r"action has shape \(3,\), expected \(4, 3\)"):
        env.step(level, state, action[0], noise)
    with pytest.raises(ValueError, match=r"noise has batch size \(4, 2\), expected \(4, 3\)"):
        env.step(level, state, action, noise[:, :2])
    with pytest.raises(ValueError, match=r"shape is \(3,\), expected it to begin with \(4,\)"):
        env.noise(level, rng.key(1), (3,))
    with pytest.raises(ValueError, match="the level has no length, expected one of chain_level"):
        env.noise(level_distribution("small").sample(rng.key(0)), rng.key(1), (3,))
    for name in ("small", "rand_small"):
        with pytest.raises(ValueError, match="grid_world: the level has no walls, expected one of"):
            level_distribution(name).env.noise(level, rng.key(1), (4, 3))
    with pytest.raises(ValueError, match="n_distractors is -1, expected at least 0"):
        delayed_chain(-1)
    with pytest.raises(TypeError, match="n_distractors is a float, expected an int"):
        delayed_chain(2.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="optimal_return: horizon is -1, expected at least 0"):
        optimal_return(level, -1)
