"""Optimizers of many tasks at once, and pure."""

import itertools

import pytest
import torch
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import (
    adam,
    adamw,
    apply_updates,
    chain,
    clip_by_global_norm,
    linear,
    scale_by_adam,
    sgd,
)


def assert_trees_close(got, wanted):
    assert tree.paths(got) == tree.paths(wanted)
    assert_close(tree.leaves(got), tree.leaves(wanted), rtol=1e-10, atol=1e-12)


OPTIMIZERS = {
    "sgd": sgd(0.3, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "adam": adam(linear(0.1, 0.0, 4)),
    "adamw": adamw(0.05),
    "clip": chain(clip=clip_by_global_norm(0.5), adam=adam(0.05)),
}


@pytest.fixture
def tasks(params):
    """Three trees, the last with gradients so small that it alone isn't clipped."""
    return [
        tree.map(lambda leaf, i=i: leaf * (1.0, 2.0, 0.3)[i] + i * 0.1, params) for i in range(3)
    ]


def step_of(optimizer, loss):
    def step(params, state):
        grads = paramtree.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_mapped_tasks_are_separate_optimizers(name, tasks, loss):
    optimizer = OPTIMIZERS[name]
    step = step_of(optimizer, loss)
    together = tree.stack(tasks)
    state = paramtree.vmap(optimizer.init)(together)
    alone = [(task, optimizer.init(task)) for task in tasks]
    for _ in range(5):
        together, state = paramtree.vmap(step)(together, state)
        alone = [step(*pair) for pair in alone]
    assert_trees_close(together, tree.stack([params for params, _ in alone]))
    assert_trees_close(state, tree.stack([state for _, state in alone]))
    counts = [
        leaf
        for path, leaf in zip(tree.paths(state), tree.leaves(state), strict=True)
        if path[-1] == "count"
    ]
    assert all(torch.equal(count, torch.full((3,), 5)) for count in counts)


def test_tasks_may_be_of_different_ages(tasks, loss):
    """Counts per task: the second starts anew while the others go on."""
    optimizer = adam(0.05)
    step = step_of(optimizer, loss)
    together, state = tree.stack(tasks), paramtree.vmap(optimizer.init)(tree.stack(tasks))
    together, state = paramtree.vmap(step)(together, state)
    fresh = torch.tensor([False, True, False])
    together = tree.where(fresh, tree.stack(tasks), together)
    state = tree.where(fresh, paramtree.vmap(optimizer.init)(tree.stack(tasks)), state)
    assert state["adam", "count"].tolist() == [1, 0, 1]
    together, state = paramtree.vmap(step)(together, state)
    one, _ = step(tasks[1], optimizer.init(tasks[1]))
    assert_trees_close(tree.unstack(together)[1], one)


@pytest.mark.parametrize("make", [sgd, adam, adamw])
def test_a_rate_for_each_task(make, tasks, loss):
    rates = torch.tensor([0.3, 0.1, 0.02], dtype=torch.float64)

    def two_steps(lr, params):
        optimizer = make(lr)
        state = optimizer.init(params)
        for _ in range(2):
            params, state = step_of(optimizer, loss)(params, state)
        return params

    got = paramtree.vmap(two_steps)(rates, tree.stack(tasks))
    wanted = [two_steps(rate.item(), task) for rate, task in zip(rates, tasks, strict=True)]
    assert_trees_close(got, tree.stack(wanted))

    def outer(rates):
        return sum(
            leaf.square().sum()
            for leaf in tree.leaves(paramtree.vmap(two_steps)(rates, tree.stack(tasks)))
        )

    def outer_alone(rate, task):
        return sum(leaf.square().sum() for leaf in tree.leaves(two_steps(rate, task)))

    slopes = [torch.func.grad(outer_alone)(*pair) for pair in zip(rates, tasks, strict=True)]
    assert_close(torch.func.grad(outer)(rates), torch.stack(slopes))


@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
def test_a_rate_for_each_task_changes_no_dtype(wide, tasks):
    low = tree.map(torch.Tensor.float, tree.stack(tasks))
    rates = torch.tensor([0.3, 0.1, 0.02], dtype=wide)

    def one_step(lr, params):
        optimizer = adamw(lr, b1=lr, weight_decay=lr)
        return optimizer.update(params, optimizer.init(params), params)

    updates, state = paramtree.vmap(one_step)(rates, low)
    assert {leaf.dtype for leaf in tree.leaves(updates)} == {torch.float32}
    assert {leaf.dtype for leaf in tree.leaves(state["adam", "mu"])} == {torch.float32}


# ----------------------------------------------------------------------------------------- purity


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_that_was_given_changes_and_what_comes_back_is_locked(name, params, loss):
    optimizer = OPTIMIZERS[name]
    grads = paramtree.grad(loss)(params)
    state = optimizer.update(grads, optimizer.init(params), params)[1]
    given = (params, grads, state)
    before = [leaf.clone() for leaf in tree.leaves(given)]
    updates, after = optimizer.update(grads, state, params)
    moved = apply_updates(params, updates)
    assert all(map(torch.equal, tree.leaves(given), before))
    held = {leaf.data_ptr() for leaf in tree.leaves(given)}
    for leaf in itertools.chain(*map(tree.leaves, (updates, after, moved))):
        assert leaf.data_ptr() not in held  # not even shared, so nobody can be surprised later
    assert updates.is_locked and after.is_locked and moved.is_locked


def test_with_and_without_a_graph_the_numbers_are_the_same_to_the_last_bit(params, loss):
    """Without one, all leaves are handled at once."""
    for dtype, eps_root in itertools.product((torch.float32, torch.float64), (0.0, 1e-3)):
        p = tree.map(lambda leaf, dtype=dtype: leaf.to(dtype), params)
        optimizer = scale_by_adam(b2=0.9, eps_root=eps_root)
        fast, slow = optimizer.init(p), optimizer.init(p)
        for i in range(4):
            grads = tree.map(lambda leaf, i=i: torch.sin(leaf * (i + 1)), p)
            graph = tree.map(lambda leaf: leaf.clone().requires_grad_(), grads)
            one, fast = optimizer.update(grads, fast, p)
            two, slow = optimizer.update(graph, slow, p)
            assert tree.leaves(two)[0].requires_grad and not tree.leaves(one)[0].requires_grad
            for a, b in zip(tree.leaves((one, fast)), tree.leaves((two, slow)), strict=True):
                assert torch.equal(a, b)
            slow = tree.map(torch.Tensor.detach, slow)
