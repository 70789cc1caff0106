import pytest
import torch
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import (
    adam,
    add_decayed_weights,
    apply_if_finite,
    apply_updates,
    chain,
    inject_hyperparams,
    linear,
    multi_steps,
    scale,
    sgd,
)

D = torch.float64


def assert_trees_close(got, wanted, **options):
    assert tree.paths(got) == tree.paths(wanted)
    assert_close(tree.leaves(got), tree.leaves(wanted), **options)


def run(optimizer, params, steps=4, state=None):
    state = optimizer.init(params) if state is None else state
    for _ in range(steps):
        updates, state = optimizer.update(tree.map(torch.sin, params), state, params)
        params = apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_factory_s_optimizer(dtype, params):
    low = tree.map(lambda leaf: leaf.to(dtype), params)
    for make, options in [(adam, {"lr": 0.1, "b1": 0.8}), (sgd, {"lr": 0.1, "momentum": 0.9})]:
        got, state = run(inject_hyperparams(make)(**options), low)
        wanted, inner = run(make(**options), low)
        assert_trees_close(got, wanted)
        assert_trees_close(state["inner"], inner)
        assert {leaf.dtype for leaf in tree.leaves(got)} == {dtype}


def test_the_state_holds_numbers_and_leaves_the_rest_to_the_factory(params):
    def make(lr, b1=0.9, off=0.0, steps=5, flag=True, name="x", rule=torch.sin):
        assert steps == 5 and flag is True and isinstance(rule(torch.ones(())), torch.Tensor)
        return chain(lr=scale(-lr), decay=scale(1 + off)) if off else scale(-lr * b1)

    state = inject_hyperparams(make)(0.1).init(params)
    assert list(state["hyper"].keys()) == ["b1", "lr"] or set(state["hyper"].keys()) == {"lr", "b1"}
    assert all(leaf.shape == () and leaf.dtype == D for leaf in tree.leaves(state["hyper"]))
    state = inject_hyperparams(make)(0.1, b1=1, off=0.5).init(params)
    assert set(state["hyper"].keys()) == {"lr", "b1", "off"} and state["hyper", "b1"] == 1.0
    state = inject_hyperparams(make, static_args="b1")(0.1).init(params)
    assert set(state["hyper"].keys()) == {"lr"}
    state = inject_hyperparams(make, ["rule"])(0.1, rule=torch.cos).init(params)
    assert set(state["hyper"].keys()) == {"lr", "b1"}


def test_tensors_are_taken_as_they_are(params):
    rate = torch.tensor(0.1, requires_grad=True)
    optimizer = inject_hyperparams(sgd)(rate)
    moved, state = run(optimizer, params)
    assert state["hyper", "lr"].dtype == torch.float32
    sum(leaf.sum() for leaf in tree.leaves(moved)).backward()
    assert rate.grad is not None and rate.grad != 0


def test_swapping_one_in_the_state(params):
    optimizer = inject_hyperparams(adam)(0.1)
    half, state = run(optimizer, params, 2)
    for value in (0.02, torch.tensor(0.02, dtype=D)):
        got, after = run(optimizer, half, 2, tree.replace(state, {"hyper.lr": value}))
        half_alone, own = run(adam(0.1), params, 2)
        wanted, _ = run(adam(0.02), half_alone, 2, own)
        assert_trees_close(got, wanted)
        assert after["hyper", "lr"] == 0.02 and state["hyper", "lr"] == 0.1


def test_gradients_of_what_was_swapped(params, central):
    optimizer = inject_hyperparams(adam)(0.1, eps=0.1)
    state = optimizer.init(params)

    def outer(rate, b1):
        changed = tree.replace(state, {"hyper.lr": rate, "hyper.b1": b1})
        return sum(
            leaf.square().sum() for leaf in tree.leaves(run(optimizer, params, 3, changed)[0])
        )

    rate, b1 = torch.tensor(0.1, dtype=D), torch.tensor(0.8, dtype=D)
    got = torch.func.grad(outer, (0, 1))(rate, b1)
    assert_close(got[0], central(lambda x: outer(x, b1), rate), rtol=1e-6, atol=1e-8)
    assert_close(got[1], central(lambda x: outer(rate, x), b1), rtol=1e-6, atol=1e-8)


def test_a_rate_for_each_task(params):
    optimizer = inject_hyperparams(adam)(0.1)
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=D)
    together = tree.stack([params] * 3)
    state = tree.replace(paramtree.vmap(optimizer.init)(together), {"hyper.lr": rates})
    got, state = paramtree.vmap(lambda p, s: run(optimizer, p, 3, s))(together, state)
    assert_trees_close(got, tree.stack([run(adam(float(r)), params, 3)[0] for r in rates]))
    assert torch.equal(state["hyper", "lr"], rates) and state["count"].tolist() == [3, 3, 3]


def test_schedules_are_asked_at_each_update(params):
    rates = linear(0.4, 0.0, 4)
    optimizer = inject_hyperparams(sgd)(rates, momentum=linear(0.0, 0.8, 4))
    state, seen = optimizer.init(params), []
    assert state["hyper", "lr"] == 0.4
    for _ in range(3):
        _, state = optimizer.update(params, state, params)
        seen.append(state["hyper", "lr"])
    assert_close(torch.stack(seen), torch.tensor([0.4, 0.3, 0.2], dtype=D))
    swapped = tree.replace(state, {"hyper.lr": 9.0})
    assert_trees_close(*(optimizer.update(params, s, params)[0] for s in (swapped, state)))
    assert_trees_close(run(inject_hyperparams(adam)(rates), params)[0], run(adam(rates), params)[0])


def test_a_factory_of_ones_own_need_not_know_schedules(params):
    def make(rate):
        return chain(decay=add_decayed_weights(0.1), lr=scale(-rate))

    optimizer = inject_hyperparams(make)(linear(0.2, 0.2, 3))
    assert_trees_close(run(optimizer, params)[0], run(make(0.2), params)[0])


def test_inside_wrappers(params):
    inner = inject_hyperparams(adam)(linear(0.2, 0.1, 3))
    optimizer = multi_steps(apply_if_finite(inner, 2), 2)
    _, state = run(optimizer, params)
    assert int(state["inner", "inner", "count"]) == 2
    kept = state["inner", "inner", "hyper", "lr"]
    assert kept.dtype == D and abs(float(kept) - 0.2 + 0.1 / 3) < 1e-12


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: inject_hyperparams(adam(0.1)),
            TypeError,
            "factory is a Transform, expected a fun",
        ),
        (lambda: inject_hyperparams(adam, "rate"), ValueError, "static_args has 'rate', expected"),
        (lambda: inject_hyperparams(adam)(-0.1), ValueError, "adam: lr is -0.1"),
        (lambda: inject_hyperparams(adam)(0.1, b1=1.5), ValueError, "b1 is 1.5"),
        (lambda: inject_hyperparams(adam)(0.1, lr=0.1), TypeError, "'lr' is given twice"),
        (lambda: inject_hyperparams(adam)(0.1, rate=0.1), TypeError, "rate"),
        (lambda: inject_hyperparams(lambda lr: lr)(0.1), TypeError, "the factory gave is a float"),
        (
            lambda: inject_hyperparams(lambda lr: scale(lr))(0.1, 0.2),
            TypeError,
            "2 arguments given",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_states(params):
    optimizer = inject_hyperparams(adam)(0.1)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="inject_hyperparams: the state .*another optimizer"):
        optimizer.update(params, adam(0.1).init(params), params)
    with pytest.raises(ValueError, match="inject_hyperparams: .*'rate'"):
        optimizer.update(params, tree.replace(state, {"hyper.rate": 0.1}), params)
    rates = torch.ones(3)
    with pytest.raises(ValueError, match=r"inject_hyperparams: .*'lr'\] has shape \(3,\).*vmap"):
        optimizer.update(params, tree.replace(state, {"hyper.lr": rates}), params)
