import math

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import adam, apply_updates, linear, reduce_on_plateau, sam, sgd


def quadratic(params):
    return 0.5 * sum((i + 1) * (leaf**2).sum() for i, leaf in enumerate(tree.leaves(params)))


def vector(*numbers):
    return TensorDict({"x": torch.tensor(numbers, dtype=torch.float64)})


def test_two_alternating_updates_are_one_step(params, loss):
    grad_fn = paramtree.grad(loss)
    one, two = sam(adam(0.1), linear(0.3, 0.1, 2)), sam(adam(0.1), linear(0.3, 0.1, 2), False, True)
    p, q = params, params
    state, other = one.init(p), two.init(q)
    for _ in range(3):
        updates, state = one.update(grad_fn(p), state, p, grad_fn=grad_fn)
        p = apply_updates(p, updates)
        for _ in range(2):
            updates, other = two.update(grad_fn(q), other, q)
            q = apply_updates(q, updates)
        assert_close(tree.leaves(p), tree.leaves(q), rtol=1e-12, atol=1e-14)
    assert_close(tree.leaves(state["optimizer"]), tree.leaves(other["optimizer"]))


def test_a_quadratic_by_hand():
    """On x^2/2 the gradient at x + e is x + e, and |e| = rho."""
    p = vector(3.0, -4.0)
    optimizer = sam(sgd(0.1), 0.5)
    updates, state = optimizer.update(p, optimizer.init(p), p, grad_fn=lambda p: p)
    wanted = [-0.1 * (3 + 0.5 * 3 / 5), -0.1 * (-4 - 0.5 * 4 / 5)]
    assert_close(updates["x"].tolist(), wanted, rtol=1e-14, atol=0)
    assert int(state["count"]) == 1


def test_the_adaptive_one_by_hand_and_whatever_the_scale():
    p, g = vector(3.0, -4.0), vector(2.0, 1.0)
    seen = []

    def grad_fn(there):
        seen.append((there["x"] - p["x"]).tolist())
        return g

    optimizer = sam(sgd(0.1), 0.5, adaptive=True)
    optimizer.update(g, optimizer.init(p), p, grad_fn=grad_fn)
    size = math.hypot(3 * 2, 4 * 1)
    assert_close(seen[0], [0.5 * 9 * 2 / size, 0.5 * 16 * 1 / size], rtol=1e-14, atol=0)
    # the loss of (a p, q / a) is that of (p, q): what is added is scaled likewise
    scaled, slopes = vector(3.0 * 7, -4.0 / 7), vector(2.0 / 7, 1.0 * 7)
    p, first = scaled, seen[0]
    optimizer.update(slopes, optimizer.init(scaled), scaled, grad_fn=grad_fn)
    assert_close(seen[1], [first[0] * 7, first[1] / 7], rtol=1e-13, atol=0)


def test_at_a_zero_gradient_nothing_happens_and_no_derivative_is_nan(params):
    zero = tree.zeros_like(params)
    for adaptive in (False, True):

        def moved(grads, p, rho, adaptive=adaptive):
            optimizer = sam(sgd(0.1), rho, adaptive)
            grad_fn = lambda p: tree.map(torch.sin, p)  # noqa: E731
            updates, _ = optimizer.update(grads, optimizer.init(p), p, grad_fn=grad_fn)
            return tree.vdot(updates, p) + tree.norm(updates) ** 2

        rho = torch.tensor(0.5, dtype=torch.float64)
        still = tree.map(lambda p: -0.1 * torch.sin(p), params)
        wanted = tree.vdot(still, params) + tree.norm(still) ** 2
        assert_close(moved(zero, params, rho), wanted)
        slopes = paramtree.grad(moved, (0, 1, 2))(zero, params, rho)
        assert all(leaf.isfinite().all() for leaf in tree.leaves(slopes))
        assert slopes[2] == 0 and tree.norm(slopes[0]) == 0

        def size(grads, p, rho, moved=moved):
            return sum(leaf.sum() for leaf in tree.leaves(paramtree.grad(moved)(grads, p, rho)))

        second = paramtree.grad(size, (0, 1, 2))(zero, params, rho)
        assert all(leaf.isfinite().all() for leaf in tree.leaves(second))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("alternating", [False, True])
def test_gradients_through_it(params, loss, adaptive, alternating):
    def outer(rho, lr, p):
        optimizer = sam(adam(lr, eps=1e-3), rho, adaptive, alternating)
        state = optimizer.init(p)
        for _ in range(4):
            grads = paramtree.grad(loss)(p)
            extra = {} if alternating else {"grad_fn": paramtree.grad(loss)}
            updates, state = optimizer.update(grads, state, p, **extra)
            p = apply_updates(p, updates)
        return loss(p)

    numbers = [torch.tensor(x, dtype=torch.float64) for x in (0.2, 0.05)]
    paramtree.check_grads(outer, *numbers, params, rtol=1e-6)
    rates = torch.tensor([0.1, 0.3], dtype=torch.float64)
    got = paramtree.vmap(lambda rho: outer(rho, 0.05, params))(rates)
    assert_close(got, torch.stack([outer(r, 0.05, params) for r in rates]), rtol=1e-10, atol=1e-12)


def test_norms_are_per_task_under_vmap(params):
    tasks = tree.stack([params, tree.map(lambda leaf: 3 * leaf, params)])
    grad_fn = lambda p: tree.map(torch.sin, p)  # noqa: E731

    def one(p):
        optimizer = sam(sgd(0.1), 0.3)
        return optimizer.update(p, optimizer.init(p), p, grad_fn=grad_fn)[0]

    got = paramtree.vmap(one)(tasks)
    for i, p in enumerate(tree.unstack(tasks)):
        ours = tree.map(lambda leaf, i=i: leaf[i], got)
        assert_close(tree.leaves(ours), tree.leaves(one(p)), rtol=1e-12, atol=1e-14)


def test_dtypes():
    z = torch.tensor([1.0 + 2.0j, -0.5j], dtype=torch.complex64)
    whole, pairs = TensorDict({"x": z}), TensorDict({"x": torch.view_as_real(z)})
    rho = torch.tensor(0.3, dtype=torch.float64)
    grad_fn = lambda p: tree.map(lambda x: 2 * x, p)  # noqa: E731
    optimizer = sam(sgd(0.1), rho)
    one = optimizer.update(whole, optimizer.init(whole), whole, grad_fn=grad_fn)[0]["x"]
    two = optimizer.update(pairs, optimizer.init(pairs), pairs, grad_fn=grad_fn)[0]["x"]
    assert one.dtype == torch.complex64
    assert_close(torch.view_as_real(one), two)
    low = TensorDict({"x": z.real.bfloat16(), "y": z.real})
    for alternating in (False, True):
        optimizer = sam(sgd(0.1), rho, alternating=alternating)
        updates, state = optimizer.update(low, optimizer.init(low), low, grad_fn=grad_fn)
        assert [leaf.dtype for leaf in tree.leaves(updates)] == [torch.bfloat16, torch.float32]
        optimizer.update(low, state, low, grad_fn=grad_fn)


def test_extra_keywords_go_on(params):
    optimizer = sam(reduce_on_plateau(0.5), 0.1)
    grad_fn = lambda p: p  # noqa: E731
    _, state = optimizer.update(params, optimizer.init(params), params, grad_fn=grad_fn, value=3.0)
    assert state["optimizer", "best_value"] == 3.0


def test_bad_arguments(params):
    with pytest.raises(ValueError, match="sam: rho is -1"):
        sam(sgd(0.1), -1)
    with pytest.raises(TypeError, match="sam: optimizer is a float, expected a Transform"):
        sam(0.1)
    with pytest.raises(TypeError, match="sam: adaptive is a int, expected True or False"):
        sam(sgd(0.1), adaptive=1)
    optimizer = sam(sgd(0.1))
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"sam: grad_fn is missing, expected update\("):
        optimizer.update(params, state, params)
    with pytest.raises(TypeError, match="sam: grad_fn is a TensorDict, expected a function"):
        optimizer.update(params, state, params, grad_fn=params)
    with pytest.raises(ValueError, match="sam: the names differ: .*what grad_fn gave"):
        optimizer.update(params, state, params, grad_fn=lambda p: p["policy"])
    with pytest.raises(ValueError, match="sam: what grad_fn gave at 'policy.* has shape"):
        optimizer.update(params, state, params, grad_fn=lambda p: tree.map(lambda x: x[None], p))
    with pytest.raises(ValueError, match="sam: the state holds"):
        optimizer.update(params, sam(sgd(0.1), alternating=True).init(params), params)
