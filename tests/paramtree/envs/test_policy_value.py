import numpy as np
import pytest
import torch

from paramtree import compose, nn, rng, td_model, tree
from paramtree.autodiff import vmap
from paramtree.envs import grid_level, level_distribution, optimal_return, policy_value, rollout
from tests.oracles import gridworld

D = torch.float64


def numbers(name, *shape, scale=1.0):
    return scale * rng.normal(rng.fold_in(rng.key(4), name), shape, dtype=D)


def asked(level, n=6):
    """A policy that drifts, and states at which free cells hold the agent."""
    cells, k = level["walls"].shape[-1], level["p_respawn"].shape[-1]
    batch = tuple(level.batch_size)
    index = rng.randint(rng.key(1), (*batch, n), 0, cells * 2**k)
    time = rng.randint(rng.key(2), (*batch, n), 0, 7)
    n_actions = level["table", "landing"].shape[-1] // cells
    logits = numbers("logits", *batch, cells * 2**k, n_actions)
    return logits, numbers("drift", *batch, n_actions), index, time


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize(("k", "n_actions"), [(1, 5), (2, 5), (3, 5), (2, 9), (2, 18)])
def test_agrees_with_going_through_every_outcome(make_levels, world_of, k, n_actions):
    levels = make_levels(6, side=3, k=k, max_steps=6, seed=k, n_actions=n_actions)
    logits, drift, _, _ = asked(levels)
    cells = levels["walls"].shape[-1]
    exists = levels["n_objects"]
    state = rng.randint(rng.key(3), (6, 8), 0, 2**20)
    index = levels["start"].unsqueeze(-1) + cells * (state % 2 ** exists.unsqueeze(-1))
    index[:, 4:] += rng.randint(rng.key(5), (6, 4), 0, 9) - levels["start"].unsqueeze(-1)
    time = rng.randint(rng.key(6), (6, 8), 0, 4)
    found = policy_value(levels, logits, 0.9, index, time, drift=drift)
    assert found.dtype == D and (found.abs() > 0.01).sum() > 9
    for i in range(6):
        world = world_of(levels[i])

        def policy(s, t, i=i):
            return softmax((logits[i, s] + t * drift[i]).numpy())

        for value, s, t in zip(found[i], index[i].tolist(), time[i].tolist(), strict=True):
            there = tuple(bool(s // cells >> j & 1) for j in range(k))
            wanted = gridworld.policy_value(world, policy, 0.9, s % cells, there, t)
            assert value.item() == pytest.approx(wanted, abs=1e-12)


def test_a_policy_that_knows_the_way_is_worth_what_the_best_is():
    """On a corridor with one object that ends it all, to the right and nowhere else."""
    d, gamma = 4, 0.9
    walls = torch.arange((d + 1) ** 2) > d
    one = torch.ones(1, dtype=D)
    cell = torch.tensor([d])
    places = {"walls": walls, "side": d + 1, "start": 0, "object_cell": cell}
    level = grid_level(**places, max_steps=9, reward=one, p_terminate=one, p_respawn=0 * one)
    right = torch.full((2 * (d + 1) ** 2, 5), -1e9, dtype=D)
    right[:, 3] = 0.0
    start = level["table", "start_index"]
    time = torch.arange(11)
    value = policy_value(level, right, gamma, start.expand(11), time)
    wanted = torch.where(time + d <= 9, gamma ** (d - 1), 0.0).to(D)
    assert torch.allclose(value, wanted, atol=1e-15)
    free = policy_value(level, right, 1.0, start, torch.tensor(0))
    assert free == optimal_return(level, 9) == 1.0
    cut = policy_value(level, right, gamma, start.expand(11), time, horizon=5)
    assert torch.allclose(cut, torch.where(time + d <= 5, gamma ** (d - 1), 0.0).to(D), atol=1e-15)


def test_agrees_with_the_mean_return_of_a_tabular_agent():
    """Agents of ``nn.table`` in the world itself, from the start of an episode to its end."""
    world = level_distribution("small")
    level = world.sample(rng.fold_in(rng.key(0), 3))
    assert world.n_states is not None
    see: list = [("observation", "index"), ("observation", "time")]
    agent = compose(actor=td_model(nn.table(world.n_states, 5, 0.2), see, "logits"))
    params, buffers = agent.init(rng.key(1))
    weight = numbers("weight", world.n_states + 1, 5).float()
    params = tree.replace(params, {("actor", "weight"): weight})
    n, length, gamma = 4000, int(level["max_steps"]), 0.9
    state = world.env.reset(level, world.env.noise(level, rng.key(2), (n,)))
    _, _, td = rollout(world.env, agent, params, buffers, level, state, rng.key(3), length)
    done = td["next", "done"]
    first = (done.cumsum(-1) - done.long()) == 0  # of the first episode
    returns = (gamma ** torch.arange(length) * td["next", "reward"] * first).sum(-1)
    start, drift = level["table", "start_index"], 0.2 * weight[-1]
    time = torch.tensor(0)
    value = policy_value(level, weight[:-1], gamma, start, time, drift=drift).item()
    error = (returns.std() / n**0.5).item()
    assert abs(value) > 10 * error
    assert returns.mean().item() == pytest.approx(value, abs=4 * error)
    still = policy_value(level, weight[:-1], gamma, start, time).item()
    assert abs(still - value) > 10 * error  # the drift is seen


def test_stacked_vmapped_single_and_chunked_levels_agree():
    levels = level_distribution("small").sample(rng.split(rng.key(8), 240).reshape(2, 120, 2))
    logits, drift, index, time = asked(levels)
    gamma = rng.uniform(rng.key(9), (2, 120), dtype=D)
    found = policy_value(levels, logits, gamma, index, time, drift=drift)  # in two chunks
    assert found.shape == (2, 120, 6)

    def one(level, logits, gamma, index, time, drift):
        return policy_value(level, logits, gamma, index, time, drift=drift)

    few = (levels[1], logits[1], gamma[1], index[1], time[1], drift[1])
    some = [part[-9:] for part in few]
    assert torch.allclose(vmap(one)(*some), found[1, -9:])
    for i in (0, 100, 119):
        assert torch.allclose(one(*[part[i] for part in few]), found[1, i])
    gammas = torch.tensor([0.5, 0.9], dtype=D)
    many = vmap(lambda g: policy_value(levels, logits, g, index, time))(gammas)
    for row, g in zip(many, gammas.tolist(), strict=True):
        assert torch.allclose(row, policy_value(levels, logits, g, index, time))


def test_gradients_are_those_of_central_differences(make_levels):
    level = make_levels(1, side=2, k=2, max_steps=4, seed=5)[0]
    names = ("walls", "side", "start", "max_steps", "object_cell", "n_objects")
    fields = {name: level[name] for name in names}
    given, drift, index, time = asked(level)

    def value(mix, drift, gamma, reward, p_terminate, p_respawn):
        logits = mix[0] * given + mix[1] * given.sin()
        values = {"reward": reward, "p_terminate": p_terminate, "p_respawn": p_respawn}
        changed = grid_level(**values, **fields)
        return policy_value(changed, logits, gamma, index, time % 3, drift=drift)

    floats = [torch.tensor([0.7, 0.4]), torch.tensor([0.3, 0.2]), torch.tensor([0.4, 0.6])]
    points = [torch.tensor([1.0, 0.3]), drift, torch.tensor(0.9), *floats]
    points = [point.to(D).requires_grad_() for point in points]
    assert torch.autograd.gradcheck(value, points)
    assert torch.autograd.gradgradcheck(value, points, atol=1e-5)


def test_inputs_stay_as_they_are(untouched):
    levels = level_distribution("small").sample(rng.split(rng.key(8), 3))
    logits, drift, index, time = asked(levels)
    given = tree.new({"logits": logits, "drift": drift, "index": index, "time": time}, (3,))
    with untouched(levels, given):
        policy_value(levels, logits, 0.9, index, time, drift=drift)


def test_what_does_not_fit_is_refused():
    level = level_distribution("small").sample(rng.key(0))
    logits, drift, index, time = asked(level)
    good = {"level": level, "logits": logits, "gamma": 0.9, "index": index, "time": time}
    moving = level_distribution("rand_small").sample(rng.key(0))
    for error, message, change in (
        (ValueError, "the level has no object_cell", {"level": moving}),
        (ValueError, r"logits has shape \(287, 5\), expected \(288, 5\)", {"logits": logits[1:]}),
        (ValueError, r"drift has shape \(4,\), expected \(5,\)", {"drift": drift[1:]}),
        (TypeError, "logits is torch.int64, expected floats", {"logits": logits.long()}),
        (TypeError, "index is torch.int32, expected torch.int64", {"index": index.int()}),
        (ValueError, r"index has shape \(6,\) and time \(5,\)", {"time": time[1:]}),
        (ValueError, "index holds 288, expected 0 to 287", {"index": 0 * index + 288}),
        (ValueError, "time holds -1, expected at least 0", {"time": 0 * time - 1}),
        (ValueError, "horizon is -1, expected at least 0", {"horizon": -1}),
        (TypeError, "horizon is 2.0, expected an int or None", {"horizon": 2.0}),
    ):
        with pytest.raises(error, match=f"policy_value: {message}"):
            policy_value(**{**good, **change})
