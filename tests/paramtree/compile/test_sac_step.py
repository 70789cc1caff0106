"""A whole step of SAC, with three optimizers and a target network, is one graph."""

from functools import partial

from paramtree import rng, tree
from tests.paramtree.compile import sac
from tests.paramtree.compile.compiled import Compiled, numbers

AGENT = sac.agent()
HYPER = numbers(**sac.HYPER)


def test_a_step_is_one_graph():
    step = Compiled(partial(sac.update, AGENT))
    first = state = sac.start(AGENT, rng.key(0))
    for k in range(2):
        key = rng.fold_in(rng.key(1), k)
        state, metrics = step.same(HYPER, state, sac.transitions(key), key)
    assert step.graphs == 1
    assert metrics["critic", "td_error"].shape == (8,)
    assert state["optimizer"].keys() == state["params"].keys()
    moved = tree.map(lambda new, old: (new - old).abs().max() > 0, state, first)
    assert all(tree.leaves(moved))
