"""Meta-gradients of hyper-parameters, against central differences of the whole training step."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

import losses
from paramtree import meta, nn, optim, td_model, tree, with_next
from tests.paramtree.meta.mgrl_problems import (
    AGENT,
    CONSTRAINTS,
    NUMBERS,
    RULES,
    D,
    first,
    gradient,
    judgment,
    meta_loss,
    training,
)
from tests.paramtree.meta.problems import central
from tests.paramtree.meta.ways import assert_same

CLOSE = {"rtol": 1e-6, "atol": 1e-10}  # differences of J' to 1e-15 over 2e-5
difference = partial(central, step=1e-5)


def ways(name, updates, **options):
    """The same training by each way that is exact from its first state on."""
    methods = ({}, {"method": "forward"}, {"method": "trace", "exact": True})
    return [training(name, updates, **options, **method) for method in methods]


@pytest.mark.parametrize("updates", [2, 5])
@pytest.mark.parametrize("name", RULES)
def test_each_way_is_exact_for_each_rule(name, updates):
    made = ways(name, updates)
    state = first(made[0])
    wanted = difference(meta_loss(made[0], state), state["eta"])
    assert set(wanted.keys()) == set(RULES[name][1])
    # a ratio beyond PPO's range has no gradient, one within doesn't know of the range
    flat = {"clip_epsilon"} & set(wanted.keys())
    assert all((x.abs() > 1e-5) != (key in flat) for key, x in wanted.items())
    for one in made:
        assert_same(gradient(one, first(one)), wanted, **CLOSE)


def test_a_schedule_has_a_gradient_for_each_update():
    made = ways("a2c", 3, hyper=meta.hyper_schedule(NUMBERS, 3))
    state = first(made[0])
    wanted = difference(meta_loss(made[0], state), state["eta"])
    assert all(x.shape == (3,) and bool((x != 0).all()) for x in tree.leaves(wanted))
    for one in made:
        assert_same(gradient(one, first(one)), wanted, **CLOSE)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_window_has_what_the_last_updates_do(window):
    state = first(training("ppo", 3, hyper=meta.hyper_schedule(RULES["ppo"][1], 3)))
    each = gradient(training("ppo", 3, hyper=meta.hyper_schedule(RULES["ppo"][1], 3)), state)
    wanted = tree.map(lambda x: x[3 - window :].sum(), each)
    made = training("ppo", 3, window=window)
    assert_same(gradient(made, first(made)), wanted, rtol=1e-9, atol=1e-12)


def test_a_network_gives_discounts_to_each_state():
    net = td_model(nn.mlp(4, 3, 1, activation=torch.tanh), "observation", "gamma")
    options = {
        "hyper": meta.hyper_network(net, {"gamma": "sigmoid"}),
        "rule": lambda h: meta.a2c_rule(0.1, 0.8),  # the td's gamma wins
        "optimizer": lambda h: optim.sgd(0.3),
    }
    made = ways("a2c", 2, **options)
    state = first(made[0])
    wanted = difference(meta_loss(made[0], state), state["eta"])
    assert all(bool(x.abs().max() > 1e-6) for x in tree.leaves(wanted))
    for one in made:
        assert_same(gradient(one, first(one)), wanted, **CLOSE)


def test_a_network_that_says_the_same_everywhere_is_a_number():
    net = td_model(nn.linear(4, 1), "observation", "gamma")
    rates = {"rule": lambda h: meta.a2c_rule(h.get("gamma", 0.1), 0.8)}
    rates["optimizer"] = lambda h: optim.sgd(0.3)
    numbers = training(hyper=meta.hyper_numbers({"gamma": 0.7}), **rates)
    made = training(hyper=meta.hyper_network(net, {"gamma": "sigmoid"}), **rates)
    state = first(made)
    same = {"weight": torch.zeros(1, 4, dtype=D), "bias": torch.tensor([0.7], dtype=D).logit()}
    at = tree.replace(state, {"eta": tree.new(same)})
    (ours, shown), (wanted, _) = made.step(at), numbers.step(first(numbers))
    assert_same(ours["agents", "params"], wanted["agents", "params"], rtol=1e-6, atol=1e-7)
    assert_close(shown["gamma"], torch.tensor(0.7, dtype=D))
    assert_close(
        ours["eta_optimizer", "bias"][0], wanted["eta_optimizer", "gamma"], rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("name", ["a2c", "vtrace"])
def test_the_optimizer_is_part_of_the_pipeline(name):
    made = ways(name, 3, optimizer=lambda h: optim.adam(0.1 * h["lr"]))
    state = first(made[0])
    wanted = difference(meta_loss(made[0], state), state["eta"])
    for one in made:
        assert_same(gradient(one, first(one)), wanted, **CLOSE)


@pytest.mark.parametrize("method", ["truncated", "forward"])
def test_agents_that_share_eta_are_averaged(method):
    made = training("a2c", 2, tasks=2, method=method)
    state = first(made)
    assert state["agents"].batch_size == (2,) and state["eta"].batch_size == ()
    wanted = difference(meta_loss(made, state), state["eta"])
    assert_same(gradient(made, state), wanted, **CLOSE)
    after, metrics = made.step(state)
    each = []
    for i in range(2):
        one = tree.lock(after["agents"][i])
        td = with_next(AGENT)(one["params"], one["buffers"], one["trajectory"])
        each.append(losses.total(judgment(td, torch.distributions.Categorical)))
    assert_close(metrics["meta_loss"], sum(each) / 2)


# ---------------------------------------------------------------------------------- the trace


@pytest.mark.parametrize("updates", [1, 2])
def test_an_exact_trace_is_the_derivative_through_the_whole_life(updates):
    made = training("a2c", updates, method="trace", exact=True)
    state = first(made)
    wanted = difference(meta_loss(made, state, steps=2), state["eta"])
    assert_same(gradient(made, state, steps=2), wanted, **CLOSE)
    cut = gradient(training("a2c", updates, method="trace", exact=True, decay=0.5), state, 2)
    assert not torch.allclose(cut["gamma"], wanted["gamma"], rtol=1e-2)


def test_a_trace_that_forgets_at_once_is_the_last_update():
    trace, last = training("vtrace", 1, method="trace", decay=0.0), training("vtrace", 1)
    ours, wanted = (gradient(made, first(made), 3) for made in (trace, last))
    assert_same(ours, wanted, rtol=1e-9, atol=1e-13)


def test_the_trace_of_the_paper_accumulates_what_eta_does_in_each_update():
    """z = 0.7 z + df/d eta, each term by differences, and J' along z by differences."""
    decay, step = 0.7, 1e-5
    made = training("a2c", 1, method="trace", decay=decay)
    state, traces = first(made), {name: 0.0 for name in NUMBERS}
    for _ in range(3):
        for name in NUMBERS:
            ends = []
            for sign in (1, -1):
                eta = tree.map(torch.clone, state["eta"])
                moved = tree.replace(eta, {name: eta[name] + sign * step})
                after, _ = made.step(tree.replace(state, {"eta": moved}))
                ends.append(tree.ravel(after["agents", "params"])[0])
            traces[name] = decay * traces[name] + (ends[0] - ends[1]) / (2 * step)
        state, _ = made.step(state)
    agents = state["agents"]
    flat, unravel = tree.ravel(agents["params"])

    def rated(params):
        td = with_next(AGENT)(unravel(params), agents["buffers"], agents["trajectory"])
        out = judgment(td, torch.distributions.Categorical)
        return sum(x for key, x in out.items() if key.startswith("loss_"))

    for name, z in traces.items():
        wanted = (rated(flat + step * z) - rated(flat - step * z)) / (2 * step)
        assert_close(state["eta_optimizer", name], wanted, rtol=1e-5, atol=1e-9)


def test_constraints_are_the_ones_given():
    hyper = meta.hyper_numbers(RULES["vtrace"][1], {**CONSTRAINTS, "lr": "softplus"})
    usual, other = training("vtrace"), training("vtrace", hyper=hyper)
    ours, wanted = gradient(other, first(other)), gradient(usual, first(usual))
    rate = torch.tensor(NUMBERS["lr"], dtype=D)  # d lr / d eta is lr under exp
    assert_close(ours["lr"], wanted["lr"] / rate * -torch.expm1(-rate), rtol=1e-5, atol=0)
