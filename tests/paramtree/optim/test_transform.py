import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import (
    add_decayed_weights,
    apply_updates,
    chain,
    clip_by_global_norm,
    scale,
    scale_by_adam,
    scale_by_schedule,
    stateless,
    trace,
)


def vector(*numbers, dtype=torch.float64):
    return TensorDict({"x": torch.tensor(numbers, dtype=dtype)})


def run(transform, grads, params=None):
    """Updates for one gradient after another."""
    params = vector(*[0.0] * 2) if params is None else params
    state, updates = transform.init(params), []
    for each in grads:
        update, state = transform.update(each, state, params)
        updates.append(update["x"].tolist())
    return updates


def test_momentum_by_hand():
    """t_1 = g_1, t_2 = m t_1 + (1 - d) g_2; the first step has no dampening."""
    grads = [vector(1.0, -2.0), vector(3.0, 5.0)]
    assert run(trace(0.5), grads) == [[1.0, -2.0], [3.5, 4.0]]
    assert run(trace(0.5, dampening=0.25), grads) == [[1.0, -2.0], [0.5 + 0.75 * 3, -1 + 0.75 * 5]]
    assert run(trace(0.5, nesterov=True), grads) == [[1.5, -3.0], [3 + 1.75, 5 + 2.0]]


def test_adam_by_hand():
    """One step is g / (|g| + eps), whatever the decays."""
    got = run(scale_by_adam(0.3, 0.4, eps=0.5), [vector(2.0, -4.0)])
    assert_close(got, [[2.0 / 2.5, -4.0 / 4.5]], rtol=1e-15, atol=0)
    got = run(scale_by_adam(0.5, 0.5, eps=0.0, eps_root=0.25), [vector(1.0, 0.0), vector(0.0, 2.0)])
    # mu/(1-.25) = [1/3, 4/3], nu/(1-.25) = [1/3, 8/3]
    wanted = [1 / 3 / (1 / 3 + 0.25) ** 0.5, 4 / 3 / (8 / 3 + 0.25) ** 0.5]
    assert_close(got[1], wanted, rtol=1e-14, atol=0)


def test_weight_decay_adds_params():
    assert run(add_decayed_weights(0.5), [vector(1.0, 2.0)], vector(4.0, -2.0)) == [[3.0, 1.0]]


def test_schedule_sees_the_count_of_earlier_updates():
    transform = scale_by_schedule(lambda count: count * 2.0)
    assert run(transform, [vector(1.0, 3.0)] * 3) == [[0.0, 0.0], [2.0, 6.0], [4.0, 12.0]]


def test_stateless():
    signs = stateless(lambda grads, params: tree.map(torch.sign, grads))
    assert run(signs, [vector(-3.0, 0.5)]) == [[-1.0, 1.0]]
    assert signs.init(vector(1.0)).is_empty()


@pytest.mark.parametrize("max_norm", [0.1, 5.0, 5.1, 100.0])
def test_clip_is_by_the_norm_of_all_leaves(max_norm):
    grads = TensorDict({"a": torch.tensor([3.0, 0.0]), "b": TensorDict({"c": torch.tensor(-4.0)})})
    got, _ = clip_by_global_norm(max_norm).update(grads, TensorDict({}), grads)
    factor = min(1.0, max_norm / 5.0)
    assert_close(got["a"], grads["a"] * factor)
    assert_close(got["b", "c"], grads["b", "c"] * factor)
    if max_norm >= 5.0:
        assert torch.equal(got["a"], grads["a"])  # to the last bit


def test_clip_differs_from_torchs_by_what_the_docstring_says():
    leaf = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    leaf.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([leaf], 1.0)
    ours = run(clip_by_global_norm(1.0), [vector(3.0, 4.0)])[0]
    assert_close(leaf.grad.tolist(), [x * 5.0 / (5.0 + 1e-6) for x in ours], rtol=1e-14, atol=0)
    assert_close(ours, [0.6, 0.8], rtol=1e-15, atol=0)


@pytest.mark.parametrize("size", [0.5, 3.0])
def test_clip_has_the_derivatives_of_its_law(size, central):
    grads = torch.tensor([0.6, 0.8], dtype=torch.float64) * size
    bound = torch.tensor(1.3, dtype=torch.float64)

    def clipped(grads, bound):
        tree = TensorDict({"x": grads[:1], "y": grads[1]})
        got, _ = clip_by_global_norm(bound).update(tree, TensorDict({}), tree)
        return got["x"].exp().sum() + got["y"].sin()

    for slope, x, f in [
        (torch.func.grad(clipped), grads, lambda x: clipped(x, bound)),
        (torch.func.grad(lambda b: clipped(grads, b)), bound, lambda x: clipped(grads, x)),
    ]:
        got = slope(grads, bound) if x is grads else slope(bound)
        assert_close(got, central(f, x), rtol=1e-7, atol=1e-9)


def test_clip_at_a_zero_gradient():
    """Zero stays zero, the derivative is that of the identity, and the second one 0."""
    zero = torch.zeros(2, dtype=torch.float64)

    def clipped(grads):
        tree = TensorDict({"x": grads})
        return clip_by_global_norm(1.0).update(tree, TensorDict({}), tree)[0]["x"]

    assert torch.equal(clipped(zero), zero)
    assert torch.equal(torch.func.jacrev(clipped)(zero), torch.eye(2, dtype=torch.float64))
    second = torch.func.jacrev(torch.func.jacrev(clipped))(zero)
    assert torch.equal(second, torch.zeros(2, 2, 2, dtype=torch.float64))


def test_norms_and_counts_are_per_task_under_vmap_and_over_all_without():
    grads = TensorDict({"x": torch.tensor([[3.0, 4.0], [0.3, 0.4]])}, [2])
    transform = clip_by_global_norm(1.0)
    alone, _ = paramtree.vmap(transform.update)(grads, transform.init(grads), grads)
    assert_close(alone["x"], torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    together, _ = transform.update(grads, transform.init(grads), grads)
    assert_close(together["x"], grads["x"] / (25.25**0.5))
    assert together.batch_size == (2,)


def test_leaves_of_several_dtypes_keep_theirs():
    params = TensorDict({"a": torch.ones(2), "b": torch.ones((), dtype=torch.float64)})
    optimizer = chain(
        clip=clip_by_global_norm(1.0),
        decay=add_decayed_weights(torch.tensor(0.1, dtype=torch.float64)),
        trace=trace(0.5, 0.5),
        adam=scale_by_adam(),
        rate=scale_by_schedule(lambda count: torch.tensor(0.1, dtype=torch.float64)),
        lr=scale(torch.tensor(-1.0)),
    )
    updates, state = optimizer.update(params, optimizer.init(params), params)
    for got in (
        updates,
        state["adam", "mu"],
        state["trace", "trace"],
        apply_updates(params, updates),
    ):
        assert (got["a"].dtype, got["b"].dtype) == (torch.float32, torch.float64)
    same, _ = scale_by_adam().update(params, scale_by_adam().init(params), params)
    for name in "ab":  # one at a time, all leaves at once
        one = params.select(name)
        wanted, _ = scale_by_adam().update(one, scale_by_adam().init(one), one)
        assert torch.equal(same[name], wanted[name])


@pytest.mark.parametrize(
    "transform", [trace(0.9), scale_by_adam(), clip_by_global_norm(1.0), scale(2.0)], ids=str
)
def test_trees_without_leaves_and_with_empty_sub_trees(transform):
    empty = TensorDict({"relu_0": TensorDict({})})
    updates, _ = transform.update(empty, transform.init(empty), empty)
    assert tree.flatten(updates)[1] == tree.flatten(empty)[1]
    params = TensorDict({"relu_0": TensorDict({}), "x": torch.ones(0, 3), "y": torch.ones(2)})
    updates, _ = transform.update(params, transform.init(params), params)
    assert apply_updates(params, updates)["y"].isfinite().all()


def test_names_may_come_in_any_order_and_batch_sizes_follow_the_params():
    inner = TensorDict({"b": torch.ones(2, 3), "a": torch.ones(2)}, [2])
    params = TensorDict({"task": inner, "meta": torch.ones(())})
    grads = TensorDict(
        {
            "meta": torch.tensor(5.0),
            "task": TensorDict({"a": torch.ones(2), "b": torch.zeros(2, 3)}),
        }
    )
    updates, state = scale_by_adam().update(grads, scale_by_adam().init(params), params)
    assert list(updates.keys()) == ["task", "meta"] and list(updates["task"].keys()) == ["b", "a"]
    for got in (updates, state["mu"], state["nu"]):
        assert got["task"].batch_size == (2,)
    assert updates["task", "b"].eq(0).all() and updates["task", "a"].ne(0).all()


# ------------------------------------------------------------------------------------- bad inputs

ALL = {
    "scale": scale(1.0),
    "scale_by_schedule": scale_by_schedule(lambda count: 1.0),
    "add_decayed_weights": add_decayed_weights(0.1),
    "clip_by_global_norm": clip_by_global_norm(1.0),
    "trace": trace(0.9, 0.1),
    "scale_by_adam": scale_by_adam(),
}


@pytest.mark.parametrize("name", ALL)
def test_grads_that_do_not_fit_the_params(name):
    transform = ALL[name]
    params = TensorDict({"policy": TensorDict({"w": torch.ones(2, 3)}), "b": torch.ones(2)})
    state = transform.init(params)
    good = tree.map(torch.ones_like, params)

    def refused(error, message, grads, state=state, params=params):
        with pytest.raises(error, match=message) as caught:
            transform.update(grads, state, params)
        assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)

    refused(
        ValueError,
        "only grads has 'c'; only params has 'b'",
        good.exclude("b").set("c", torch.ones(2)),
    )
    wrong = tree.replace(good, {"b": torch.ones(2)}).unlock_()
    refused(
        ValueError,
        r"grads at 'policy.w' has shape \(3,\), expected \(2, 3\) \(from params\)",
        wrong.clone().set(("policy", "w"), torch.ones(3)),
    )
    refused(
        TypeError,
        "grads at 'b' is torch.float64, expected torch.float32 .from params.",
        wrong.clone().set("b", torch.ones(2).double()),
    )
    refused(TypeError, "grads is a dict, expected a TensorDict", {"b": torch.ones(2)})
    refused(TypeError, "params is a list", good, params=[torch.ones(2)])
    integers = TensorDict({"n": torch.ones(2, dtype=torch.int64)})
    refused(
        TypeError,
        "params at 'n' is torch.int64, expected a float dtype; tree.partition",
        integers,
        params=integers,
    )


@pytest.mark.parametrize("name", ["scale_by_schedule", "trace", "scale_by_adam"])
def test_a_state_that_belongs_to_another_optimizer(name):
    params, transform = vector(1.0, 2.0), ALL[name]
    other = chain(adam=scale_by_adam()).init(params)
    with pytest.raises(ValueError, match=f"{name}: the state holds 'adam', expected 'count'"):
        transform.update(params, other, params)
    with pytest.raises(TypeError, match="state is a NoneType"):
        transform.update(params, None, params)


@pytest.mark.parametrize(("name", "part"), [("trace", "trace"), ("scale_by_adam", "nu")])
def test_a_state_of_other_params(name, part):
    transform = ALL[name]
    state = transform.init(vector(1.0, 2.0))
    with pytest.raises(
        ValueError, match=rf"{name}: state\['\w+'\] at 'x' has shape \(2,\), expected"
    ):
        transform.update(vector(1.0), state, vector(1.0))
    other = TensorDict({"y": torch.ones(2, dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"only state\['\w+'\] has 'x'; only params has 'y'"):
        transform.update(other, state, other)
    assert part in state.keys()


def test_init_of_params_that_are_not_float():
    integers = TensorDict({"n": torch.ones(2, dtype=torch.int64)})
    for transform in (ALL["trace"], ALL["scale_by_adam"]):
        with pytest.raises(TypeError, match="params at 'n' is torch.int64, expected a float dtype"):
            transform.init(integers)


@pytest.mark.parametrize(
    ("params", "updates", "error", "message"),
    [
        (
            vector(1.0),
            TensorDict({}),
            ValueError,
            "apply_updates: the names differ: only params has 'x'",
        ),
        (
            vector(1.0),
            vector(1.0, 2.0),
            ValueError,
            r"updates at 'x' has shape \(2,\), expected \(1,\)",
        ),
        (
            vector(1.0),
            vector(1.0, dtype=torch.float32),
            TypeError,
            "updates at 'x' is torch.float32",
        ),
        (vector(1.0), None, TypeError, "apply_updates: updates is a NoneType"),
    ],
)
def test_updates_that_do_not_fit(params, updates, error, message):
    with pytest.raises(error, match=message):
        apply_updates(params, updates)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: clip_by_global_norm(0), ValueError, "max_norm is 0, expected more"),
        (lambda: clip_by_global_norm(-1.0), ValueError, "max_norm is -1.0, expected at least 0"),
        (lambda: scale(float("nan")), ValueError, "factor is nan, expected a finite number"),
        (lambda: scale(dict), TypeError, "factor is a type"),
        (
            lambda: scale_by_schedule(0.1),
            TypeError,
            "schedule is a float, expected a function of the count",
        ),
        (lambda: trace(0.9, dampening=[1]), TypeError, "dampening is a list"),
        (
            lambda: run(scale_by_schedule(lambda count: torch.ones(2)), [vector(1.0, 2.0)]),
            ValueError,
            r"what the schedule factor gave has shape \(2,\)",
        ),
    ],
)
def test_bad_hyper_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()
