"""Every optimizer of torch.optim with its options, run beside ours: 20 steps, float64, 1e-10.

A row is one set of options in torch's words; ``ours`` are the same in our words. The problem is a
regression whose gradients are multiplied by fixed factors, so that some are exactly zero at some
steps and some change their signs. With ``complex`` in its kinds a row runs on complex leaves too.
"""

import contextlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import optim, tree

torch.set_num_threads(1)

STEPS = 20
SOURCE = torch.Generator().manual_seed(3)


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=SOURCE, dtype=dtype)


def make_factors(shape):
    """Factors [STEPS, *shape] of the gradients: zeros, signs, sizes."""
    uniform = torch.rand((STEPS, *shape), generator=SOURCE, dtype=torch.float64)
    factors = (0.5 + uniform) * torch.where(draw(STEPS, *shape) < -1, -1.0, 1.0)
    factors = torch.where(draw(STEPS, *shape) < -1, 0.0, factors)
    first = torch.arange(factors[0].numel()).reshape(shape) == 1
    factors[0] = torch.where(first, 0.0, 1.0)  # an entry that is zero at the first step
    return factors


X, Y = draw(6, 3), draw(6, 4)
PARAMS = TensorDict({"layer": TensorDict({"w": draw(3, 4), "b": draw(4)}), "s": draw()})
MATRICES = TensorDict({"in": TensorDict({"w": draw(3, 4)}), "out": draw(4, 2)})
COMPLEX = TensorDict(
    {
        "layer": TensorDict(
            {"w": draw(3, 4, dtype=torch.complex128), "b": draw(4, dtype=torch.complex128)}
        ),
        "s": draw(),
    }
)
FACTORS = {shape: make_factors(shape) for shape in [(3, 4), (4,), (), (4, 2)]}


def regression(params):
    """Smooth, not quadratic, tame upward; real, of real and complex params."""
    w = params["layer", "w"]
    hidden = (X.to(w.dtype) @ w + params["layer", "b"]) * params["s"]
    hidden = hidden.real + 0.5 * hidden.imag if hidden.is_complex() else hidden
    size = (w * w.conj()).real
    return (torch.tanh(hidden) - Y).square().mean() + 0.1 * size.log1p().sum()


def two_layers(params):
    hidden = torch.tanh(X @ params["in", "w"])
    return (hidden @ params["out"] - Y[:, :2]).square().mean()


@dataclass(frozen=True)
class Row:
    """Options of one torch class, and the same for one function of ours."""

    torch: str
    theirs: Mapping[str, Any]
    name: str
    ours: Mapping[str, Any]
    kinds: tuple[str, ...] = ("real", "complex")

    def __str__(self):
        shown = ", ".join([f"{key}={value}" for key, value in self.theirs.items()])
        return f"{self.torch}({shown})"


# One option of torch's in our words: a name, or names for a pair.
NAMES: dict[str, Any] = {
    "betas": ("b1", "b2"),
    "etas": ("eta_minus", "eta_plus"),
    "step_sizes": ("step_min", "step_max"),
    "alpha": {"RMSprop": "decay"},
    "initial_accumulator_value": "initial_accumulator",
}


def translated(kind, options):
    out = {}
    for key, value in options.items():
        name = NAMES.get(key, key)
        if isinstance(name, dict):
            name = name.get(kind, key)
        if isinstance(name, tuple):
            out |= zip(name, value, strict=True)
        else:
            out[name] = value
    return out


def rows(kind, name, *sets, kinds=("real", "complex")):
    return [Row(kind, options, name, translated(kind, options), kinds) for options in sets]


REAL, MATRIX = ("real",), ("matrix",)
BETAS = {"betas": (0.7, 0.9)}
ADAM = [
    {},
    {**BETAS, "eps": 1e-2},
    {"betas": (0.0, 0.5)},
    {"betas": (0.9, 0.5), "amsgrad": True},
    {"weight_decay": 0.1, "maximize": True},
    {"weight_decay": 0.1, "amsgrad": True, "maximize": True, **BETAS},
]
LAW = {"weight_decay": 0.1, "maximize": True}
DECOUPLED = {"weight_decay": 0.1, "decoupled_weight_decay": True}

ROWS = [
    *rows(
        "SGD",
        "sgd",
        {},
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
        {"lr": 0.1, "momentum": 0.8, "nesterov": True},
        {"lr": 0.1, **LAW},
        {"lr": 0.1, "momentum": 0.7, "dampening": -0.2, **LAW},
        {"lr": 0.1, "momentum": 0.7, "nesterov": True, **LAW},
    ),
    *rows("Adam", "adam", {}, *[{"lr": 0.05, **options} for options in ADAM]),
    Row("Adam", {"lr": 0.05, **DECOUPLED}, "adamw", {"lr": 0.05, "weight_decay": 0.1}),
    *rows("AdamW", "adamw", {}, *[{"lr": 0.05, **options} for options in ADAM]),
    *rows("AdamW", "adamw", {"lr": 0.05, "weight_decay": 0.0}),
    *rows(
        "RMSprop",
        "rmsprop",
        {},
        {"lr": 0.02, "alpha": 0.7, "eps": 1e-3},
        {"lr": 0.02, "centered": True, "alpha": 0.9},
        {"lr": 0.02, "momentum": 0.9},
        {"lr": 0.02, "momentum": 0.5, "centered": True, "eps": 1e-3, **LAW},
        {"lr": 0.02, **LAW},
    ),
    *rows(
        "Adagrad",
        "adagrad",
        {},
        {"lr": 0.1, "lr_decay": 0.1},
        {"lr": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3},
        {"lr": 0.1, "lr_decay": 0.05, "initial_accumulator_value": 0.1, **LAW},
    ),
    *rows(
        "Adadelta",
        "adadelta",
        {},
        {"lr": 0.5, "rho": 0.7, "eps": 1e-3},
        {"lr": 0.5, **LAW},
    ),
    *rows("Adamax", "adamax", {}, {"lr": 0.05, **BETAS, "eps": 1e-2}, {"lr": 0.05, **LAW}),
    *rows(
        "RAdam",
        "radam",
        {},
        {"lr": 0.05, **BETAS, "eps": 1e-2},  # rectified from the sixth step on
        {"lr": 0.05, "betas": (0.9, 0.99)},
        {"lr": 0.05, "betas": (0.9, 0.6)},  # never rectified
        {"lr": 0.05, **LAW},
        {"lr": 0.05, "betas": (0.9, 0.95), **DECOUPLED},
        {"lr": 0.05, "betas": (0.9, 0.95), **DECOUPLED, "maximize": True},
    ),
    *rows(
        "NAdam",
        "nadam",
        {},
        {"lr": 0.05, **BETAS, "eps": 1e-2},
        {"lr": 0.05, "momentum_decay": 0.3},
        {"lr": 0.05, "momentum_decay": 0.0, **LAW},
        {"lr": 0.05, **DECOUPLED},
        {"lr": 0.05, **DECOUPLED, "maximize": True},
    ),
    *rows(
        "Rprop",
        "rprop",
        {},
        {"lr": 0.05, "etas": (0.3, 1.5)},
        {"lr": 0.05, "step_sizes": (0.04, 0.07)},
        {"lr": 0.5, "step_sizes": (0.04, 0.07), "maximize": True},
    ),
    *rows(
        "ASGD",
        "asgd",
        {},
        {"lr": 0.1, "lambd": 0.1, "alpha": 0.5},
        {"lr": 0.1, "t0": 3.0},
        {"lr": 0.1, "t0": 0.0, "lambd": 0.01, **LAW},
    ),
    *rows(
        "Adafactor",
        "adafactor",
        {},
        {"lr": 0.1, "beta2_decay": -0.5, "d": 2.0},
        {"lr": 0.1, "eps": (1e-4, 0.1)},
        {"lr": 0.1, **LAW},
        kinds=("real", "matrix"),
    ),
    *rows(
        "Muon",
        "muon",
        {},
        {"lr": 0.05, "momentum": 0.7, "nesterov": False},
        {"lr": 0.05, "weight_decay": 0.0, "ns_steps": 3, "eps": 1e-3},
        {"lr": 0.05, "ns_coefficients": (2.0, -1.5, 0.5)},
        {"lr": 0.05, "adjust_lr_fn": "match_rms_adamw"},
        kinds=MATRIX,
    ),
]
# What torch.optim has and no row runs.
EXCLUDED = {
    "Optimizer": "the base class",
    "SparseAdam": "Adam for sparse gradients, which a tree of leaves doesn't have",
    "LBFGS": "below: its step takes a closure",
}


def train(optimizer, params, loss, steps=STEPS):
    """Params after each step."""
    state, history = optimizer.init(params), []
    for step in range(steps):
        grads = paramtree.grad(loss)(params)
        factors = tree.map(lambda leaf, t=step: FACTORS[tuple(leaf.shape)][t], params)
        grads = tree.map(torch.mul, grads, factors)
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        history.append(params)
    return history


@contextlib.contextmanager
def wide_numbers():
    """torch keeps NAdam's product and ASGD's rates in the default dtype."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@wide_numbers()
def train_torch(kind, options, params, loss, steps=STEPS):
    structure = tree.flatten(params)[1]
    leaves = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    optimizer, history = getattr(torch.optim, kind)(leaves, **options), []
    for step in range(steps):
        optimizer.zero_grad()
        loss(tree.unflatten(structure, leaves)).backward()
        for leaf in leaves:
            leaf.grad.mul_(FACTORS[tuple(leaf.shape)][step])
        optimizer.step()
        history.append(tree.unflatten(structure, [leaf.detach().clone() for leaf in leaves]))
    return history


PROBLEMS = {
    "real": (PARAMS, regression),
    "complex": (COMPLEX, regression),
    "matrix": (MATRICES, two_layers),
}
RUNS = [pytest.param(row, kind, id=f"{row}-{kind}") for row in ROWS for kind in row.kinds]


@pytest.mark.parametrize(("row", "kind"), RUNS)
def test_twenty_steps_are_torchs(row, kind):
    params, loss = PROBLEMS[kind]
    optimizer = getattr(optim, row.name)(**row.ours)
    got = train(optimizer, params, loss)
    wanted = train_torch(row.torch, row.theirs, params, loss)
    for step, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert tree.paths(a) == tree.paths(b)
        message = lambda text, step=step: f"step {step + 1}: {text}"  # noqa: E731
        assert_close(tree.leaves(a), tree.leaves(b), rtol=1e-10, atol=1e-10, msg=message)
    for path, start, end in zip(*flat(params, got[-1]), strict=True):
        assert end.isfinite().all()
        assert (start - end).abs().max() > 1e-6, path  # so the agreement means something


def flat(params, end):
    return tree.paths(params), tree.leaves(params), tree.leaves(end)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_numbers_as_tensors_give_the_same_steps(row):
    kind = row.kinds[0]
    tensors = {
        key: torch.tensor(value, dtype=torch.float64) if type(value) is float else value
        for key, value in row.ours.items()
    }
    params, loss = PROBLEMS[kind]
    got = train(getattr(optim, row.name)(**tensors), params, loss, 6)
    wanted = train(getattr(optim, row.name)(**row.ours), params, loss, 6)
    assert_close(tree.leaves(got[-1]), tree.leaves(wanted[-1]), rtol=1e-10, atol=1e-12)


def test_every_class_of_torch_is_in_a_row_or_has_a_reason():
    offered = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    covered = {row.torch for row in ROWS}
    assert offered == covered | set(EXCLUDED)
    assert not covered & set(EXCLUDED)


SPEED = {"foreach", "fused", "capturable", "differentiable"}


@pytest.mark.parametrize("kind", sorted({row.torch for row in ROWS}))
def test_every_option_of_torch_is_in_a_row(kind):
    offered = set(inspect.signature(getattr(torch.optim, kind)).parameters) - SPEED - {"params"}
    used = {option for row in ROWS if row.torch == kind for option in row.theirs}
    assert sorted(offered - used) == []


# ------------------------------------------------------------------------------------------ LBFGS


def ridge(params):
    return regression(params) + 0.5 * sum(leaf.square().sum() for leaf in tree.leaves(params))


def train_lbfgs(loss, steps, **options):
    """Params after each step of torch's L-BFGS, one iteration a step."""
    structure = tree.flatten(PARAMS)[1]
    leaves = [leaf.clone().requires_grad_() for leaf in tree.leaves(PARAMS)]
    options |= {"max_iter": 1, "max_eval": 100, "tolerance_grad": 0, "tolerance_change": 0}
    optimizer, history = torch.optim.LBFGS(leaves, **options), []

    def closure():
        optimizer.zero_grad()
        value = loss(tree.unflatten(structure, leaves))
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)
        history.append(tree.unflatten(structure, [leaf.detach().clone() for leaf in leaves]))
    return history


SEARCHES = {"strong_wolfe": optim.scale_by_zoom_linesearch(max_linesearch_steps=25), None: None}


@pytest.mark.parametrize("memory_size", [1, 3, 10])
@pytest.mark.parametrize("lr", [1.0, 0.3])
@pytest.mark.parametrize("search", SEARCHES)
def test_steps_of_lbfgs_are_torchs(memory_size, lr, search):
    """Then they are so short that torch leaves out pairs, those of a curvature below 1e-10."""
    wanted = train_lbfgs(ridge, 9, lr=lr, history_size=memory_size, line_search_fn=search)
    optimizer = optim.lbfgs(lr, memory_size, linesearch=SEARCHES[search])
    params, state = PARAMS, optimizer.init(PARAMS)
    for t in range(9):
        value, grads = paramtree.value_and_grad(ridge)(params)
        updates, state = optimizer.update(grads, state, params, value=value, value_fn=ridge)
        params = optim.apply_updates(params, updates)
        assert_close(
            tree.leaves(params), tree.leaves(wanted[t]), rtol=1e-8, atol=1e-9, msg=f"step {t + 1}"
        )


@pytest.mark.parametrize("memory_size", [3, 10])
def test_lbfgs_comes_to_the_minimum_that_torchs_comes_to(memory_size):
    structure = tree.flatten(PARAMS)[1]
    leaves = [leaf.clone().requires_grad_() for leaf in tree.leaves(PARAMS)]
    peer = torch.optim.LBFGS(
        leaves,
        max_iter=300,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        history_size=memory_size,
        line_search_fn="strong_wolfe",
    )

    def closure():
        peer.zero_grad()
        loss = ridge(tree.unflatten(structure, leaves))
        loss.backward()
        return loss

    peer.step(closure)
    optimizer, params = optim.lbfgs(memory_size=memory_size), PARAMS
    state = optimizer.init(params)
    for _ in range(60):
        value, grads = paramtree.value_and_grad(ridge)(params)
        updates, state = optimizer.update(grads, state, params, value=value, value_fn=ridge)
        params = optim.apply_updates(params, updates)
    found = [leaf.detach() for leaf in leaves]
    assert_close(tree.leaves(params), found, rtol=1e-6, atol=1e-7)
