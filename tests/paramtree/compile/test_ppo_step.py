"""A whole step of PPO is one graph, which equals the eager step and is compiled once."""

from functools import partial

import pytest
import torch

from paramtree import rng, tree, vmap
from tests.paramtree.compile import ppo
from tests.paramtree.compile.compiled import Compiled, assert_same, numbers

NET = ppo.agent()
HYPER = numbers(**ppo.HYPER)


def test_an_update_in_minibatches_is_one_graph():
    step = Compiled(partial(ppo.update, NET, minibatches=2))
    state = ppo.start(NET, rng.key(0))
    for k in range(2):  # the second time with other numbers in everything, the counts included
        key = rng.fold_in(rng.key(1), k)
        state, metrics = step.same(HYPER, state, ppo.trajectories(NET, state, key), key)
    assert step.graphs == 1
    assert int(state["optimizer", "adam", "count"]) == 4 and metrics["clip_fraction"] > 0
    assert ("actor", "linear_0", "weight") in tree.paths(state["params"])


def test_a_rollout_and_the_epochs_after_it_are_one_graph():
    env, level, workers = ppo.world()
    step = Compiled(partial(ppo.train, NET, env, length=2, epochs=2))
    state = tree.merge(ppo.start(NET, rng.key(0)), tree.new({"env": workers(rng.key(1))}))
    for k in range(2):
        state, _ = step.same(level, HYPER, state, rng.fold_in(rng.key(2), k))
    assert step.graphs == 1
    assert int(state["env", "time"].max()) == 4


def test_seeds_with_rates_of_their_own_are_one_graph():
    """A rollout and its update under vmap, inside of what is compiled: ``params[seed]``."""
    env, level, workers = ppo.world(workers=2)
    rates = torch.tensor([1e-2, 1e-3, 1e-4])

    def born(key):
        return tree.new({**tree.entries(ppo.start(NET, key)), "env": workers(key)})

    def one(rate, state, key):
        return ppo.train(NET, env, level, {**HYPER, "lr": rate}, state, key, length=2)

    keys = rng.split(rng.key(3), 3)
    state, step = vmap(born)(keys), Compiled(vmap(one))
    step.same(rates, state, keys)
    after, _ = step.same(rates, state, rng.split(rng.key(4), 3))
    assert step.graphs == 1
    alone, _ = one(rates[1], tree.lock(state[1]), rng.split(rng.key(4), 3)[1])
    assert_same(tree.lock(after["params"][1]), alone["params"], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, on import
def test_inductor_gives_the_same_update_in_float32():
    net = ppo.agent(width=32, dtype=torch.float32)
    step = Compiled(partial(ppo.update, net), backend="inductor")
    state = ppo.start(net, rng.key(0))
    for k in range(2):
        key = rng.fold_in(rng.key(1), k)
        td = ppo.trajectories(net, state, key, (8, 16))
        state, _ = step.same(HYPER, state, td, key, rtol=1e-5, atol=1e-5)
    assert step.graphs == 1
