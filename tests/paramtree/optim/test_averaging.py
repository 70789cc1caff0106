import pytest
import torch
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import incremental_update, periodic_update


@pytest.fixture
def other(params):
    return tree.map(lambda leaf: leaf.cos() * 3, params)


def assert_trees_close(got, wanted, **options):
    assert tree.paths(got) == tree.paths(wanted)
    assert_close(tree.leaves(got), tree.leaves(wanted), **options)


# ----------------------------------------------------------------------------- incremental_update


def test_a_step_between_two_trees(params, other):
    got = incremental_update(params, other, 0.25)
    assert_trees_close(got, tree.map(lambda x, y: 0.25 * x + 0.75 * y, params, other))
    assert got.is_locked and list(got.keys()) == list(params.keys())
    for size, wanted in [(0.0, other), (1.0, params), (1, params)]:
        assert all(
            map(torch.equal, *map(tree.leaves, (incremental_update(params, other, size), wanted)))
        )


def test_names_meet_in_any_order(params, other):
    turned = tree.new({name: other[name] for name in reversed(list(other.keys()))})
    assert_trees_close(
        incremental_update(params, turned, 0.25), incremental_update(params, other, 0.25)
    )


def test_its_gradients(params, other):
    size = torch.tensor(0.3, dtype=torch.float64)

    def value(new, old, size):
        return sum(leaf.pow(3).sum() for leaf in tree.leaves(incremental_update(new, old, size)))

    paramtree.check_grads(value, params, other, size)
    paramtree.check_grads(paramtree.grad(value, (0, 1, 2)), params, other, size)


def test_a_step_for_each_task(params, other):
    sizes = torch.tensor([0.1, 0.5, 1.0])
    new, old = tree.stack([params] * 3), tree.stack([other] * 3)
    got = paramtree.vmap(incremental_update)(new, old, sizes.double())
    wanted = [incremental_update(params, other, float(size)) for size in sizes.double()]
    assert_trees_close(got, tree.stack(wanted))
    got = paramtree.vmap(lambda size: incremental_update(params, other, size))(sizes.double())
    assert_trees_close(got, tree.stack(wanted))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64], ids=str)
def test_dtypes_stay(dtype, params, other):
    new, old = (tree.map(lambda leaf: leaf.to(dtype), each) for each in (params, other))
    for size in (0.3, torch.tensor(0.3, dtype=torch.float64)):
        got = incremental_update(new, old, size)
        assert {leaf.dtype for leaf in tree.leaves(got)} == {dtype}
        assert_trees_close(
            got, tree.map(lambda x, y: 0.3 * x + 0.7 * y, new, old), rtol=1e-2, atol=0
        )


def test_half_precision_is_rounded_once():
    old = tree.new({"w": torch.tensor(1.0, dtype=torch.bfloat16)})
    new = tree.new({"w": torch.tensor(1 + 2.0**-7, dtype=torch.bfloat16)})
    got = incremental_update(new, old, 0.6)["w"]
    assert got == 1 + 2.0**-7


# -------------------------------------------------------------------------------- periodic_update


@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_replaced_at_every_kth_step(kind, params, other):
    for steps in range(7):
        got = periodic_update(params, other, kind(steps), 3)
        wanted = params if steps % 3 == 0 else other
        assert all(map(torch.equal, tree.leaves(got), tree.leaves(wanted)))
        held = {leaf.data_ptr() for leaf in tree.leaves((params, other))}
        assert not held & {leaf.data_ptr() for leaf in tree.leaves(got)}


def test_integer_leaves_are_replaced_too():
    new, old = (tree.new({"n": torch.tensor(n), "on": torch.tensor(n > 1)}) for n in (5, 1))
    assert tree.leaves(periodic_update(new, old, 4, 2)) == [torch.tensor(5), torch.tensor(True)]
    assert tree.leaves(periodic_update(new, old, 5, 2)) == [torch.tensor(1), torch.tensor(False)]


def test_tasks_of_different_ages_and_periods(params, other):
    steps, every = torch.tensor([2, 3, 4]), torch.tensor([2, 2, 3])
    new, old = tree.stack([params] * 3), tree.stack([other] * 3)
    got = paramtree.vmap(periodic_update)(new, old, steps, every)
    assert_trees_close(got, tree.stack([params, other, other]), rtol=0, atol=0)


def test_the_gradient_goes_where_the_leaves_are_from(params, other):
    other = tree.map(lambda leaf: leaf * float("nan"), other)

    def value(new, old):
        return sum(leaf.sum() for leaf in tree.leaves(periodic_update(new, old, 4, 2)))

    new, old = paramtree.grad(value, (0, 1))(params, other)
    assert all(leaf.eq(1).all() for leaf in tree.leaves(new))
    assert all(leaf.eq(0).all() for leaf in tree.leaves(old))


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: tree.exclude(p, "scale"), ValueError, "the names differ: only old has 'scale'"),
        (
            lambda p: tree.map(lambda x: x[None], p),
            ValueError,
            r"new at 'policy.linear_0.bias' has shape \(1, 3\), expected \(3,\) \(from old\)",
        ),
        (
            lambda p: tree.map(torch.Tensor.float, p),
            TypeError,
            "new at 'policy.linear_0.bias' is torch.float32, expected torch.float64",
        ),
        (dict, TypeError, "new is a dict, expected a TensorDict"),
    ],
)
def test_trees_that_do_not_agree(change, error, message, params):
    with pytest.raises(error, match=f"^incremental_update: {message}"):
        incremental_update(change(params), params, 0.5)
    with pytest.raises(error, match=f"^periodic_update: {message}"):
        periodic_update(change(params), params, 1, 2)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (-0.1, ValueError, "step_size is -0.1"),
        (1.1, ValueError, "step_size is 1.1, expected at most 1"),
        (torch.ones(2), ValueError, r"step_size has shape \(2,\)"),
        (torch.tensor(1), TypeError, "step_size is torch.int64"),
        ("half", TypeError, "step_size is a str"),
    ],
)
def test_bad_step_sizes(size, error, message, params):
    with pytest.raises(error, match=f"^incremental_update: {message}"):
        incremental_update(params, params, size)


@pytest.mark.parametrize(
    ("steps", "every", "error", "message"),
    [
        (-1, 2, ValueError, "steps is -1, expected at least 0"),
        (1, 0, ValueError, "every is 0, expected at least 1"),
        (1.0, 2, TypeError, "steps is a float, expected an int"),
        (torch.tensor(1.0), 2, TypeError, "steps is torch.float32, expected an integer dtype"),
        (torch.tensor([1, 2]), 2, ValueError, r"steps has shape \(2,\)"),
    ],
)
def test_bad_steps(steps, every, error, message, params):
    with pytest.raises(error, match=f"^periodic_update: {message}"):
        periodic_update(params, params, steps, every)


def test_integers_have_no_mean():
    counts = tree.new({"n": torch.tensor(3)})
    with pytest.raises(TypeError, match="incremental_update: new at 'n' is torch.int64, expected"):
        incremental_update(counts, counts, 0.5)
