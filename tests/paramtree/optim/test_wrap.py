import pytest
import torch
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import (
    adam,
    apply_if_finite,
    apply_updates,
    chain,
    clip_by_global_norm,
    linear,
    lookahead,
    monitor,
    multi_steps,
    reduce_on_plateau,
    scale,
    sgd,
)

NAN = float("nan")


def assert_trees_close(got, wanted):
    assert tree.paths(got) == tree.paths(wanted)
    assert_close(tree.leaves(got), tree.leaves(wanted), rtol=1e-10, atol=1e-12)


def spoiled(params, value=NAN):
    return tree.replace(params, {"scale": torch.full_like(params["scale"], value)})


# -------------------------------------------------------------------------------- apply_if_finite


def test_apply_if_finite_counts_and_keeps_the_state(params):
    optimizer = apply_if_finite(adam(0.1), 2)
    state = first = optimizer.init(params)
    assert bool(first["last_finite"]) and int(first["total_notfinite"]) == 0
    seen = []
    for value in (NAN, float("inf"), 1.0, NAN, -float("inf"), NAN):
        updates, state = optimizer.update(spoiled(params, value), state, params)
        counts = [int(state[name]) for name in ("notfinite_count", "total_notfinite")]
        finite = all(bool(leaf.isfinite().all()) for leaf in tree.leaves(updates))
        still = all(bool(leaf.eq(0).all()) for leaf in tree.leaves(updates))
        seen.append([*counts, bool(state["last_finite"]), finite, still])
        if len(seen) == 2:
            assert_trees_close(state["inner"], first["inner"])
    assert seen == [
        [1, 1, False, True, True],
        [2, 2, False, True, True],
        [0, 2, True, True, False],
        [1, 3, False, True, True],
        [2, 4, False, True, True],
        [3, 5, False, False, False],
    ]
    assert state["inner", "adam", "count"].dtype == torch.int64
    assert int(state["inner", "adam", "count"]) == 2


def test_apply_if_finite_per_task(params):
    optimizer = apply_if_finite(adam(0.1), 3)
    tasks = [params, spoiled(params), tree.map(torch.cos, params)]
    together = tree.stack([params] * 3)
    state = paramtree.vmap(optimizer.init)(together)
    updates, state = paramtree.vmap(optimizer.update)(tree.stack(tasks), state, together)
    alone = [optimizer.update(task, optimizer.init(params), params) for task in tasks]
    assert_trees_close(updates, tree.stack([one for one, _ in alone]))
    assert_trees_close(state, tree.stack([one for _, one in alone]))
    assert state["last_finite"].tolist() == [True, False, True]


def test_a_skipped_gradient_leaves_no_nan_in_derivatives(params):
    """The rate's, and those of the gradients that are finite."""

    def outer(rate, grads):
        optimizer = apply_if_finite(adam(rate), 5)
        state, moved = optimizer.init(params), params
        for g in (grads, spoiled(params), grads):
            updates, state = optimizer.update(g, state, moved)
            moved = apply_updates(moved, updates)
        return sum(leaf.square().sum() for leaf in tree.leaves(moved))

    def without(rate, grads):
        optimizer = adam(rate)
        state, moved = optimizer.init(params), params
        for g in (grads, grads):
            updates, state = optimizer.update(g, state, moved)
            moved = apply_updates(moved, updates)
        return sum(leaf.square().sum() for leaf in tree.leaves(moved))

    rate = torch.tensor(0.1, dtype=torch.float64)
    grads = tree.map(torch.sin, params)
    got = paramtree.grad(outer, (0, 1))(rate, grads)
    wanted = paramtree.grad(without, (0, 1))(rate, grads)
    assert_close(got[0], wanted[0])
    assert_trees_close(got[1], wanted[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64], ids=str)
def test_dtypes_stay(dtype, params):
    low = tree.map(lambda leaf: leaf.to(dtype), params)
    rate = torch.tensor(0.3, dtype=torch.float64)
    wrapped = [
        apply_if_finite(sgd(0.1), 1),
        multi_steps(sgd(0.1), 2),
        lookahead(sgd(0.1), 2, rate),
        monitor(tree.norm),
        reduce_on_plateau(rate),
    ]
    for optimizer in wrapped:
        state = optimizer.init(low)
        updates, after = optimizer.update(low, state, low, value=1.0)
        assert {leaf.dtype for leaf in tree.leaves(updates)} == {dtype}
        kinds = [leaf.dtype for leaf in tree.leaves(state)]
        assert [leaf.dtype for leaf in tree.leaves(after)] == kinds


# -------------------------------------------------------------------------------------- lookahead


def test_lookahead_is_its_two_loops(params):
    optimizer = lookahead(sgd(0.1), 3, 0.4)
    state, fast, slow = optimizer.init(params), params, params
    for step in range(1, 8):
        updates, state = optimizer.update(tree.map(torch.sin, fast), state, fast)
        wanted = tree.map(lambda p: p - 0.1 * p.sin(), fast)
        fast = apply_updates(fast, updates)
        if step % 3 == 0:
            slow = wanted = tree.map(lambda s, p: s + 0.4 * (p - s), slow, wanted)
        assert_trees_close(fast, wanted)
        assert_trees_close(state["slow"], slow)


def test_lookahead_has_memory_of_its_own(params):
    held = {leaf.data_ptr() for leaf in tree.leaves(params)}
    state = lookahead(sgd(0.1), 3, 0.4).init(params)
    assert not held & {leaf.data_ptr() for leaf in tree.leaves(state)}


def test_lookahead_steps_may_be_tensors_and_schedules(params, central):
    def outer(size):
        optimizer = lookahead(sgd(0.1), 2, size)
        state, moved = optimizer.init(params), params
        for _ in range(5):
            updates, state = optimizer.update(tree.map(torch.sin, moved), state, moved)
            moved = apply_updates(moved, updates)
        return sum(leaf.square().sum() for leaf in tree.leaves(moved))

    size = torch.tensor(0.4, dtype=torch.float64)
    assert_close(torch.func.grad(outer)(size), central(outer, size), rtol=1e-7, atol=1e-9)
    assert_close(outer(linear(0.4, 0.4, 3)), outer(0.4))
    assert not torch.isclose(outer(linear(0.4, 0.8, 3)), outer(0.4))


# ---------------------------------------------------------------------------------------- monitor


def test_monitor_keeps_what_it_measures_and_passes_the_updates_on(params):
    seen = monitor({"size": tree.norm, "as_is": lambda u: u}, {"weights": tree.norm})
    optimizer = chain(before=seen, clip=clip_by_global_norm(0.1), after=monitor(tree.norm))
    state = optimizer.init(params)
    assert state["before", "size"] == 0 and state["before", "weights"] == tree.norm(params)
    grads = tree.map(torch.sin, params)
    updates, after = optimizer.update(grads, state, params)
    assert tree.paths(after) == tree.paths(state)
    assert_close(after["before", "size"], tree.norm(grads))
    assert_close(after["after", "norm"], torch.tensor(0.1, dtype=torch.float64))
    assert_trees_close(after["before", "as_is"], grads)
    alone = clip_by_global_norm(0.1)
    assert_trees_close(updates, alone.update(grads, alone.init(params), params)[0])
    assert "measurement" in monitor(lambda u: tree.norm(u)).init(params).keys()


def test_monitor_per_task(params):
    optimizer = chain(sgd=sgd(1.0), seen=monitor(tree.norm))
    together = tree.stack([params, tree.map(torch.cos, params)])
    state = paramtree.vmap(optimizer.init)(together)
    _, state = paramtree.vmap(optimizer.update)(together, state, together)
    wanted = [tree.norm(params), tree.norm(tree.map(torch.cos, params))]
    assert_close(state["seen", "norm"], torch.stack(wanted))


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: apply_if_finite(0.1, 2), TypeError, "apply_if_finite: inner is a float"),
        (lambda: apply_if_finite(sgd(0.1), -1), ValueError, "is -1, expected at least 0"),
        (lambda: apply_if_finite(sgd(0.1), True), TypeError, "is a bool, expected an int"),
        (lambda: lookahead(adam, 2, 0.5), TypeError, "lookahead: fast_optimizer is a function"),
        (lambda: lookahead(sgd(0.1), 0, 0.5), ValueError, "sync_period is 0, expected at least 1"),
        (lambda: lookahead(sgd(0.1), 2, -0.5), ValueError, "slow_step_size is -0.5"),
        (lambda: lookahead(sgd(0.1), 2, 0.5, 1), TypeError, "reset_state is a int"),
        (lambda: monitor({}), ValueError, "monitor: no measurements given"),
        (lambda: monitor(3), TypeError, "monitor: updates has a int"),
        (lambda: monitor({"a": tree.norm}, {"a": tree.norm}), ValueError, "'a' is in updates and"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_states_and_trees(params):
    wrapped = {
        "apply_if_finite": apply_if_finite(sgd(0.1), 2),
        "lookahead": lookahead(sgd(0.1), 2, 0.5),
        "monitor": monitor(tree.norm),
    }
    for fn, optimizer in wrapped.items():
        with pytest.raises(ValueError, match=f"^{fn}: the state .*another optimizer"):
            optimizer.update(params, scale(1.0).init(params), params)
        with pytest.raises(ValueError, match=f"^{fn}: the names differ: only params has 'scale'"):
            grads = tree.exclude(params, "scale")
            optimizer.update(grads, optimizer.init(params), params)
    with pytest.raises(TypeError, match="monitor: 'bad' gave a float, expected a tensor"):
        monitor({"bad": lambda u: 1.0}).init(params)
