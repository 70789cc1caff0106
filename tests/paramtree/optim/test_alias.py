import itertools

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
    chain,
    clip_by_global_norm,
    linear,
    scale,
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
    eps = 1e-4  # 1e-8 is 0 in float16

    def narrow(params):
        return loss(tree.map(torch.Tensor.double, params))

    rate = torch.tensor(0.05, dtype=torch.float64)  # a wide tensor changes no dtype
    for lr in (0.05, rate, linear(0.05, 0.05, 3)):
        got, state = train(adamw(lr, eps=eps), low, narrow, 5)
        assert {leaf.dtype for leaf in tree.leaves(got[-1])} == {dtype}
        assert {leaf.dtype for leaf in tree.leaves(state["adam", "nu"])} == {dtype}
        exact, _ = train(adamw(lr, eps=eps), params, loss, 5)
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


# -------------------------------------------------------------------------------- meta-gradients

HYPERS = [
    (sgd, {"lr": 0.3}),
    (sgd, {"lr": 0.3, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (lambda nesterov=True, **hyper: sgd(nesterov=nesterov, **hyper), {"lr": 0.3, "momentum": 0.8}),
    (sgd, {"lr": 0.3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0}),
    (adam, {"lr": 0.05, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "eps_root": 1e-4}),
    (adam, {"lr": 0.05, "b1": 0.9, "b2": 0.999, "eps": 1e-8}),
    (
        adamw,
        {"lr": 0.05, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "eps_root": 1e-3, "weight_decay": 0.2},
    ),
    (
        lambda max_norm, lr: chain(clip=clip_by_global_norm(max_norm), lr=scale(-lr)),
        {"max_norm": 0.2, "lr": 0.5},
    ),
    (lambda start, end: sgd(linear(start, end, 4)), {"start": 0.3, "end": 0.1}),
]
HYPER_IDS = [
    "sgd",
    "sgd-all",
    "nesterov",
    "sgd-zeros",
    "adam",
    "adam-default",
    "adamw",
    "clip",
    "linear",
]


def after_five_steps(make, loss):
    """Loss after five steps, as a function of the hyper-parameters and the initial params."""

    def outer(hyper, params):
        optimizer = make(**{name: hyper[name] for name in hyper.keys()})
        state = optimizer.init(params)
        for _ in range(5):
            grads = paramtree.grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            params = apply_updates(params, updates)
        return loss(params)

    return outer


def as_tree(hyper):
    return TensorDict({k: torch.tensor(v, dtype=torch.float64) for k, v in hyper.items()})


def with_leaf(whole, path, value):
    return tree.map_with_path(lambda p, leaf: value if p == path else leaf, whole)


@pytest.mark.parametrize(("make", "hyper"), HYPERS, ids=HYPER_IDS)
def test_meta_gradients_against_central_differences(make, hyper, params, loss, central):
    outer, hyper = after_five_steps(make, loss), as_tree(hyper)
    grads = paramtree.grad(outer, argnums=(0, 1))(hyper, params)
    for path, got in zip(tree.paths(hyper), tree.leaves(grads[0]), strict=True):
        wanted = central(lambda x, p=path: outer(with_leaf(hyper, p, x), params), hyper[path], 1e-7)
        assert_close(got, wanted, rtol=1e-5, atol=1e-8)
        if path != ("eps",) or hyper["eps"] > 1e-6:
            assert got != 0
    for path, got in zip(tree.paths(params), tree.leaves(grads[1]), strict=True):
        wanted = central(lambda x, p=path: outer(hyper, with_leaf(params, p, x)), params[path])
        assert_close(got, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("make", "hyper"), HYPERS, ids=HYPER_IDS)
def test_torch_func_inside_and_autograd_outside_agree(make, hyper, params, loss):
    outer, hyper = after_five_steps(make, loss), as_tree(hyper)
    leaves = [leaf.clone().requires_grad_() for leaf in tree.leaves(hyper)]
    value = outer(tree.unflatten(tree.flatten(hyper)[1], leaves), params)
    wanted = torch.autograd.grad(value, leaves)
    names = sorted(hyper.keys())

    def flat(*leaves):
        return outer(dict(zip(names, leaves, strict=True)), params)

    got = torch.func.grad(flat, argnums=tuple(range(len(leaves))))(*tree.leaves(hyper))
    for a, b in zip(got, wanted, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("make", "hyper"), HYPERS, ids=HYPER_IDS)
def test_second_meta_derivatives_against_central_differences(make, hyper, params, loss, central):
    outer, hyper = after_five_steps(make, loss), as_tree(hyper)
    name = sorted(hyper.keys())[-1]

    def slope(x):
        return paramtree.grad(lambda h: outer(h, params))(with_leaf(hyper, (name,), x))[name]

    got = torch.func.grad(slope)(hyper[name])
    assert_close(got, central(slope, hyper[name], 1e-5), rtol=1e-4, atol=1e-7)


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


@pytest.mark.parametrize(("make", "hyper"), HYPERS, ids=HYPER_IDS)
def test_zero_gradients_give_no_nan_in_two_derivatives(make, hyper, params):
    hyper = {**hyper, "eps_root": 0.0} if "eps_root" in hyper else hyper

    def moved(hyper, slope):
        """Two steps along gradients that are slope * params, where slope is 0."""
        optimizer = make(**{name: hyper[name] for name in hyper.keys()})
        p, state = params, optimizer.init(params)
        for _ in range(2):
            grads = tree.map(lambda leaf: slope * leaf, p)
            updates, state = optimizer.update(grads, state, p)
            p = apply_updates(p, updates)
        return sum(leaf.sum() for leaf in tree.leaves(p))

    hyper, zero = as_tree(hyper), torch.zeros((), dtype=torch.float64)
    first = paramtree.grad(moved, argnums=(0, 1))(hyper, zero)
    for leaf in tree.leaves(tuple(first)):
        assert leaf.isfinite()

    def norm_of_first(hyper, slope):
        grads = paramtree.grad(moved, argnums=(0, 1))(hyper, slope)
        return sum(leaf.square().sum() for leaf in tree.leaves(tuple(grads)))

    second = paramtree.grad(norm_of_first, argnums=(0, 1))(hyper, zero)
    for leaf in tree.leaves(tuple(second)):
        assert leaf.isfinite()


# ---------------------------------------------------------------------------- tasks, and compiling

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


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sgd-all", "clip", "linear")]


@pytest.mark.parametrize("name", ["adamw", *SLOW])
def test_a_compiled_meta_gradient_is_the_eager_one(name, params, loss):
    make, hyper = HYPERS[HYPER_IDS.index(name)]
    hyper = as_tree(hyper)

    def meta(hyper, params):
        def outer(hyper, p):
            optimizer = make(**{key: hyper[key] for key in hyper.keys()})
            state = optimizer.init(p)
            for _ in range(2):
                grads = paramtree.grad(loss)(p)
                updates, state = optimizer.update(grads, state, p)
                p = apply_updates(p, updates)
            return loss(p)

        return paramtree.grad(outer)(hyper, params)

    torch.compiler.reset()
    compiled = torch.compile(meta, backend="aot_eager", fullgraph=True)
    assert_trees_close(compiled(hyper, params), meta(hyper, params))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_step_is_the_eager_one(name, params):
    optimizer = OPTIMIZERS[name]
    state = optimizer.init(params)
    torch.compiler.reset()
    compiled = torch.compile(optimizer.update, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(
        compiled(params, state, params), optimizer.update(params, state, params), strict=True
    ):
        assert_trees_close(got, wanted)


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
        (lambda: sgd("0.1"), TypeError, "sgd: lr is a str, expected a float or a 0-d tensor"),
        (lambda: sgd(True), TypeError, "sgd: lr is a bool"),
        (lambda: sgd(torch.ones(3)), ValueError, r"sgd: lr has shape \(3,\).*vmap"),
        (
            lambda: adam(torch.tensor(1)),
            TypeError,
            "adam: lr is torch.int64, expected a float dtype",
        ),
        (lambda: sgd(0.1, momentum=-1), ValueError, "sgd: momentum is -1"),
        (lambda: sgd(0.1, nesterov=True), ValueError, "sgd: momentum is 0, expected more"),
        (lambda: sgd(0.1, dampening=0.1), ValueError, "sgd: momentum is 0, expected more"),
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
