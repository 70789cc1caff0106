import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import adam, apply_updates, chain, partition, scale, scale_by_adam, sgd, trace


def test_chain_is_composition_in_the_order_of_the_names(params):
    optimizer = chain(zebra=scale(2.0), momentum=trace(0.5), ant=scale(-1.0))
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(params, state, params)
    assert list(state.keys()) == ["zebra", "momentum", "ant"]
    assert_close(updates["scale"], params["scale"] * -2.0 * (1 + 0.5 + 0.25))
    assert state["momentum", "trace", "policy", "linear_0", "bias"].shape == (3,)
    assert int(state["momentum", "count"]) == 3


def test_chains_nest(params):
    flat = chain(adam=scale_by_adam(), lr=scale(-0.1))
    nested = chain(outer=chain(adam=scale_by_adam()), inner=chain(lr=scale(-0.1)))
    a, _ = flat.update(params, flat.init(params), params)
    b, state = nested.update(params, nested.init(params), params)
    assert all(map(torch.equal, tree.leaves(a), tree.leaves(b)))
    assert state["outer", "adam", "mu", "scale"].shape == ()


def test_partition_is_an_optimizer_for_each_part(params):
    optimizer = partition({"policy": adam(0.1), "scale": sgd(0.5)})
    state, moved = optimizer.init(params), params
    parts = [
        (tree.select(params, pattern), make)
        for pattern, make in [("policy", adam(0.1)), ("scale", sgd(0.5))]
    ]
    states = [make.init(part) for part, make in parts]
    for _ in range(3):
        grads = tree.map(torch.sin, moved)
        updates, state = optimizer.update(grads, state, moved)
        moved = apply_updates(moved, updates)
    alone = []
    for (part, make), own in zip(parts, states, strict=True):
        for _ in range(3):
            updates, own = make.update(tree.map(torch.sin, part), own, part)
            part = apply_updates(part, updates)
        alone.append(part)
    merged = tree.merge(*alone)
    assert tree.paths(moved) == tree.paths(params) and list(moved.keys()) == list(params.keys())
    assert all(map(torch.equal, tree.leaves(moved), tree.leaves(merged)))
    assert int(state["policy", "adam", "count"]) == 3
    assert state["policy", "adam", "mu", "policy", "linear_0", "weight"].shape == (3, 2)


def test_partition_knows_the_patterns_of_select(params):
    optimizer = partition(
        {"**.weight": scale(1.0), "policy.*.bias": scale(2.0), "scale": scale(0.0)}
    )
    ones = tree.map(torch.ones_like, params)
    updates, state = optimizer.update(ones, optimizer.init(params), params)
    assert updates["policy", "linear_0", "weight"].eq(1).all()
    assert updates["policy", "linear_0", "bias"].eq(2).all()
    assert updates["scale"] == 0
    assert list(state.keys()) == ["**.weight", "policy.*.bias", "scale"]


def test_partition_keeps_empty_sub_trees_and_batch_sizes():
    inner = TensorDict({"w": torch.ones(2, 3), "relu": TensorDict({}, [2])}, [2])
    params = TensorDict({"policy": inner, "meta": TensorDict({"g": torch.ones(())})})
    optimizer = partition({"policy": sgd(0.1), "meta": adam(0.1)})
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["policy"].batch_size == (2,) and "relu" in updates["policy"].keys()
    assert apply_updates(params, updates)["policy", "w"].shape == (2, 3)


def test_partition_maps_over_tasks(params):
    optimizer = partition({"policy": adam(0.1), "scale": sgd(0.5)})
    tasks = [params, tree.map(torch.cos, params)]
    together = tree.stack(tasks)
    state = paramtree.vmap(optimizer.init)(together)
    updates, state = paramtree.vmap(optimizer.update)(together, state, together)
    alone = [optimizer.update(task, optimizer.init(task), task)[0] for task in tasks]
    for a, b in zip(tree.leaves(updates), tree.leaves(tree.stack(alone)), strict=True):
        assert_close(a, b)
    assert state["policy", "adam", "count"].tolist() == [1, 1]


def test_partition_has_gradients(params):
    def outer(rate, params):
        optimizer = partition({"policy": adam(rate), "scale": sgd(rate)})
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        return sum(leaf.sum() for leaf in tree.leaves(apply_updates(params, updates)))

    rate = torch.tensor(0.1, dtype=torch.float64)
    got = torch.func.grad(outer)(rate, params)
    assert_close(got, outer(rate + 1, params) - outer(rate, params))  # it's linear in the rate


def test_partition_names_the_leaf_or_the_pattern_at_fault(params):
    def refused(transforms, message):
        with pytest.raises(ValueError, match=message) as caught:
            partition(transforms).init(params)
        assert "\n" not in str(caught.value)

    refused(
        {"policy": sgd(0.1)}, "partition: 'scale' matches none of 'policy'; give it a transform"
    )
    refused(
        {"policy": sgd(0.1), "**": adam(0.1)},
        "'policy.linear_0.bias' matches 'policy' and '\\*\\*', expected one",
    )
    refused({"**": sgd(0.1), "polcy": adam(0.1)}, "'polcy'.* matches nothing.*'policy'")


def test_partition_refuses_grads_of_other_names(params):
    optimizer = partition({"policy": adam(0.1), "scale": sgd(0.5)})
    grads = tree.exclude(params, "scale")
    with pytest.raises(ValueError, match="partition: the names differ: only params has 'scale'"):
        optimizer.update(grads, optimizer.init(params), params)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: chain(), ValueError, "chain: no transforms given"),
        (lambda: chain(lr=0.1), TypeError, "chain: 'lr' is a float, expected a Transform"),
        (lambda: partition({}), ValueError, "partition: no transforms given"),
        (
            lambda: partition([adam(0.1)]),
            TypeError,
            "partition: transforms is a list, expected a dict",
        ),
        (lambda: partition({"x": 3}), TypeError, "partition: 'x' is a int, expected a Transform"),
    ],
)
def test_bad_transforms(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_state_of_another_chain(params):
    optimizer, other = chain(adam=scale_by_adam(), lr=scale(-0.1)), chain(momentum=trace(0.9))
    message = "chain: the state holds 'momentum', expected 'adam', 'lr'"
    with pytest.raises(ValueError, match=message):
        optimizer.update(params, other.init(params), params)
