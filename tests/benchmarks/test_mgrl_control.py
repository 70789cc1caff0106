"""The learned discount's own critics, and that what is fixed is the same A2C."""

import mgrl_control
import pytest
import torch

from paramtree import grad, rng, tree
from paramtree.meta import forward_mode

D = torch.float64
SETTING = mgrl_control.SETTINGS["catch"]


def silent(share):
    pass


def values(gamma, chances, reward):
    """Of each state of a chain: V = r + gamma P V."""
    return torch.linalg.solve(torch.eye(len(reward), dtype=D) - gamma * chances, reward)


def slopes(gamma, chances, reward):
    """(1 - gamma) dV / d gamma, by differences."""
    h = 1e-6
    up, down = values(gamma + h, chances, reward), values(gamma - h, chances, reward)
    return (1 - gamma) * (up - down) / (2 * h)


def walked(path, gamma, chances, reward, ends=False):
    """A trajectory ``[1, T]`` through a chain, with its right values."""
    v, u = values(gamma, chances, reward), slopes(gamma, chances, reward)
    now, after = path[:, :-1], path[:, 1:]
    over = torch.zeros(now.shape, dtype=torch.bool)
    over[:, -1] = ends
    own = {"state_value": v, "value_slope": u, "reference_value": 2 * v}
    entries = {name: x[now].unsqueeze(-1) for name, x in own.items()}
    entries["next"] = tree.new({name: x[after].unsqueeze(-1) for name, x in own.items()})
    td = tree.new(entries, now.shape)
    flags = {("next", "done"): over, ("next", "terminated"): over}
    return tree.replace(td, {("next", "reward"): reward[now], **flags})


@pytest.fixture
def chain():
    chances = rng.uniform(rng.key(1), (5, 5), dtype=D)
    return chances / chances.sum(1, keepdim=True), rng.normal(rng.key(2), (5,), dtype=D)


@pytest.mark.parametrize("gamma", [0.3, 0.95])
def test_an_advantage_moves_with_gamma_as_with_the_value_of_each_gamma(chain, gamma):
    path = rng.randint(rng.key(3), (2, 9), 0, 5)
    weight = rng.normal(rng.key(4), (2, 8), dtype=D)

    def sum_of(td, gamma):
        rule = mgrl_control.learning_rule(SETTING, gamma)
        return (weight * rule.apply(tree.new({}), tree.new({}), td)[0]["advantage"]).sum()

    here = torch.tensor(gamma, dtype=D)
    td = walked(path, gamma, *chain, ends=True)
    found = grad(lambda g: sum_of(td, g))(here)
    forward = forward_mode(
        lambda h, s, k: {"sum": sum_of(td, h["gamma"])}, lambda h, s: s["sum"], 1
    )
    _, slope = forward({"gamma": here}, {"sum": torch.zeros((), dtype=D)})
    h = 1e-5
    up, down = (
        sum_of(walked(path, x, *chain, ends=True), torch.tensor(x, dtype=D))
        for x in (gamma + h, gamma - h)
    )
    torch.testing.assert_close(found, (up - down) / (2 * h), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(slope["gamma"], found)


def test_the_slope_of_the_value_is_what_its_critic_learns():
    cycle = torch.eye(5, dtype=D).roll(1, 1)
    path = torch.arange(13).unsqueeze(0) % 5
    td = walked(path, 0.9, cycle, rng.normal(rng.key(2), (5,), dtype=D))
    rule = mgrl_control.learning_rule(SETTING, torch.tensor(0.9, dtype=D))
    out = rule.apply(tree.new({}), tree.new({}), td)[0]
    torch.testing.assert_close(
        out["slope_target"], td["value_slope"].squeeze(-1), rtol=1e-6, atol=1e-7
    )


def test_what_is_fixed_is_what_learns_at_a_meta_rate_of_0():
    setting = SETTING._replace(updates=12, workers=4, meta_rate=0.0)
    seeds = torch.tensor([3, 1000])
    fixed = mgrl_control.fixed_curves(setting, [0.25, 0.5], seeds, silent)
    score, path = mgrl_control.learned_curves(setting, 0.5, seeds, silent)
    assert torch.equal(fixed[1], score)
    assert not torch.equal(fixed[0], score)
    assert torch.equal(path, torch.full_like(path, 0.5))
