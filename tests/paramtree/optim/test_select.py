import pytest
import torch
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import (
    adam,
    add_decayed_weights,
    apply_updates,
    chain,
    freeze,
    masked,
    partition,
    scale,
    selective_transform,
    sgd,
    trace,
)

WEIGHT, BIAS = ("policy", "linear_0", "weight"), ("policy", "linear_0", "bias")


def run(optimizer, params, steps=3):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(tree.map(torch.sin, params), state, params)
        params = apply_updates(params, updates)
    return params, state


def assert_trees_equal(got, wanted):
    assert tree.paths(got) == tree.paths(wanted)
    assert all(map(torch.equal, tree.leaves(got), tree.leaves(wanted)))


def test_masked_transforms_what_matches_and_passes_the_rest_on(params):
    grads = tree.map(torch.sin, params)
    optimizer = masked(add_decayed_weights(0.1), "**.weight")
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert_close(updates[WEIGHT], grads[WEIGHT] + 0.1 * params[WEIGHT])
    assert torch.equal(updates[BIAS], grads[BIAS]) and torch.equal(updates["scale"], grads["scale"])
    assert updates.is_locked and list(updates.keys()) == list(params.keys())


def test_masked_state_has_the_matched_names_alone(params):
    state = masked(adam(0.1), "**.weight", "policy.*.weight", "scale").init(params)
    assert tree.paths(state["adam", "mu"]) == [WEIGHT, ("scale",)]  # two patterns may meet
    state = selective_transform(adam(0.1), "**.weight").init(params)
    assert tree.paths(state["adam", "mu"]) == [BIAS, ("scale",)]
    assert tree.paths(freeze("**.weight").init(params)) == []


def test_patterns_may_be_paths_and_predicates(params):
    wanted, _ = run(masked(adam(0.1), "**.weight"), params)
    for pattern in (WEIGHT, lambda path, leaf: leaf.ndim == 2):
        assert_trees_equal(run(masked(adam(0.1), pattern), params)[0], wanted)


def test_a_predicate_is_asked_of_the_params(params):
    """Gradients that differ from them in what the predicate reads change nothing."""
    optimizer = masked(scale(2.0), lambda path, leaf: leaf is params["scale"])
    updates, _ = optimizer.update(tree.map(torch.sin, params), optimizer.init(params), params)
    assert_close(updates["scale"], 2 * torch.sin(params["scale"]))


def test_freeze_stops_bad_gradients_too(params):
    bad = tree.map(lambda leaf: leaf * float("nan"), params)
    updates, _ = freeze("policy").update(bad, freeze("policy").init(params), params)
    assert updates[WEIGHT].eq(0).all() and updates[BIAS].eq(0).all() and updates["scale"].isnan()


def test_selective_transform_is_the_optimizer_alone_on_the_rest(params):
    got, state = run(selective_transform(adam(0.1), "policy"), params)
    rest, alone = run(adam(0.1), tree.select(params, "scale"))
    assert_trees_equal(tree.select(got, "policy"), tree.select(params, "policy"))
    assert_trees_equal(tree.select(got, "scale"), rest)
    assert_trees_equal(state, alone)
    everything, state = run(selective_transform(adam(0.1), "**"), params)
    assert_trees_equal(everything, params)


def test_inside_a_chain_and_a_partition(params):
    decay = masked(add_decayed_weights(0.1), "**.weight")
    optimizer = partition(
        {"policy": chain(decay=decay, sgd=sgd(0.5)), "scale": selective_transform(adam(0.1), "**")}
    )
    got, state = run(optimizer, params, steps=1)
    assert_close(got[WEIGHT], params[WEIGHT] * 0.95 - 0.5 * params[WEIGHT].sin())
    assert_close(got[BIAS], params[BIAS] - 0.5 * params[BIAS].sin())
    assert torch.equal(got["scale"], params["scale"])
    assert list(state["policy"].keys()) == ["decay", "sgd"]


def test_gradients_of_tasks(params):
    def outer(rate, params):
        optimizer = chain(part=masked(adam(rate, eps=0.1), "policy"), stay=freeze("**.bias"))
        return sum(leaf.square().sum() for leaf in tree.leaves(run(optimizer, params)[0]))

    rates = torch.tensor([0.1, 0.2], dtype=torch.float64)
    tasks = [params, tree.map(torch.cos, params)]
    got = paramtree.vmap(torch.func.grad(outer))(rates, tree.stack(tasks))
    for i, (rate, task) in enumerate(zip(rates, tasks, strict=True)):
        step = torch.tensor(1e-6, dtype=torch.float64)
        central = (outer(rate + step, task) - outer(rate - step, task)) / (2 * step)
        assert_close(got[i], central, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "fn"),
    [
        (lambda *names: masked(adam(0.1), *names), "masked"),
        (lambda *names: freeze(*names), "freeze"),
        (lambda *names: selective_transform(adam(0.1), *names), "selective_transform"),
    ],
    ids=["masked", "freeze", "selective"],
)
def test_bad_patterns(make, fn, params):
    with pytest.raises(ValueError, match=f"^{fn}: no patterns given"):
        make()
    with pytest.raises(TypeError, match=f"^{fn}: the path is 3"):
        make(3)
    message = f"^{fn}: 'polcy' matches nothing; the nearest names are 'policy'"
    with pytest.raises(ValueError, match=message):
        make("scale", "polcy").init(params)
    optimizer = make("policy")
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=f"^{fn}: the names differ: only params has 'scale'"):
        optimizer.update(tree.exclude(params, "scale"), state, params)
    with pytest.raises(TypeError, match=f"^{fn}: params at 'n' is torch.int64"):
        optimizer.init(tree.merge(params, tree.new({"n": torch.ones((), dtype=torch.int64)})))


def test_bad_inner_transforms(params):
    with pytest.raises(TypeError, match="masked: inner is a float, expected a Transform"):
        masked(0.1, "policy")
    with pytest.raises(TypeError, match="selective_transform: optimizer is a str"):
        selective_transform("policy", "scale")
    state = masked(adam(0.1), "policy").init(params)
    with pytest.raises(ValueError, match="another optimizer"):
        masked(trace(0.1), "policy").update(params, state, params)
    with pytest.raises(ValueError, match="names differ"):
        masked(adam(0.1), "scale").update(params, state, params)
