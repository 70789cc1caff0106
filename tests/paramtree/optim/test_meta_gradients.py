"""Gradients through five steps of an optimizer, with respect to everything that goes in."""

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
    sgd,
)

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
    got, wanted = compiled(hyper, params), meta(hyper, params)
    assert_close(tree.leaves(got), tree.leaves(wanted), rtol=1e-10, atol=1e-12)
