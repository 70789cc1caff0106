"""The bandit over hyper-parameters, against lists and loops."""

import math

import numpy as np
import pytest
import torch

from paramtree import rng, tree, vmap
from paramtree.meta import Bandit, bandit_draw, bandit_init, bandit_logits, bandit_update


def arms(n):
    return tree.new({"optimizer": tree.new({"rate": torch.arange(n).float()}, (n,))}, (n,))


class Lists:
    """The same as lists of the last results."""

    def __init__(self, n, window):
        self.results, self.trials, self.window = [[] for _ in range(n)], [0] * n, window

    def told(self, arm, result):
        self.results[arm] = (self.results[arm] + [result])[-self.window :]
        self.trials[arm] += 1

    def logits(self, temperature, bonus):
        means = [np.mean(r) if r else 0.0 for r in self.results]
        rows = zip(means, self.trials, strict=True)
        return np.array([(mean + bonus / math.sqrt(max(n, 1))) / temperature for mean, n in rows])


@pytest.mark.parametrize("window", [1, 3, 10])
def test_it_remembers_the_last_results(window):
    bandit = Bandit(arms(4), temperature=0.3, bonus=0.7, window=window)
    state, lists = bandit_init(bandit), Lists(4, window)
    chance = np.random.default_rng(0)
    for _ in range(12):
        arm, result = chance.integers(0, 4, 9), chance.normal(size=9)
        over = chance.random(9) < 0.6
        result[3] = math.nan  # a life whose numbers were not finite teaches nothing
        before = tree.map(torch.clone, state)
        told = torch.tensor(arm), torch.tensor(result), torch.tensor(over)
        after = bandit_update(state, *told)
        assert all(map(torch.equal, tree.leaves(before), tree.leaves(state)))
        state = after
        for a, r, o in zip(arm, result, over, strict=True):
            if o and not math.isnan(r):
                lists.told(a, r)
        assert state["trials"].tolist() == lists.trials
        torch.testing.assert_close(
            bandit_logits(bandit, state).double(),
            torch.tensor(lists.logits(0.3, 0.7)),
            rtol=1e-5,
            atol=1e-5,
        )


def test_it_draws_by_worth_and_bonus():
    bandit = Bandit(arms(3))
    state = bandit_init(bandit)
    state = bandit_update(state, torch.tensor([0]), torch.tensor([0.1]), torch.tensor([True]))
    drawn = bandit_draw(bandit, state, rng.key(0), 20_000)
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    logits = torch.tensor([(0.1 + 0.2) / 0.1, 0.2 / 0.1, 0.2 / 0.1])
    torch.testing.assert_close(share, logits.softmax(0), rtol=0, atol=4 * 0.5 / 20_000**0.5)


def test_many_bandits_are_one_more_axis():
    bandit = Bandit(arms(2))
    first = bandit_init(bandit)
    arm, over = torch.tensor([[0, 1], [1, 1]]), torch.ones(2, 2, dtype=torch.bool)
    result = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    states = vmap(lambda a, r, o: bandit_update(first, a, r, o))(arm, result, over)
    for i in range(2):
        alone = bandit_update(first, arm[i], result[i], over[i])
        assert all(map(torch.equal, tree.leaves(tree.lock(states[i])), tree.leaves(alone)))


def test_where_nobody_lives_nothing_is_learned():
    state, none = bandit_init(Bandit(arms(2))), torch.zeros(0)
    after = bandit_update(state, none.long(), none, none.bool())
    assert all(map(torch.equal, tree.leaves(state), tree.leaves(after)))


def test_bad_input_is_refused():
    for bandit, error, text in (
        (Bandit(tree.new({}, (2,))), ValueError, "arms has no tensors"),
        (Bandit(arms(2), temperature=0.0), ValueError, "temperature is 0.0, expected more than 0"),
        (Bandit(arms(2), bonus=-1.0), ValueError, "bonus is -1.0, expected at least 0"),
        (Bandit(arms(2), window=0), ValueError, "window is 0, expected at least 1"),
        (Bandit(torch.ones(2)), TypeError, "arms"),
    ):
        with pytest.raises(error, match=text):
            bandit_init(bandit)
    state, one = bandit_init(Bandit(arms(2))), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"bandit_update: over has shape \(2,\), expected \(1,\)"):
        bandit_update(state, one, torch.ones(1), torch.ones(2, dtype=torch.bool))
    yes, result = torch.ones(1, dtype=torch.bool), torch.ones(1)
    for told, text in (
        ((one.float(), result, yes), "arm is torch.float32, expected torch.int64"),
        ((one, one, yes), "result is torch.int64, expected a float dtype"),
        ((one, result, one), "over is torch.int64, expected torch.bool"),
    ):
        with pytest.raises(TypeError, match=f"bandit_update: {text}"):
            bandit_update(state, *told)
