"""Workers that come back to where a state has them, random numbers of their own included."""

import gymnasium
import numpy as np
import pytest
import torch
from torch.distributions import Categorical

import losses
from paramtree import nn, rng, td_model, tree
from paramtree.cli.outcome import Refused
from paramtree.cli.world import RECENT, World
from paramtree.model import Model

NOTHING = tree.new({})


def chance(n):
    """An agent that takes each of n actions as often."""

    def apply(params, buffers, td):
        logits = torch.zeros(*td.batch_size, n)
        return tree.new({**tree.entries(td), "logits": logits}, td.batch_size), buffers

    return Model(lambda key: (NOTHING, NOTHING), apply)


def played(world, state, rounds, length, n, say=pytest.fail):
    """States after some rounds, and all that was seen."""
    seen = []
    for i in range(rounds):
        world.enter(state, say)
        agent = chance(n), NOTHING, NOTHING
        _, td = world.play(*agent, rng.fold_in(rng.key(9), i), length, Categorical)
        seen.append(td)
        state = world.leave()
    return state, seen


def equal(left, right):
    pairs = zip(tree.leaves(left), tree.leaves(right), strict=True)
    return tree.paths(left) == tree.paths(right) and all([torch.equal(a, b) for a, b in pairs])


CASES = {
    "CartPole": ("CartPole-v1", (), 2),
    "slippery": ("FrozenLake-v1", ("map_name=8x8",), 4),  # draws random numbers in each step
    "tuples": ("Blackjack-v1", (), 2),
}


@pytest.mark.parametrize(("name", "arguments", "n"), CASES.values(), ids=CASES)
def test_another_process_goes_on_as_the_first_would_have(name, arguments, n):
    first = World(name, arguments, None, 3, "cpu")
    state, _ = played(first, first.begin(rng.key(1)), 2, 7, n)
    end, wanted = played(first, state, 3, 7, n)
    other = World(name, arguments, None, 3, "cpu")
    other.begin(rng.key(5))  # wherever it was
    copy = tree.map(torch.clone, state)
    after, found = played(other, copy, 3, 7, n)
    assert equal(end, after)
    assert all([equal(a, b) for a, b in zip(wanted, found, strict=True)])
    again, _ = played(first, state, 3, 7, n)  # the same process comes back, too
    assert equal(end, again)


def test_where_nothing_was_lost_nothing_is_played_again(monkeypatch):
    world = World("CartPole-v1", (), None, 2, "cpu")
    state, _ = played(world, world.begin(rng.key(1)), 1, 5, 2)
    monkeypatch.setattr("paramtree.interop.gymnasium.reset", lambda *_, **__: pytest.fail("reset"))
    played(world, state, 2, 3, 2)


def test_each_episode_is_that_of_its_own_seed():
    """With gymnasium alone: a seed and the actions make the same episode."""
    world = World("FrozenLake-v1", ("map_name=8x8",), None, 2, "cpu")
    state, (td,) = played(world, world.begin(rng.key(2)), 1, 80, 4)
    assert state["episode"].min() >= 1
    for worker in range(2):
        numbers = [rng.fold_in(rng.fold_in(rng.key(2), worker), n) for n in range(8)]
        env = gymnasium.make("FrozenLake-v1", map_name="8x8")
        episode = count = 0
        seen, _ = env.reset(seed=int(rng.bits(numbers[0], (1,))))
        for step in td[worker]:
            assert int(step["observation"]) == seen
            seen, reward, terminated, truncated, _ = env.step(int(step["action"]))
            count += 1
            assert float(step["next", "reward"]) == reward
            assert bool(step["next", "done"]) == (terminated or truncated)
            if terminated or truncated:
                episode, count = episode + 1, 0
                seen, _ = env.reset(seed=int(rng.bits(numbers[episode], (1,))))
        assert (int(state["episode"][worker]), int(state["count"][worker])) == (episode, count)
        sent, acted = state["actions"][worker], td[worker]["action"]
        assert torch.equal(sent[:count], acted[80 - count :]) and not sent[count:].any()


def test_returns_are_those_of_whole_episodes():
    world = World("CartPole-v1", (), None, 2, "cpu")
    state, total = world.begin(rng.key(3)), 0
    world.enter(state, pytest.fail)
    assert set(world.metrics()) == {"returns", "episodes"}
    ended = []
    for _ in range(12):
        state, (td,) = played(world, state, 1, 40, 2)
        metrics = world.metrics()
        ended += metrics["returns"].tolist()
        total += 80
        assert sum(ended) + float(state["running"].sum()) == total
        assert int(metrics["episodes"]) == int(state["ended"]) == len(ended)
        assert float(metrics["return"]) == pytest.approx(np.mean(ended[-RECENT:]))
    assert len(ended) > RECENT


class Forgetful(gymnasium.Env):
    """Draws from where no seed reaches."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    source = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        return self.source.random(1, np.float32), {}

    def step(self, action):
        return self.source.random(1, np.float32), 1.0, False, False, {}


def test_an_environment_that_is_not_deterministic_is_told_of_and_begins_anew():
    gymnasium.register("Forgetful-v0", Forgetful, max_episode_steps=5)
    try:
        world = World("Forgetful-v0", (), None, 2, "cpu")
        state, _ = played(world, world.begin(rng.key(1)), 1, 3, 2)
        told = []
        after, (td,) = played(world, tree.map(torch.clone, state), 1, 4, 2, told.append)
        (text,) = told
        assert text.startswith("Forgetful-v0 is not deterministic")
        assert bool(td["is_init"][:, 0].all()) and after["episode"].tolist() == [1, 1]
        assert after["running"].tolist() == [4.0, 4.0]
    finally:
        del gymnasium.registry["Forgetful-v0"]


def test_an_episode_ends_at_the_limit():
    world = World("Pendulum-v1", ("g=9.0",), 4, 1, "cpu")
    assert world.rescale
    agent = td_model(nn.normal_head(3, 1), "observation", ["loc", "scale"])
    params, buffers = agent.init(rng.key(0))
    world.enter(world.begin(rng.key(1)), pytest.fail)
    _, td = world.play(agent, params, buffers, rng.key(2), 9, losses.independent_normal)
    assert td["next", "done"][0].nonzero().flatten().tolist() == [3, 7]
    assert not td["next", "terminated"].any() and world.leave()["actions"].shape == (1, 4, 1)


def test_what_isnt_registered_is_refused():
    with pytest.raises(Refused, match="the nearest are 'Pendulum-v1'"):
        World("pendulum", (), None, 1, "cpu")
