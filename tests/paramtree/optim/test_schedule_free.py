import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import (
    apply_updates,
    chain,
    clip_by_global_norm,
    linear,
    schedule_free,
    schedule_free_adamw,
    schedule_free_eval_params,
    schedule_free_sgd,
    sgd,
)
from tests.paramtree.optim.special_paths import START, gradient, tree_of, walk

FALLING = lambda count: 0.1 * 0.8**count  # noqa: E731


def test_the_papers_three_sequences():
    """z, x and y kept apart, as the paper writes them."""
    rate, b1 = 0.05, 0.8
    z = x = y = START.numpy()
    averages = []
    for t in range(12):
        z = z - rate * gradient(tree_of(torch.tensor(y)), flat=True).numpy()
        c = 1 / (t + 1)
        x = (1 - c) * x + c * z
        y = (1 - b1) * z + b1 * x
        averages.append(x)
    got = []
    params = walk(
        schedule_free(sgd(rate), rate, b1),
        read=lambda s, p: got.append(torch.cat(tree.leaves(schedule_free_eval_params(s, p)))),
    )[-1]
    assert_close(params, torch.tensor(y), rtol=1e-12, atol=1e-13)
    assert_close(torch.stack(got), torch.tensor(np.stack(averages)), rtol=1e-11, atol=1e-12)


def test_a_b1_of_one_is_the_plain_mean_of_the_iterates():
    optimizer = schedule_free(sgd(0.1), 0.1, b1=1.0, weight_lr_power=0.0)
    seen = []
    path = walk(optimizer, read=lambda state, params: seen.append(state["z"]))
    mean = torch.stack([torch.cat(tree.leaves(z)) for z in seen]).mean(0)
    assert_close(path[-1], mean, rtol=1e-12, atol=1e-12)


def test_a_schedule_of_b1_keeps_the_average():
    """The state remembers the b1 that the params were made with."""
    optimizer = schedule_free(sgd(0.05), 0.05, b1=linear(0.5, 0.95, 10))
    averages, seen = [], []

    def read(state, params):
        averages.append(torch.cat(tree.leaves(schedule_free_eval_params(state, params))))
        seen.append(torch.cat(tree.leaves(state["z"])))

    walk(optimizer, read=read)
    for t in range(1, 13):
        assert_close(averages[t - 1], torch.stack(seen[:t]).mean(0), rtol=1e-11, atol=1e-12)


def test_state_has_the_names_of_the_params_and_of_what_it_wraps(params):
    state = schedule_free_adamw(0.1).init(params)
    assert tree.paths(state["z"]) == tree.paths(params)
    assert tree.paths(state["base", "adam", "nu"]) == tree.paths(params)
    assert state["count"].dtype == torch.int64 and state["weight_sum"].ndim == 0
    assert state.is_locked


def test_the_last_link_of_a_chain(params, loss):
    optimizer = chain(clip=clip_by_global_norm(0.1), free=schedule_free_sgd(0.5))
    state, start = optimizer.init(params), loss(params)
    for _ in range(3):
        grads = paramtree.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        params = apply_updates(params, updates)
    x = schedule_free_eval_params(state["free"], params)
    assert loss(x) < start
    with pytest.raises(ValueError, match="schedule_free_eval_params: the state holds 'clip'"):
        schedule_free_eval_params(state, params)


def test_a_rate_of_zero_moves_nothing_and_has_derivatives(params, loss):
    grads = paramtree.grad(loss)(params)

    def moved(rate):
        optimizer = schedule_free(sgd(rate), rate)
        p, state = params, optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, p)
            p = apply_updates(p, updates)
        return tree.norm(tree.sub(p, params)) + loss(schedule_free_eval_params(state, p))

    zero = torch.zeros((), dtype=torch.float64)
    assert_close(moved(zero), loss(params))
    assert paramtree.grad(moved)(zero).isfinite()


def outer(loss, lr, b1, power, params):
    optimizer = schedule_free_sgd(lr, b1=b1, weight_lr_power=power, warmup_steps=2)
    state = optimizer.init(params)
    for _ in range(5):
        updates, state = optimizer.update(paramtree.grad(loss)(params), state, params)
        params = apply_updates(params, updates)
    return loss(schedule_free_eval_params(state, params))


def test_gradients_in_all_numbers_and_the_first_params(params, loss):
    numbers = [torch.tensor(x, dtype=torch.float64) for x in (0.4, 0.8, 1.5)]
    paramtree.check_grads(
        lambda lr, b1, power, p: outer(loss, lr, b1, power, p), *numbers, params, rtol=1e-6
    )


def test_a_rate_for_each_task(params, loss):
    rates = torch.tensor([0.1, 0.4], dtype=torch.float64)
    one = lambda lr, b1: outer(loss, lr, b1, 2.0, params)  # noqa: E731
    got = paramtree.vmap(one)(rates, rates + 0.3)
    assert_close(got, torch.stack([one(r, r + 0.3) for r in rates]), rtol=1e-10, atol=1e-12)


def test_half_precision_is_remembered_in_float32(params):
    low = tree.map(lambda leaf: leaf.bfloat16(), params)
    optimizer = schedule_free_sgd(torch.tensor(0.1, dtype=torch.float64))
    updates, state = optimizer.update(low, optimizer.init(low), low)
    assert {leaf.dtype for leaf in tree.leaves(updates)} == {torch.bfloat16}
    assert {leaf.dtype for leaf in tree.leaves(state["z"])} == {torch.float32}
    x = schedule_free_eval_params(state, apply_updates(low, updates))
    assert {leaf.dtype for leaf in tree.leaves(x)} == {torch.bfloat16}


def test_complex_params_are_pairs():
    z = torch.tensor([1.0 + 2.0j, -0.5j], dtype=torch.complex128)
    optimizer = schedule_free_adamw(torch.tensor(0.3), eps=1e-3)
    whole, pairs = TensorDict({"x": z}), TensorDict({"x": torch.view_as_real(z)})
    states = [optimizer.init(whole), optimizer.init(pairs)]
    for _ in range(3):
        one, states[0] = optimizer.update(whole, states[0], whole)
        two, states[1] = optimizer.update(pairs, states[1], pairs)
        whole, pairs = apply_updates(whole, one), apply_updates(pairs, two)
    assert_close(torch.view_as_real(whole["x"]), pairs["x"])


def test_bad_arguments(params):
    with pytest.raises(ValueError, match="schedule_free: b1 is 0, expected above 0"):
        schedule_free(sgd(0.1), 0.1, b1=0)
    with pytest.raises(ValueError, match="schedule_free_sgd: b1 is 1.5, expected above 0"):
        schedule_free_sgd(b1=1.5)
    with pytest.raises(ValueError, match="schedule_free: lr is -0.1"):
        schedule_free(sgd(0.1), -0.1)
    with pytest.raises(ValueError, match="schedule_free_sgd: lr is -0.1"):
        schedule_free_sgd(-0.1)
    with pytest.raises(TypeError, match="schedule_free: base is a float, expected a Transform"):
        schedule_free(0.1, 0.1)
    with pytest.raises(ValueError, match="warmup_steps is 3, expected 0 with a schedule"):
        schedule_free_adamw(FALLING, 3)
    with pytest.raises(ValueError, match="schedule_free_adamw: warmup_steps is -1"):
        schedule_free_adamw(0.1, -1)
    optimizer = schedule_free_sgd(0.1)
    with pytest.raises(ValueError, match="schedule_free: the state holds"):
        optimizer.update(params, sgd(0.1).init(params), params)
    other = tree.map(lambda leaf: leaf[None], params)
    with pytest.raises(ValueError, match=r"schedule_free: state\['z'\] at .* has shape"):
        optimizer.update(params, optimizer.init(other), params)
