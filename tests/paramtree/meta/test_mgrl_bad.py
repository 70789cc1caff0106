"""Agents whose numbers break in a training by meta-gradients: named, left out, and born anew."""

import pytest
import torch

from paramtree import meta, nn, optim, rng, td_model, tree
from tests.paramtree.meta import mgrl_problems
from tests.paramtree.meta.mgrl_problems import training
from tests.paramtree.meta.ways import assert_same

NETWORK = {
    "hyper": meta.hyper_network(
        td_model(nn.linear(4, 1), "observation", "gamma"), {"gamma": "sigmoid"}
    ),
    "rule": lambda h: meta.a2c_rule(0.1, 0.8),
    "optimizer": lambda h: optim.adam(0.1),
}
WAYS = {
    "truncated": {},
    "trace": {"method": "trace", "exact": True},
    "network": NETWORK,
}


def first(made, options):
    """In float64, but for a network: those that are born read and write the default dtype."""
    return made.init(rng.key(1)) if options is NETWORK else mgrl_problems.first(made)


def poisoned(state, *tasks):
    """The state with a gravity of NaN for some agents."""
    gravity = state["agents", "level", "gravity"].clone()
    gravity[list(tasks)] = torch.nan
    return tree.replace(state, {("agents", "level", "gravity"): gravity})


def rows(agents, *tasks):
    return [x[list(tasks)] for x in tree.leaves(agents)]


def finite(state):
    return all(bool(x.isfinite().all()) for x in tree.leaves(state))


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_a_task_that_breaks_has_no_part_in_the_step(options):
    """The mean without each of three, summed over the three, is three times the mean of all."""
    made = training(updates=1, tasks=3, **options)
    state = first(made, options)
    clean, metrics = made.step(state)
    assert metrics["bad"].tolist() == [False] * 3
    total, losses = tree.zeros_like(clean["eta"]), []
    for i in range(3):
        after, told = made.step(poisoned(state, i))
        assert told["bad"].tolist() == [j == i for j in range(3)]
        assert finite(after) and finite(told)
        others = [j for j in range(3) if j != i]
        for name in ("agents", *({"trace"} & set(clean.keys()))):
            pairs = zip(rows(after[name], *others), rows(clean[name], *others), strict=True)
            assert all(torch.equal(x, y) for x, y in pairs)
        total = tree.add(total, after["eta_optimizer"])
        losses.append(told["meta_loss"])
        assert not tree.allclose(after["eta_optimizer"], clean["eta_optimizer"], rtol=1e-3)
    wanted = tree.scale(clean["eta_optimizer"], 3.0)
    close = {"rtol": 1e-4, "atol": 1e-7} if options is NETWORK else {"rtol": 1e-9, "atol": 1e-12}
    assert_same(total, wanted, **close)
    torch.testing.assert_close(sum(losses), 3 * metrics["meta_loss"])


def test_in_its_place_an_agent_is_born_with_all_that_belongs_to_it():
    options = {"method": "trace", "exact": True, "optimizer": lambda h: optim.adam(h["lr"])}
    made = training(updates=1, tasks=3, **options)
    state = first(made, options)
    for _ in range(2):
        state, _ = made.step(state)
    after, _ = made.step(poisoned(state, 1))
    agents, trace = after["agents"], after["trace"]
    assert agents["level", "gravity"].tolist() == pytest.approx([9.8] * 3)
    assert not any(bool(x[1].any()) for x in tree.leaves(agents["optimizer"]))
    assert all(bool(x[0].any()) for x in tree.leaves(agents["optimizer"]))
    assert all(not bool(x[1].any()) for x in tree.leaves(trace) if x.is_floating_point())
    assert all(bool(x[i].any()) for x in tree.leaves(trace["params"]) for i in (0, 2))
    assert bool((agents["episodes", "count"][1] < agents["episodes", "count"][0]).all())
    later = tree.replace(state, {"step": state["step"] + 5})
    births = [made.step(poisoned(at, 1))[0]["agents", "params"] for at in (state, later)]
    assert not torch.equal(*(rows(params, 1)[0] for params in births))
    following, told = made.step(after)
    assert not bool(told["bad"].any()) and finite(following)
    assert not torch.equal(rows(following["agents", "params"], 1)[0], rows(agents["params"], 1)[0])


@pytest.mark.parametrize("tasks", [None, 2])
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_where_every_task_breaks_eta_stays_and_all_are_born_anew(options, tasks):
    made = training(updates=1, tasks=tasks, eta_optimizer=optim.sgd(0.1), **options)
    state = first(made, options)
    where = ("agents", "level", "gravity")
    after, told = made.step(tree.replace(state, {where: state[where] * torch.nan}))
    assert bool(told["bad"].all()) and told["bad"].shape == (() if tasks is None else (2,))
    assert_same(after["eta"], state["eta"], rtol=0, atol=0)
    assert float(told["meta_gradient"]) == 0.0 and finite(told) and finite(after)
    moved, told = made.step(after)
    assert not bool(told["bad"].any()) and float(told["meta_gradient"]) > 0 and finite(moved)
