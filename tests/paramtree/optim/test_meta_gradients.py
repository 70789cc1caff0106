"""Every optimizer: d(loss after five steps) / d(each hyper-parameter and each initial param).

Held against central differences, once and twice; with schedules and tensors; on many tasks at once;
compiled; and at gradients of exactly zero, where a root or a norm must not give NaN. What acts
through a sign alone (lion's decays, rprop's comparisons) has the derivative 0, which central
differences show as well.
"""

import inspect

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import check_grads, optim, tree
from paramtree.optim import apply_updates
from tests.paramtree.optim.meta_rows import ALIASES, PIECES, WITHOUT

ROWS = [*ALIASES, *PIECES]


def numbered(rows):
    seen, out = {}, []
    for row in rows:
        seen[row.name] = seen.get(row.name, -1) + 1
        out.append(pytest.param(row, id=f"{row.name}-{seen[row.name]}"))
    return out


every_row = pytest.mark.parametrize("row", numbered(ROWS))


def as_tree(hyper):
    return TensorDict({k: torch.tensor(v, dtype=torch.float64) for k, v in hyper.items()})


@pytest.fixture
def problem(params, loss):
    """Params and loss, of matrices alone where an optimizer takes nothing else."""

    def problem(row):
        if not row.matrices:
            return params, loss
        weight = params["policy", "linear_0", "weight"]
        return tree.lock(TensorDict({"a": weight, "b": 0.5 * weight.T.clone()})), matrix_loss

    return problem


def matrix_loss(params):
    return torch.tanh(params["a"] @ params["b"] + 0.3).square().sum()


def step(row, optimizer, loss, params, state):
    value, grads = paramtree.value_and_grad(loss)(params)
    known = {"value": value, "value_fn": loss, "grad_fn": paramtree.grad(loss)}
    extra = {name: known[name] for name in row.extra}
    updates, state = optimizer.update(grads, state, params, **extra)
    return apply_updates(params, updates), state


def after_steps(row, loss, steps=None, **given):
    """Loss after some steps, as a function of the hyper-parameters and the initial params."""
    steps = steps or row.steps

    def outer(hyper, params):
        optimizer = row.build(hyper, **given)
        state = optimizer.init(params)
        for _ in range(steps):
            params, state = step(row, optimizer, loss, params, state)
        return loss(params)

    return outer


def few(row):
    """Three steps, or as many as it takes."""
    return 3 if row.steps == 5 else row.steps


@every_row
def test_meta_gradients_are_central_differences(row, problem):
    params, loss = problem(row)
    outer, hyper = after_steps(row, loss), as_tree(row.hyper)
    check_grads(outer, hyper, params, step=1e-6, rtol=1e-5, atol=1e-8)
    got = paramtree.grad(outer)(hyper, params)
    for name in row.hyper:
        assert (got[name] == 0) == (name in row.flat), name


@every_row
def test_second_meta_derivatives_are_central_differences(row, problem):
    params, loss = problem(row)
    slope = paramtree.grad(after_steps(row, loss, few(row)))
    hyper = as_tree(row.hyper)
    check_grads(lambda hyper: slope(hyper, params), hyper, step=1e-6, rtol=1e-4, atol=1e-6)


@every_row
def test_schedules_of_tensors(row, problem):
    """All hyper-parameters at once, but for what a state starts with."""
    params, loss = problem(row)
    hyper = as_tree(row.hyper)
    names = [name for name in row.hyper if not name.startswith("initial")]

    def outer(hyper, slope):
        last = {name: (1 + slope) * hyper[name] for name in names}
        given = {name: optim.linear(hyper[name], last[name], 4) for name in names}
        return after_steps(row, loss, **given)(hyper, params)

    assert_close(outer(hyper, 0.0), after_steps(row, loss)(hyper, params), rtol=1e-12, atol=0)
    slope = torch.tensor(-0.05, dtype=torch.float64)
    assert outer(hyper, slope) != outer(hyper, 0.0)
    check_grads(outer, hyper, slope, step=1e-6, rtol=1e-5, atol=1e-8)


@every_row
def test_rates_of_three_tasks_at_once(row, problem):
    params, loss = problem(row)
    outer, hyper = after_steps(row, loss, few(row)), as_tree(row.hyper)

    def slopes(lr):
        given = tree.replace(hyper, {"lr": lr})
        return paramtree.grad(outer, argnums=(0, 1))(given, params)

    rates = row.hyper["lr"] * torch.tensor([0.5, 1.0, 0.8], dtype=torch.float64)
    together = paramtree.vmap(slopes)(rates)
    for i, rate in enumerate(rates):
        got = [leaf[i] for leaf in tree.leaves(tuple(together))]
        assert_close(got, tree.leaves(tuple(slopes(rate))), rtol=1e-9, atol=1e-12)


@every_row
def test_torch_func_inside_and_autograd_outside_agree(row, problem):
    params, loss = problem(row)
    outer, hyper = after_steps(row, loss, few(row)), as_tree(row.hyper)
    leaves = [leaf.clone().requires_grad_() for leaf in tree.leaves(hyper)]
    value = outer(tree.unflatten(tree.flatten(hyper)[1], leaves), params)
    wanted = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    names = [path[0] for path in tree.paths(hyper)]

    def flat(*leaves):
        return outer(dict(zip(names, leaves, strict=True)), params)

    got = torch.func.grad(flat, argnums=tuple(range(len(leaves))))(*tree.leaves(hyper))
    assert_close(list(got), list(wanted), rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------- zero gradients


def moved(row, mask=None):
    """Two steps along gradients that are slope * params, where slope is 0, or those of a mask."""

    def moved(hyper, slope, params):
        optimizer = row.build(hyper)
        p, state = params, optimizer.init(params)

        def value_fn(p):
            return 0.5 * slope * sum((leaf * leaf).sum() for leaf in tree.leaves(p))

        for _ in range(2):
            grads = tree.map(lambda leaf: slope * leaf, p)
            if mask is not None:
                grads = tree.map(torch.mul, grads, mask)
            grad_fn = paramtree.grad(value_fn)
            known = {"value": value_fn(p), "value_fn": value_fn, "grad_fn": grad_fn}
            extra = {name: known[name] for name in row.extra}
            updates, state = optimizer.update(grads, state, p, **extra)
            p = apply_updates(p, updates)
        return sum(leaf.sum() for leaf in tree.leaves(p))

    return moved


def assert_finite(whole):
    for path, leaf in zip(tree.paths(whole), tree.leaves(whole), strict=True):
        assert leaf.isfinite().all(), path


@every_row
@pytest.mark.parametrize("kind", ["zero gradients", "some zeros", "zero params"])
def test_no_nan_in_two_derivatives(row, kind, problem):
    params, _ = problem(row)
    slope = torch.full((), 0.0 if kind == "zero gradients" else 0.7, dtype=torch.float64)
    mask = None
    if kind == "some zeros":
        mask = tree.map(lambda x: (torch.arange(x.numel()) % 2).reshape(x.shape).to(x), params)
    if kind == "zero params":
        params = tree.map(torch.zeros_like, params)
    hyper, fn = as_tree({**row.hyper, **row.zero}), moved(row, mask)
    first = paramtree.grad(fn, argnums=(0, 1, 2))(hyper, slope, params)
    assert_finite(tuple(first))

    def norm_of_first(hyper, slope, params):
        grads = paramtree.grad(fn, argnums=(0, 1, 2))(hyper, slope, params)
        return sum(leaf.square().sum() for leaf in tree.leaves(tuple(grads)))

    second = paramtree.grad(norm_of_first, argnums=(0, 1, 2))(hyper, slope, params)
    assert_finite(tuple(second))


DEFAULTS = (
    "adabelief adadelta adafactor adagrad adam adamax adamw asgd fromage lamb lars lbfgs lion "
    "nadam novograd optimistic_adam optimistic_adam_v2 optimistic_gradient_descent radam rmsprop "
    "rprop schedule_free_adamw schedule_free_sgd sgd yogi"
).split()


@pytest.mark.parametrize("name", DEFAULTS)
def test_no_nan_with_the_defaults(name, params):
    """A rate and the params learn along gradients of zero, all else is as it comes."""
    zero = torch.zeros((), dtype=torch.float64)

    def moved(lr, slope, params):
        optimizer = getattr(optim, name)(lr)
        p, state = params, optimizer.init(params)
        for _ in range(3):
            grads = tree.map(lambda leaf: slope * leaf, p)
            updates, state = optimizer.update(grads, state, p)
            p = apply_updates(p, updates)
        return sum(leaf.sum() for leaf in tree.leaves(p))

    def size(lr, slope, params):
        grads = paramtree.grad(moved, argnums=(0, 1, 2))(lr, slope, params)
        return sum(leaf.square().sum() for leaf in tree.leaves(tuple(grads)))

    for fn in (moved, size):
        assert_finite(tuple(paramtree.grad(fn, argnums=(0, 1, 2))(zero + 0.1, zero, params)))


# -------------------------------------------------------------------------- compiled, and covered

QUICK = ("adamw-0",)
COMPILED = [
    pytest.param(*param.values, id=param.id, marks=() if param.id in QUICK else pytest.mark.slow)
    for param in numbered(ALIASES)
    if param.id.endswith("-0")
]


@pytest.mark.parametrize("row", COMPILED)
def test_a_compiled_meta_gradient_is_the_eager_one(row, problem):
    params, loss = problem(row)
    hyper = as_tree(row.hyper)

    def meta(hyper, params):
        return paramtree.grad(after_steps(row, loss, 2))(hyper, params)

    torch.compiler.reset()
    compiled = torch.compile(meta, backend="aot_eager", fullgraph=True)
    got, wanted = compiled(hyper, params), meta(hyper, params)
    assert_close(tree.leaves(got), tree.leaves(wanted), rtol=1e-10, atol=1e-12)


def test_every_transform_has_a_row_or_a_reason():
    offered = set()
    for name, value in vars(optim).items():
        if inspect.isfunction(value) and not name.startswith("_"):
            if inspect.signature(value).return_annotation is optim.Transform:
                offered.add(name)
    covered = {row.name for row in ROWS}
    assert not covered & set(WITHOUT)
    assert sorted(offered - covered - set(WITHOUT)) == []
    assert sorted(set(WITHOUT) - offered) == []
