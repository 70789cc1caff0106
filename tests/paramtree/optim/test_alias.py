import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import (
    adam,
    adamw,
    apply_updates,
    linear,
    scale_by_adam,
    sgd,
)

STEPS = 20


def train(optimizer, params, loss, steps):
    """Plain loop: params and states after each step."""
    state, history = optimizer.init(params), [params]
    for _ in range(steps):
        grads = paramtree.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        params = apply_updates(params, updates)
        history.append(params)
    return history, state


def train_torch(make, params, loss, steps, rates=None):
    structure = tree.flatten(params)[1]
    leaves = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    optimizer, history = make(leaves), [params]
    for step in range(steps):
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        loss(tree.unflatten(structure, leaves)).backward()
        optimizer.step()
        history.append(tree.unflatten(structure, [leaf.detach().clone() for leaf in leaves]))
    return history


def assert_trees_close(got, wanted, rtol=1e-10, atol=1e-12):
    assert tree.paths(got) == tree.paths(wanted)
    for a, b in zip(tree.leaves(got), tree.leaves(wanted), strict=True):
        assert_close(a, b, rtol=rtol, atol=atol)


SGD = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.8, "nesterov": True},
    {"weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.05},
    {"momentum": 0.7, "nesterov": True, "weight_decay": 0.2},
]
ADAM = [
    {},
    {"b1": 0.7},
    {"b2": 0.9},
    {"eps": 0.01},
    {"b1": 0.0, "b2": 0.5},
    {"b1": 0.5, "eps": 0.1},
]
ADAMW = [{}, {"weight_decay": 0.5}, {"weight_decay": 0.0}, {"b1": 0.5, "b2": 0.8, "eps": 0.1}]


def torch_names(options):
    rest = {name: value for name, value in options.items() if name not in ("b1", "b2")}
    if "b1" in options or "b2" in options:
        rest["betas"] = (options.get("b1", 0.9), options.get("b2", 0.999))
    return rest


CASES = [
    *[(sgd, torch.optim.SGD, 0.3, options) for options in SGD],
    *[(adam, torch.optim.Adam, 0.05, options) for options in ADAM],
    *[(adamw, torch.optim.AdamW, 0.05, options) for options in ADAMW],
]
CASE_IDS = [f"{ours.__name__}-{options}" for ours, _, _, options in CASES]


@pytest.mark.parametrize(("ours", "theirs", "lr", "options"), CASES, ids=CASE_IDS)
def test_twenty_steps_are_torchs(ours, theirs, lr, options, params, loss):
    got, _ = train(ours(lr, **options), params, loss, STEPS)
    wanted = train_torch(
        lambda leaves: theirs(leaves, lr=lr, **torch_names(options)), params, loss, STEPS
    )
    for a, b in zip(got, wanted, strict=True):
        assert_trees_close(a, b)
    moved = [(a - b).abs().max() for a, b in zip(*map(tree.leaves, (got[-1], params)), strict=True)]
    assert min(moved) > 1e-3  # so the agreement means something


@pytest.mark.parametrize(("ours", "theirs", "lr", "options"), CASES, ids=CASE_IDS)
def test_tensors_as_hyper_parameters_give_the_same_steps(ours, theirs, lr, options, params, loss):
    tensors = {
        name: value if isinstance(value, bool) else torch.tensor(value, dtype=torch.float64)
        for name, value in options.items()
    }
    got, _ = train(ours(torch.tensor(lr, dtype=torch.float64), **tensors), params, loss, STEPS)
    wanted, _ = train(ours(lr, **options), params, loss, STEPS)
    assert_trees_close(got[-1], wanted[-1])


@pytest.mark.parametrize(("ours", "theirs"), [(sgd, torch.optim.SGD), (adam, torch.optim.Adam)])
def test_a_schedule_is_the_rate_of_each_step(ours, theirs, params, loss):
    got, state = train(ours(linear(0.2, 0.1, 8)), params, loss, STEPS)
    rates = [0.2 - 0.1 * min(step / 8, 1.0) for step in range(STEPS)]
    wanted = train_torch(lambda leaves: theirs(leaves, lr=0.2), params, loss, STEPS, rates)
    assert_trees_close(got[-1], wanted[-1])
    assert int(state["lr", "count"]) == STEPS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_narrow_dtypes_stay_and_are_as_right_as_torchs(dtype, params, loss):
    low = tree.map(lambda leaf: leaf.to(dtype), params)

    def narrow(params):
        return loss(tree.map(torch.Tensor.double, params))

    rate = torch.tensor(0.05, dtype=torch.float64)  # a wide tensor changes no dtype
    for lr in (0.05, rate, linear(0.05, 0.05, 3)):
        got, state = train(adamw(lr), low, narrow, 5)
        assert {leaf.dtype for leaf in tree.leaves(got[-1])} == {dtype}
        assert {leaf.dtype for leaf in tree.leaves(state["adam", "nu"])} == {torch.float32}
        exact, _ = train(adamw(lr), params, loss, 5)
        rounding = 40 * torch.finfo(dtype).eps
        wide = tree.map(torch.Tensor.double, got[-1])
        assert_trees_close(wide, exact[-1], rtol=rounding, atol=rounding)


def test_the_first_correction_keeps_its_digits_in_float32():
    """1 - 0.999 in float32 arithmetic is off by 1e-5, which torch's float64 count avoids."""
    params = TensorDict({"x": torch.tensor([1.0])})
    grads = TensorDict({"x": torch.tensor([1e-4])})
    optimizer = scale_by_adam(b1=0.9, b2=0.999, eps=0.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert abs(updates["x"].item() - 1.0) < 3e-7


def test_names_of_the_state(params):
    state = adam(1e-3).init(params)
    assert state["adam", "mu", "policy", "linear_0", "weight"].shape == (3, 2)
    assert state["adam", "count"].dtype == torch.int64 and state["adam", "count"].shape == ()
    assert sorted(sgd(0.1).init(params).keys()) == ["lr"]
    assert sorted(sgd(0.1, momentum=0.9, weight_decay=0.1).init(params).keys()) == [
        "decay",
        "lr",
        "momentum",
    ]
    assert state.is_locked and state.get("adam").is_locked and state.get("adam").get("mu").is_locked


# d(sum of p_2) / d(rate) after two steps on the sum of p^3 from (1, 2) with rate 0.1. The numbers
# in the last column are torchopt's, whose Adam corrects its moments in float32.
PUBLISHED = [
    (sgd, torch.optim.SGD, -11.37, 1e-12),
    (adam, torch.optim.Adam, -3.96269034, 1e-5),
    (adamw, torch.optim.AdamW, -4.01788357, 1e-5),
]


@pytest.mark.parametrize(("ours", "theirs", "published", "rtol"), PUBLISHED)
def test_the_slope_in_the_rate_that_others_measured(ours, theirs, published, rtol, central):
    start = TensorDict({"p": torch.tensor([1.0, 2.0], dtype=torch.float64)})

    def cubes(params):
        return (params["p"] ** 3).sum()

    def end(lr):
        return train(ours(lr), start, cubes, 2)[0][-1]["p"].sum()

    def torchs_end(lr):
        make = lambda leaves: theirs(leaves, lr=lr.item())  # noqa: E731
        return train_torch(make, start, cubes, 2)[-1]["p"].sum()

    rate = torch.tensor(0.1, dtype=torch.float64)
    got = torch.func.grad(end)(rate)
    assert_close(got, central(torchs_end, rate), rtol=1e-8, atol=0)
    assert_close(got.item(), published, rtol=rtol, atol=0)


# ------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sgd(-0.1), ValueError, "sgd: lr is -0.1, expected at least 0"),
        (lambda: sgd(float("nan")), ValueError, "sgd: lr is nan"),
        (
            lambda: adam(float("inf")),
            ValueError,
            "adam: lr is inf, expected at least 0 and below inf",
        ),
        (
            lambda: sgd("0.1"),
            TypeError,
            "sgd: lr is a str, expected a float, a 0-d tensor or a schedule",
        ),
        (lambda: sgd(True), TypeError, "sgd: lr is a bool"),
        (lambda: sgd(torch.ones(3)), ValueError, r"sgd: lr has shape \(3,\).*vmap"),
        (
            lambda: adam(torch.tensor(1)),
            TypeError,
            "adam: lr is torch.int64, expected a float dtype",
        ),
        (lambda: sgd(0.1, momentum=-1), ValueError, "sgd: momentum is -1"),
        (lambda: sgd(0.1, nesterov=True), ValueError, "sgd: momentum is 0, expected more"),
        (
            lambda: sgd(0.1, 0.9, 0.1, nesterov=True),
            ValueError,
            "trace: dampening is 0.1, expected 0.0 with nesterov=True",
        ),
        (lambda: sgd(0.1, weight_decay=-1.0), ValueError, "sgd: weight_decay is -1.0"),
        (lambda: adam(0.1, b1=1.0), ValueError, "b1 is 1.0, expected at least 0 and below 1"),
        (lambda: adam(0.1, b2=-0.1), ValueError, "b2 is -0.1, expected at least 0 and below 1"),
        (lambda: adam(0.1, eps=-1e-8), ValueError, "eps is -1e-08"),
        (lambda: adamw(0.1, weight_decay=None), TypeError, "weight_decay is a NoneType"),
    ],
)
def test_bad_hyper_parameters(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
