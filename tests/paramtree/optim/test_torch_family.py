"""RMSprop, Adagrad, Adadelta, Adamax, RAdam, NAdam, Rprop and ASGD beside torch.optim's."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import optim, tree

STEPS = 20
BOTH = ("float64", "complex128")
SHAPES = {"a": (3, 4), "b": (5,), "c": ()}


@pytest.fixture(autouse=True)
def wide_scalars():
    """torch keeps NAdam's product and ASGD's rates in the default dtype, ours are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def draw(dtype, seed):
    """Params and the gradients of each step, with zeros, some of them for good."""
    source = torch.Generator().manual_seed(seed)
    params, grads = {}, {}
    for name, shape in SHAPES.items():
        real = torch.float64
        whole = torch.randn((STEPS + 1, *shape, 2), generator=source, dtype=real)
        parts = torch.rand(whole.shape, generator=source, dtype=real)
        whole = torch.where(
            (parts < 0.2) & (torch.arange(STEPS + 1) > 0).view(-1, *[1] * (len(shape) + 1)),
            0.0,
            whole,
        )
        if shape:
            whole[1:, 0] = 0.0
        whole = torch.view_as_complex(whole) if dtype is torch.complex128 else whole[..., 0]
        params[name], grads[name] = whole[0], whole[1:]
    nest = lambda x: TensorDict({"top": TensorDict({"a": x["a"], "b": x["b"]}), "c": x["c"]})  # noqa: E731
    return tree.lock(nest(params)), [
        nest({name: g[t] for name, g in grads.items()}) for t in range(STEPS)
    ]


def train(optimizer, params, grads):
    state, history = optimizer.init(params), []
    for g in grads:
        updates, state = optimizer.update(g, state, params)
        params = optim.apply_updates(params, updates)
        history.append(params)
    return history, state


def train_torch(kind, options, params, grads):
    leaves = [torch.nn.Parameter(leaf.clone()) for leaf in tree.leaves(params)]
    optimizer, history = getattr(torch.optim, kind)(leaves, **options), []
    for step in grads:
        for leaf, g in zip(leaves, tree.leaves(step), strict=True):
            leaf.grad = g.clone()
        optimizer.step()
        history.append([leaf.detach().clone() for leaf in leaves])
    return history, [optimizer.state[leaf] for leaf in leaves]


WEIGHT = {"weight_decay": 0.1}
UP = {"maximize": True}
APART = {"decoupled_weight_decay": True}
B = {"b1": 0.8, "b2": 0.95, "eps": 1e-2}
BETAS = {"betas": (0.8, 0.95), "eps": 1e-2}
MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq"}

# our function, our options, torch's name, torch's where they differ, state entries in both
ROWS = [
    ("rmsprop", {}, "RMSprop", {}, {"rms.nu": "square_avg"}),
    (
        "rmsprop",
        {"lr": 0.03, "decay": 0.6, "eps": 0.1, "momentum": 0.7, **WEIGHT, **UP},
        "RMSprop",
        {"lr": 0.03, "alpha": 0.6, "eps": 0.1, "momentum": 0.7, **WEIGHT, **UP},
        {"rms.nu": "square_avg", "momentum.trace": "momentum_buffer"},
    ),
    (
        "rmsprop",
        {"decay": 0.9, "centered": True, "eps": 1e-3},
        "RMSprop",
        {"alpha": 0.9, "centered": True, "eps": 1e-3},
        {"stddev.nu": "square_avg", "stddev.mu": "grad_avg"},
    ),
    ("adagrad", {}, "Adagrad", {}, {"rss.nu": "sum"}),
    (
        "adagrad",
        {"lr": 0.2, "lr_decay": 0.3, "initial_accumulator": 0.4, "eps": 0.1, **WEIGHT, **UP},
        "Adagrad",
        {"lr": 0.2, "lr_decay": 0.3, "initial_accumulator_value": 0.4, "eps": 0.1, **WEIGHT, **UP},
        {"rss.nu": "sum"},
    ),
    (
        "adadelta",
        {},
        "Adadelta",
        {},
        {"adadelta.nu": "square_avg", "adadelta.nu_update": "acc_delta"},
    ),
    *[
        ("adadelta", options, "Adadelta", options, {"adadelta.nu_update": "acc_delta"})
        for options in ({"lr": 0.5, "rho": 0.5, "eps": 1e-2}, {"rho": 0.0}, {**WEIGHT, **UP})
    ],
    ("adamax", {}, "Adamax", {}, {"adamax.mu": "exp_avg", "adamax.nu": "exp_inf"}),
    (
        "adamax",
        {**B, **WEIGHT, **UP},
        "Adamax",
        {**BETAS, **WEIGHT, **UP},
        {"adamax.nu": "exp_inf"},
    ),
    *[
        (
            kind.lower(),
            {**ours, **more},
            kind,
            {**theirs, **more},
            {f"{kind.lower()}.{k}": v for k, v in MOMENTS.items()},
        )
        for kind in ("RAdam", "NAdam")
        for ours, theirs in (({}, {}), (B, BETAS))
        for more in ({}, {**WEIGHT, **UP}, {**WEIGHT, **APART}, {**WEIGHT, **APART, **UP})
    ],
    (
        "nadam",
        {"momentum_decay": 0.2},
        "NAdam",
        {"momentum_decay": 0.2},
        {"nadam.mu_product": "mu_product"},
    ),
    ("radam", {"b2": 0.0, "b1": 0.0}, "RAdam", {"betas": (0.0, 0.0)}, {}),
    ("rprop", {}, "Rprop", {}, {"rprop.step_size": "step_size", "rprop.previous": "prev"}),
    (
        "rprop",
        {"lr": 0.3, "eta_minus": 0.3, "eta_plus": 1.4, "step_min": 0.1, "step_max": 0.6, **UP},
        "Rprop",
        {"lr": 0.3, "etas": (0.3, 1.4), "step_sizes": (0.1, 0.6), **UP},
        {"rprop.step_size": "step_size"},
    ),
    *[
        ("asgd", options, "ASGD", options, {"asgd.average": "ax"})
        for options in (
            {},
            {"lr": 0.1, "lambd": 0.3, "alpha": 0.5, "t0": 4},
            {"lr": 0.1, "t0": 0.0, **WEIGHT, **UP},
        )
    ],
]


def shown(row):
    return row[0] + "-" + ",".join([f"{k}={v}" for k, v in row[1].items()])


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("row", ROWS, ids=shown)
def test_twenty_steps_and_states_are_torchs(row, dtype):
    name, ours, kind, theirs, entries = row
    params, grads = draw(getattr(torch, dtype), 3)
    got, state = train(getattr(optim, name)(**ours), params, grads)
    wanted, states = train_torch(kind, theirs, params, grads)
    for t, (a, b) in enumerate(zip(got, wanted, strict=True)):
        message = lambda text, t=t: f"step {t + 1}: {text}"  # noqa: E731
        assert_close(tree.leaves(a), b, rtol=1e-10, atol=1e-14, msg=message)
    assert (got[-1]["top", "a"] - params["top", "a"]).abs().max() > 1e-3
    for entry, key in entries.items():
        mine = state[tuple(entry.split("."))]
        if isinstance(mine, torch.Tensor):
            assert mine.dtype is torch.float64 and mine.shape == ()
            assert_close(mine, states[0][key], rtol=1e-12, atol=0)
        else:
            theirs = [held[key] for held in states]
            assert_close(tree.leaves(mine), theirs, rtol=1e-10, atol=1e-14)


STATES = {
    "rmsprop": (optim.rmsprop(momentum=0.9), ["rms.nu", "momentum.count", "momentum.trace"]),
    "centered": (optim.rmsprop(centered=True), ["stddev.mu", "stddev.nu"]),
    "adagrad": (optim.adagrad(), ["rss.count", "rss.nu"]),
    "adadelta": (optim.adadelta(), ["adadelta.nu", "adadelta.nu_update"]),
    "adamax": (optim.adamax(), ["adamax.count", "adamax.mu", "adamax.nu"]),
    "radam": (optim.radam(), ["radam.count", "radam.mu", "radam.nu"]),
    "nadam": (optim.nadam(), ["nadam.count", "nadam.mu", "nadam.nu", "nadam.mu_product"]),
    "rprop": (optim.rprop(), ["rprop.previous", "rprop.step_size"]),
    "asgd": (optim.asgd(), ["asgd.count", "asgd.average"]),
}


@pytest.mark.parametrize("name", STATES)
def test_names_of_the_state(name, params):
    optimizer, wanted = STATES[name]
    state = optimizer.init(params)
    found = {".".join(path[:2]) for path in tree.paths(state)}
    assert found == set(wanted)
    for entry in wanted:
        held = state[tuple(entry.split("."))]
        if entry.endswith("count"):
            assert held.dtype is torch.int64 and held.shape == ()
        elif not entry.endswith("mu_product"):
            assert held["policy", "linear_0", "weight"].shape == (3, 2)
    assert state.is_locked


def test_where_weight_decay_and_ascent_stand():
    names = lambda optimizer: list(optimizer.init(TensorDict({"x": torch.ones(2)})).keys())  # noqa: E731
    assert names(optim.radam(weight_decay=0.1, maximize=True)) == ["ascent", "decay", "radam", "lr"]
    assert names(optim.nadam(weight_decay=0.1, decoupled_weight_decay=True)) == [
        "nadam",
        "decay",
        "lr",
    ]
    assert names(optim.rmsprop(weight_decay=0.1, momentum=0.5)) == [
        "decay",
        "rms",
        "momentum",
        "lr",
    ]
    assert names(optim.rprop(maximize=True)) == ["ascent", "rprop", "descent"]
    assert names(optim.asgd(weight_decay=0.1, maximize=True)) == ["ascent", "decay", "asgd"]


# ------------------------------------------------------------------------------------ by hand


def vector(*numbers):
    return TensorDict({"x": torch.tensor(numbers, dtype=torch.float64)})


def updates_of(transform, *grads):
    params = tree.map(torch.zeros_like, grads[0])
    state, out = transform.init(params), []
    for g in grads:
        updates, state = transform.update(g, state, params)
        out.append(updates["x"].tolist())
    return out, state


def test_rms_by_hand():
    got, _ = updates_of(optim.scale_by_rms(0.75, eps=1.0), vector(4.0, 0.0), vector(0.0, -2.0))
    assert_close(got, [[4 / 3, 0.0], [0.0, -2 / 2.0]])
    got, _ = updates_of(optim.scale_by_rms(0.5, eps=1.0, eps_in_root=True), vector(4.0))
    assert_close(got, [[4 / 3]])
    got, _ = updates_of(optim.scale_by_rms(0.5, eps=0.0, initial_scale=8.0), vector(0.0, 2.0))
    assert_close(got, [[0.0, 2 / 6**0.5]])
    got, _ = updates_of(optim.scale_by_stddev(0.5, eps=1.0, eps_in_root=True), vector(4.0))
    assert_close(got, [[4 / 5**0.5]])


def test_nesterov_momentum_of_rmsprop():
    optimizer = optim.rmsprop(1.0, 0.75, eps=1.0, momentum=0.5, nesterov=True)
    got, _ = updates_of(optimizer, vector(4.0), vector(0.0))
    assert_close(got, [[-1.5 * 4 / 3], [-0.25 * 4 / 3]])


def test_a_variance_that_rounding_makes_negative_is_zero():
    """Gradients that are all the same, long enough for both means to reach them."""
    grads = [TensorDict({"x": torch.full((200,), 0.1).mul(torch.arange(1.0, 201.0)).float()})] * 40
    state = (transform := optim.scale_by_stddev(0.5)).init(grads[0])
    for g in grads:
        updates, state = transform.update(g, state, g)
        assert updates["x"].isfinite().all()
    assert (state["nu", "x"] - state["mu", "x"].square() < 0).any()


def test_radam_is_plain_momentum_up_to_the_threshold():
    grads = [vector(0.5)] * 12
    got, _ = updates_of(optim.scale_by_radam(0.5, 0.9, eps=0.0), *grads)
    longest, used = 2 / 0.1 - 1, []
    for t in range(1, 13):
        rho = longest - 2 * t * 0.9**t / (1 - 0.9**t)
        r2 = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
        used.append(rho > 5)
        assert_close(got[t - 1][0], math.sqrt(r2) if rho > 5 else 0.5, rtol=1e-12, atol=0)
    assert used.index(True) == 5
    late, _ = updates_of(optim.scale_by_radam(0.5, 0.9, eps=0.0, threshold=7.5), *grads)
    assert [a == b for (a,), (b,) in zip(got, late, strict=True)].index(False) == 5
    assert late[-1] == got[-1] and late[6] == [0.5]


def test_nadam_without_a_schedule_is_adam_with_nesterovs_momentum():
    grads = [vector(0.5, -2.0), vector(-1.0, 0.1), vector(0.0, 3.0)]
    got, state = updates_of(optim.scale_by_nadam(0.8, 0.9, momentum_decay=1e9), *grads)
    wanted, _ = updates_of(optim.scale_by_adam(0.8, 0.9, nesterov=True), *grads)
    assert_close(got, wanted, rtol=1e-12, atol=0)
    assert_close(state["mu_product"], torch.tensor(0.8**3))


def test_rprop_by_hand():
    """Same sign: larger; turned: smaller, and no step; after that, and at 0: as it was."""
    rprop = optim.scale_by_rprop(1.0, 0.5, 3.0, step_max=5.0)
    got, state = updates_of(rprop, *[vector(x) for x in (2.0, 0.1, -7.0, -1.0, 0.0, -1.0, -1.0)])
    assert [x for (x,) in got] == [1.0, 3.0, 0.0, -1.5, 0.0, -1.5, -4.5]
    assert state["previous", "x"].tolist() == [-1.0]
    got, _ = updates_of(rprop, vector(1.0), vector(1.0), vector(1.0))
    assert [x for (x,) in got] == [1.0, 3.0, 5.0]


def test_rprop_asks_a_schedule_for_its_first_value():
    got, state = updates_of(optim.scale_by_rprop(lambda count: 0.5 - count * 0.1), vector(2.0))
    assert got == [[0.5]] and sorted(state.keys()) == ["previous", "step_size"]


def test_asgds_average_is_that_of_the_params_after_each_step(params, loss):
    optimizer, p = optim.asgd(0.1, t0=2), params
    state, seen = optimizer.init(p), []
    for _ in range(8):
        updates, state = optimizer.update(paramtree.grad(loss)(p), state, p)
        p = optim.apply_updates(p, updates)
        seen.append(p)
        rest = seen[3:] or seen[-1:]
        mean = tree.map(lambda *leaves: sum(leaves) / len(leaves), *rest)
        assert_close(tree.leaves(state["asgd", "average"]), tree.leaves(mean))
    assert torch.equal(optimizer.init(params)["asgd", "average", "scale"], torch.tensor(0.0))


# ----------------------------------------------------------------------------------- derivatives

LEARNED = {
    "rmsprop": {"lr": 0.1, "decay": 0.8, "eps": 0.1, "momentum": 0.7, "weight_decay": 0.1},
    "rmsprop+centered": {"lr": 0.1, "decay": 0.6, "eps": 0.1},
    "rmsprop+eps_in_root": {"lr": 0.1, "decay": 0.8, "eps": 0.1},
    "rmsprop+centered+eps_in_root": {"lr": 0.1, "decay": 0.6, "eps": 0.1},
    "rmsprop+nesterov": {"lr": 0.1, "decay": 0.8, "momentum": 0.7},
    "adagrad": {
        "lr": 0.3,
        "lr_decay": 0.1,
        "initial_accumulator": 0.1,
        "eps": 0.1,
        "weight_decay": 0.1,
    },
    "adadelta": {"lr": 1.0, "rho": 0.8, "eps": 0.1, "weight_decay": 0.1},
    "adamax": {"lr": 0.1, "b1": 0.8, "b2": 0.9, "eps": 0.1, "weight_decay": 0.1},
    "adamax+decoupled_weight_decay": {"lr": 0.1, "b1": 0.8, "weight_decay": 0.1},
    # rectified at the fourth of the five steps
    "radam": {"lr": 0.1, "b1": 0.8, "b2": 0.98, "eps": 0.1, "threshold": 4.0, "weight_decay": 0.1},
    "radam+decoupled_weight_decay": {"lr": 0.1, "b2": 0.98, "threshold": 4.0, "weight_decay": 0.1},
    "nadam": {"lr": 0.1, "b1": 0.8, "b2": 0.9, "eps": 0.1, "momentum_decay": 0.3},
    "nadam+decoupled_weight_decay": {"lr": 0.1, "b1": 0.8, "weight_decay": 0.1},
    "rprop": {"lr": 0.1, "eta_minus": 0.5, "eta_plus": 1.3},
    "rprop+maximize": {"lr": 0.1, "eta_plus": 1.3, "step_min": 0.09, "step_max": 0.14},
    "asgd": {"lr": 0.3, "lambd": 0.1, "alpha": 0.7, "t0": 1.5, "weight_decay": 0.1},
}
NO_SLOPE = {"threshold", "t0"}  # the one nowhere, the other in the average alone


def build(name, hyper):
    name, *flags = name.split("+")
    return getattr(optim, name)(**hyper, **dict.fromkeys(flags, True))


def as_tree(hyper):
    return tree.new({k: torch.tensor(v, dtype=torch.float64) for k, v in hyper.items()})


def after_steps(name, loss, steps=5):
    def outer(hyper, params):
        optimizer = build(name, tree.entries(hyper))
        state = optimizer.init(params)
        for t in range(steps):
            sign = -1.0 if t == 3 else 1.0  # so that signs turn
            grads = tree.map(lambda g, sign=sign: sign * g, paramtree.grad(loss)(params))
            updates, state = optimizer.update(grads, state, params)
            params = optim.apply_updates(params, updates)
        return loss(params)

    return outer


@pytest.mark.parametrize("name", LEARNED)
def test_meta_gradients_against_central_differences(name, params, loss, central):
    outer, hyper = after_steps(name, loss), as_tree(LEARNED[name])
    slopes, at_start = paramtree.grad(outer, argnums=(0, 1))(hyper, params)
    for key in hyper.keys():
        probe = lambda x, key=key: outer(tree.replace(hyper, {key: x}), params)  # noqa: E731
        assert_close(slopes[key], central(probe, hyper[key]), rtol=1e-6, atol=1e-9)
        if key not in NO_SLOPE:
            assert slopes[key] != 0, key
    for path, got in zip(tree.paths(params), tree.leaves(at_start), strict=True):
        probe = lambda x, path=path: outer(hyper, tree.replace(params, {path: x}))  # noqa: E731
        assert_close(got, central(probe, params[path]), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("key", ["lr", "lambd", "alpha", "t0"])
def test_the_average_of_asgd_has_the_slopes_of_a_mean_of_params(key, params, loss, central):
    hyper = {"lr": 0.3, "lambd": 0.1, "alpha": 0.7, "t0": 1.5}

    def mean(x):
        optimizer = optim.asgd(**{**hyper, key: x})
        state, p = optimizer.init(params), params
        for _ in range(6):
            updates, state = optimizer.update(paramtree.grad(loss)(p), state, p)
            p = optim.apply_updates(p, updates)
        return tree.vdot(state["asgd", "average"], state["asgd", "average"])

    at = torch.tensor(hyper[key])
    assert_close(torch.func.grad(mean)(at), central(mean, at), rtol=1e-6, atol=1e-9)
    assert torch.func.grad(mean)(at).abs() > 1e-6


@pytest.mark.parametrize("name", LEARNED)
def test_second_meta_derivatives_against_central_differences(name, params, loss, central):
    outer, hyper = after_steps(name, loss, 4), as_tree(LEARNED[name])

    for key in ("lr", sorted(hyper.keys())[1]):

        def slope(x, key=key):
            changed = tree.replace(hyper, {key: x})
            return paramtree.grad(outer)(changed, params)[key]

        got = torch.func.grad(slope)(hyper[key])
        assert_close(got, central(slope, hyper[key], 1e-5), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("defaults", [False, True], ids=["learned", "defaults"])
@pytest.mark.parametrize("name", LEARNED)
def test_zero_gradients_give_no_nan_in_two_derivatives(name, defaults, params):
    hyper = as_tree({"lr": 0.1} if defaults else LEARNED[name])
    if "nesterov" in name:
        hyper = as_tree({"lr": 0.1, "momentum": 0.9})

    def moved(hyper, slope):
        """Three steps along gradients that are slope * params, where slope is 0."""
        optimizer = build(name, tree.entries(hyper))
        p, state = params, optimizer.init(params)
        for _ in range(3):
            grads = tree.map(lambda leaf: slope * leaf, p)
            updates, state = optimizer.update(grads, state, p)
            p = optim.apply_updates(p, updates)
        return sum(leaf.square().sum() for leaf in tree.leaves(p))

    def size_of_first(hyper, slope):
        first = paramtree.grad(moved, argnums=(0, 1))(hyper, slope)
        return sum(leaf.square().sum() for leaf in tree.leaves(tuple(first)))

    zero = torch.zeros(())
    for f in (moved, size_of_first):
        for leaf in tree.leaves(tuple(paramtree.grad(f, argnums=(0, 1))(hyper, zero))):
            assert leaf.isfinite()


def test_no_derivative_goes_through_the_signs_of_rprop():
    def end(g):
        got, _ = optim.scale_by_rprop(0.1).update(g, optim.scale_by_rprop(0.1).init(g), g)
        return got["x"].sum()

    assert paramtree.grad(end)(vector(0.3, -2.0, 0.0))["x"].tolist() == [0.0, 0.0, 0.0]


# ------------------------------------------------------------------------- tasks, schedules, dtypes


@pytest.mark.parametrize("name", LEARNED)
def test_each_hyper_parameter_may_differ_between_tasks(name, params, loss):
    hyper = as_tree(LEARNED[name])
    outer = after_steps(name, loss, 3)
    for key in hyper.keys():
        values = hyper[key] * torch.tensor([1.0, 1.04, 1.08])
        alone = lambda x, key=key: outer(tree.replace(hyper, {key: x}), params)  # noqa: E731
        wanted = torch.stack([alone(x) for x in values])
        assert_close(paramtree.vmap(alone)(values), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LEARNED)
def test_each_hyper_parameter_may_be_a_schedule(name, params, loss):
    """Of a constant, the numbers are those of the constant; of two, they change with the step."""
    fixed = {"initial_accumulator"}
    hyper = LEARNED[name]
    moving = {k: v if k in fixed else (lambda count, v=v: v) for k, v in hyper.items()}

    def end(hyper):
        optimizer = build(name, hyper)
        state, p = optimizer.init(params), params
        for _ in range(4):
            updates, state = optimizer.update(paramtree.grad(loss)(p), state, p)
            p = optim.apply_updates(p, updates)
        return tree.leaves(p)

    assert_close(end(moving), end(hyper), rtol=1e-12, atol=0)
    key = "eta_plus" if "rprop" in name else "lr"
    changed = {**hyper, key: lambda count: torch.where(count < 2, hyper[key], hyper[key] * 0.8)}
    one = {**hyper, key: optim.piecewise_constant(hyper[key], {2: 0.8})}
    assert_close(end(changed), end(one), rtol=1e-12, atol=0)
    assert not torch.equal(end(changed)[0], end(hyper)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LEARNED)
def test_narrow_dtypes_stay(name, dtype):
    params, grads = draw(torch.float64, 5)
    hypers = [LEARNED[name], tree.entries(as_tree(LEARNED[name]))]
    exact, _ = train(build(name, hypers[0]), params, grads[:5])
    low = tree.map(lambda leaf: leaf.to(dtype), params)
    for hyper in hypers:
        narrow = [tree.map(lambda leaf: leaf.to(dtype), g) for g in grads[:5]]
        got, state = train(build(name, hyper), low, narrow)
        assert {leaf.dtype for leaf in tree.leaves(got[-1])} == {dtype}
        held = {
            leaf.dtype
            for path, leaf in zip(tree.paths(state), tree.leaves(state), strict=True)
            if path[-1] in SHAPES
        }
        assert held == {torch.float32}
        bound = 60 * torch.finfo(dtype).eps
        for a, b in zip(tree.leaves(got[-1]), tree.leaves(exact[-1]), strict=True):
            assert_close(a.double(), b, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", LEARNED)
def test_on_a_device_without_numbers(name):
    params = TensorDict({"x": torch.ones(2, 3, device="meta"), "y": torch.ones((), device="meta")})
    optimizer = build(name, LEARNED[name])
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    assert {leaf.device.type for leaf in tree.leaves((updates, state))} == {"meta"}


@pytest.mark.parametrize("name", LEARNED)
def test_trees_without_leaves_and_empty_leaves(name):
    optimizer = build(name, LEARNED[name])
    for params in (TensorDict({"relu": TensorDict({})}), TensorDict({"x": torch.ones(0, 3)})):
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        assert tree.paths(updates) == tree.paths(params)


# ------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize("name", ["rmsprop adagrad adadelta adamax radam nadam rprop asgd".split()])
def test_rates_that_no_optimizer_takes(name):
    for fn in name:
        make = getattr(optim, fn)
        for lr, error in [(-0.1, ValueError), (float("nan"), ValueError), ("x", TypeError)]:
            with pytest.raises(error, match=rf"{fn}: lr is"):
                make(lr)
        with pytest.raises(ValueError, match=r"lr has shape \(2,\), expected a float or a 0-d"):
            make(torch.ones(2))
        with pytest.raises(TypeError, match=f"{fn}: maximize is a int, expected True or False"):
            make(maximize=1)


BAD = [
    ("scale_by_rms", {"decay": 1.0}, ValueError, "decay is 1.0, expected at least 0 and below 1"),
    ("scale_by_rms", {"eps": -1.0}, ValueError, "eps is -1.0"),
    ("scale_by_rms", {"initial_scale": -1.0}, ValueError, "initial_scale is -1.0"),
    ("scale_by_rms", {"initial_scale": abs}, TypeError, "initial_scale is .*a 0-d tensor"),
    ("scale_by_rms", {"eps_in_root": 0}, TypeError, "eps_in_root is a int"),
    ("scale_by_stddev", {"decay": -0.1}, ValueError, "decay is -0.1"),
    ("scale_by_rss", {"lr_decay": -0.1}, ValueError, "lr_decay is -0.1"),
    ("scale_by_rss", {"initial_accumulator": -0.1}, ValueError, "initial_accumulator is -0.1"),
    ("scale_by_rss", {"eps": None}, TypeError, "eps is a NoneType"),
    ("scale_by_adadelta", {"rho": 1.5}, ValueError, "rho is 1.5"),
    ("scale_by_adadelta", {"eps": -1.0}, ValueError, "eps is -1.0"),
    ("scale_by_adamax", {"b1": 1.0}, ValueError, "b1 is 1.0"),
    ("scale_by_radam", {"b2": 1.0}, ValueError, "b2 is 1.0"),
    ("scale_by_radam", {"threshold": 3.0}, ValueError, "threshold is 3.0, expected at least 4"),
    ("scale_by_nadam", {"momentum_decay": -1.0}, ValueError, "momentum_decay is -1.0"),
    ("scale_by_rprop", {"eta_minus": 1.0}, ValueError, "eta_minus is 1.0"),
    ("scale_by_rprop", {"eta_plus": 0.9}, ValueError, "eta_plus is 0.9, expected at least 1"),
    ("scale_by_rprop", {"step_min": 2.0, "step_max": 1.0}, ValueError, "step_max is 1.0, expec"),
    ("rmsprop", {"momentum": -0.1}, ValueError, "momentum is -0.1"),
    ("rmsprop", {"nesterov": True}, ValueError, "momentum is 0, expected more with nesterov"),
    ("rmsprop", {"centered": None}, TypeError, "centered is a NoneType"),
    ("rmsprop", {"weight_decay": -0.1}, ValueError, "weight_decay is -0.1"),
    ("nadam", {"decoupled_weight_decay": 1}, TypeError, "decoupled_weight_decay is a int"),
    ("radam", {"decoupled_weight_decay": 1}, TypeError, "decoupled_weight_decay is a int"),
    ("adamax", {"decoupled_weight_decay": 1}, TypeError, "decoupled_weight_decay is a int"),
    ("asgd", {"lambd": -0.1}, ValueError, "lambd is -0.1"),
    ("asgd", {"alpha": -0.1}, ValueError, "alpha is -0.1"),
    ("asgd", {"t0": float("inf")}, ValueError, "t0 is inf"),
    ("asgd", {"weight_decay": -0.1}, ValueError, "weight_decay is -0.1"),
]


@pytest.mark.parametrize(("name", "options", "error", "message"), BAD)
def test_bad_hyper_parameters(name, options, error, message):
    with pytest.raises(error, match=f"{name}: {message}") as caught:
        getattr(optim, name)(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LEARNED)
def test_bad_trees(name):
    optimizer, params = build(name, LEARNED[name]), vector(1.0, 2.0)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"grads at 'x' has shape \(1,\), expected \(2,\)"):
        optimizer.update(vector(1.0), state, params)
    with pytest.raises(ValueError, match="the names differ"):
        optimizer.update(TensorDict({"y": torch.ones(2)}), state, params)
    with pytest.raises(ValueError, match="belongs to another"):
        optimizer.update(params, optim.adam().init(params), params)
    with pytest.raises(TypeError, match="expected a float dtype"):
        optimizer.init(TensorDict({"n": torch.ones(2, dtype=torch.int64)}))
