import pytest
import torch
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import adam, apply_every, apply_updates, chain, multi_steps, scale, sgd


def assert_trees_close(got, wanted):
    assert tree.paths(got) == tree.paths(wanted)
    assert_close(tree.leaves(got), tree.leaves(wanted), rtol=1e-10, atol=1e-12)


def gradients(params, n):
    return [tree.map(lambda leaf, i=i: torch.sin(leaf * (i + 1)), params) for i in range(n)]


@pytest.mark.parametrize("mean", [True, False])
def test_multi_steps_is_the_inner_optimizer_on_what_was_put_together(mean, params):
    optimizer, inner = multi_steps(adam(0.1), 3, mean=mean), adam(0.1)
    state, own = optimizer.init(params), inner.init(params)
    grads = gradients(params, 6)
    for i, g in enumerate(grads):
        updates, state = optimizer.update(g, state, params)
        if i % 3 < 2:
            assert all(leaf.eq(0).all() for leaf in tree.leaves(updates))
            continue
        total = tree.map(lambda a, b, c: a + b + c, *grads[i - 2 : i + 1])
        mixed = tree.map(lambda leaf: leaf / 3, total) if mean else total
        wanted, own = inner.update(mixed, own, params)
        assert_trees_close(updates, wanted)
        assert_trees_close(state["inner"], own)
        assert [int(state[name]) for name in ("mini_step", "gradient_step")] == [0, i // 3 + 1]
        assert all(leaf.eq(0).all() for leaf in tree.leaves(state["acc_grads"]))
    assert state["inner", "adam", "count"].dtype == torch.int64


def test_tasks_may_be_at_different_calls(params):
    optimizer = multi_steps(adam(0.1), 2)
    one, two = gradients(params, 2)
    begun = optimizer.update(one, optimizer.init(params), params)[1]
    states = [optimizer.init(params), begun]
    together = tree.stack([params, params])
    grads = tree.stack([two, two])
    updates, state = paramtree.vmap(optimizer.update)(grads, tree.stack(states), together)
    alone = [optimizer.update(two, own, params) for own in states]
    assert_trees_close(updates, tree.stack([a for a, _ in alone]))
    assert_trees_close(state, tree.stack([b for _, b in alone]))
    assert state["gradient_step"].tolist() == [0, 1]


@pytest.mark.parametrize("make", [lambda inner: multi_steps(inner, 2), lambda inner: inner])
def test_gradients_through_both(make, params, central):
    def outer(rate):
        optimizer = chain(sum=apply_every(2), step=make(adam(rate, eps=0.1)))
        state, moved = optimizer.init(params), params
        for _ in range(4):
            updates, state = optimizer.update(tree.map(torch.sin, moved), state, moved)
            moved = apply_updates(moved, updates)
        return sum(leaf.square().sum() for leaf in tree.leaves(moved))

    rate = torch.tensor(0.1, dtype=torch.float64)
    assert_close(torch.func.grad(outer)(rate), central(outer, rate), rtol=1e-6, atol=1e-8)


def test_sums_of_half_precision_are_kept_in_float32(params):
    low = tree.map(torch.Tensor.bfloat16, params)
    grads = tree.map(lambda leaf: torch.full_like(leaf, 1.0), low)
    tiny = tree.map(lambda leaf: torch.full_like(leaf, 2.0**-9), low)
    for optimizer in (multi_steps(scale(1.0), 5, mean=False), apply_every(5)):
        state = optimizer.init(low)
        for g in (grads, tiny, tiny, tiny, tiny):
            updates, state = optimizer.update(g, state, low)
        assert {leaf.dtype for leaf in tree.leaves(updates)} == {torch.bfloat16}
        sums = 1 + 2.0**-7  # in bfloat16 each of the small ones would have been lost
        assert all(leaf.eq(sums).all() for leaf in tree.leaves(updates))


def test_bad_gradients_of_calls_that_emit_nothing_stay_in_the_sum(params):
    bad = tree.map(lambda leaf: leaf * float("nan"), params)
    optimizer = multi_steps(adam(0.1), 3)
    updates, state = optimizer.update(bad, optimizer.init(params), params)
    assert all(leaf.eq(0).all() for leaf in tree.leaves(updates))
    assert all(leaf.isfinite().all() for leaf in tree.leaves(state["inner"]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: multi_steps(0.1, 2), TypeError, "multi_steps: inner is a float"),
        (lambda: multi_steps(sgd(0.1), 0), ValueError, "every is 0, expected at least 1"),
        (lambda: multi_steps(sgd(0.1), 2.0), TypeError, "every is a float, expected an int"),
        (lambda: multi_steps(sgd(0.1), 2, mean=1), TypeError, "mean is a int, expected True or"),
        (lambda: apply_every(0), ValueError, "apply_every: k is 0, expected at least 1"),
        (lambda: apply_every("2"), TypeError, "apply_every: k is a str, expected an int"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_schedules_and_states(params):
    for every, error, message in [
        (lambda step: 0, ValueError, "every gave 0, expected at least 1"),
        (lambda step: "two", TypeError, "every gave a str, expected an int"),
        (lambda step: torch.ones(2), ValueError, r"every gave has shape \(2,\)"),
    ]:
        optimizer = multi_steps(sgd(0.1), every)
        with pytest.raises(error, match=message):
            optimizer.update(params, optimizer.init(params), params)
    for fn, optimizer in {
        "multi_steps": multi_steps(sgd(0.1), 2),
        "apply_every": apply_every(2),
    }.items():
        with pytest.raises(ValueError, match=f"^{fn}: the state .*another optimizer"):
            optimizer.update(params, adam(0.1).init(params), params)
        state, other = optimizer.init(params), optimizer.init(tree.select(params, "scale"))
        with pytest.raises(ValueError, match=f"^{fn}: the names differ: only params has"):
            optimizer.update(params, other, params)
        with pytest.raises(ValueError, match=f"^{fn}: the names differ: only params has"):
            optimizer.update(tree.select(params, "scale"), state, params)
