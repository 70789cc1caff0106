"""The optimizers that torch doesn't have, each beside its formula in a plain loop of NumPy."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import optim, rng, tree
from tests.paramtree.optim.optax_formulas import (
    adabelief,
    adafactor,
    belief_ahead,
    centralized,
    clipped,
    clipped_by_rms,
    clipped_by_unit,
    factored_rms,
    fromage,
    lamb,
    lars,
    lion,
    muon,
    novograd,
    optimistic,
    optimistic_adam,
    optimistic_adam_v2,
    signs,
    yogi,
)

STEPS = 20
SHAPES = {"a": (3, 4), "b": (5,), "c": (), "d": (2, 3, 4), "e": (1, 3)}
SOURCE = np.random.default_rng(0)


def draw(*lead):
    return {name: SOURCE.normal(size=(*lead, *shape)) for name, shape in SHAPES.items()}


PARAMS, GRADS = draw(), draw(STEPS)
for name in "ab":  # numbers that are zero now and then, and a leaf that is for some steps
    GRADS[name] *= SOURCE.random(GRADS[name].shape) > 0.2
GRADS["b"][[0, 1, 7]] = 0.0
PARAMS["c"] = np.zeros(())


def as_tree(values, dtype=torch.float64):
    leaves = {name: torch.tensor(value, dtype=dtype) for name, value in values.items()}
    top = TensorDict({name: leaves[name] for name in leaves if name != "c"})
    return tree.lock(TensorDict({"c": leaves["c"], "top": top} if "c" in leaves else {"top": top}))


def train(optimizer, params=None, grads=None, names="abcde", **extra):
    """Params after the steps, and the state."""
    params = as_tree({n: (params or PARAMS)[n] for n in names})
    state = optimizer.init(params)
    for t in range(STEPS):
        g = as_tree({n: (grads or GRADS)[n][t] for n in names})
        updates, state = optimizer.update(g, state, params, **extra)
        params = optim.apply_updates(params, updates)
    return params, state


def loop(rule, names="abcde", **hyper):
    """Params after the steps of ``rule(t, p, g, memory of the leaf, **hyper) -> p``."""
    params = {}
    for name in names:
        p, memory = PARAMS[name].copy(), {}
        for t in range(1, STEPS + 1):
            p = rule(t, p, GRADS[name][t - 1], memory, **hyper)
        params[name] = p
    return as_tree(params)


B = {"b1": 0.7, "b2": 0.9}
DECAY = {"weight_decay": 0.1}
OPTIMIZERS = [
    ("lion", lion, {"lr": 0.02}, {}),
    ("lion", lion, {"lr": 0.02, **B, **DECAY}, {}),
    ("adabelief", adabelief, {"lr": 0.01}, {}),
    ("adabelief", adabelief, {"lr": 0.1, **B, "eps": 1e-2, "eps_root": 1e-3}, {}),
    ("adabelief", belief_ahead, {"lr": 0.1, **B, "eps_root": 1e-3}, {"nesterov": True}),
    ("yogi", yogi, {"lr": 0.1}, {}),
    ("yogi", yogi, {"lr": 0.1, **B, "eps": 0.1}, {}),
    ("novograd", novograd, {"lr": 0.1}, {}),
    ("novograd", novograd, {"lr": 0.1, **B, "eps": 0.1, "eps_root": 0.1, **DECAY}, {}),
    ("lamb", lamb, {"lr": 0.1}, {}),
    ("lamb", lamb, {"lr": 0.1, **B, "eps": 0.1, "eps_root": 0.1, **DECAY}, {}),
    ("lars", lars, {"lr": 5.0}, {}),
    ("lars", lars, {"lr": 0.1, "trust_coefficient": 0.5, "eps": 0.1, "momentum": 0.0, **DECAY}, {}),
    ("lars", lars, {"lr": 0.1, "trust_coefficient": 0.5, "momentum": 0.5, "nesterov": True}, {}),
    ("fromage", fromage, {"lr": 0.1}, {}),
    ("fromage", fromage, {"lr": 0.1, "min_norm": 0.5}, {}),
    ("optimistic_gradient_descent", optimistic, {"lr": 0.1}, {}),
    ("optimistic_gradient_descent", optimistic, {"lr": 0.1, "alpha": 0.7, "beta": 0.4}, {}),
    ("optimistic_adam", optimistic_adam, {"lr": 0.1}, {}),
    ("optimistic_adam", optimistic_adam, {"lr": 0.1, "optimism": 0.3, "nesterov": False, **B}, {}),
    ("optimistic_adam_v2", optimistic_adam_v2, {"lr": 0.1}, {}),
    (
        "optimistic_adam_v2",
        optimistic_adam_v2,
        {"lr": 0.1, "alpha": 0.7, "beta": 0.4, "eps_root": 0.1},
        {},
    ),
    ("adafactor", adafactor, {}, {}),
    ("adafactor", adafactor, {"lr": 0.5, "beta2_decay": -0.5, "d": 2.0, **DECAY}, {}),
    ("adafactor", adafactor, {"lr": 0.1, "eps": (1e-2, 0.5), "maximize": True, **DECAY}, {}),
]
IDS = [f"{name}-{at}" for at, (name, *_) in enumerate(OPTIMIZERS)]


@pytest.mark.parametrize(("name", "rule", "hyper", "flags"), OPTIMIZERS, ids=IDS)
def test_twenty_steps_are_the_formulas(name, rule, hyper, flags):
    got, _ = train(getattr(optim, name)(**hyper, **flags))
    assert_close(tree.leaves(got), tree.leaves(loop(rule, **hyper)), rtol=1e-10, atol=1e-12)


def tensors(values):
    make = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    return {
        key: tuple(make(x) for x in value)
        if isinstance(value, tuple) and None not in value
        else make(value)
        if isinstance(value, float)
        else value
        for key, value in values.items()
    }


@pytest.mark.parametrize(("name", "rule", "hyper", "flags"), OPTIMIZERS, ids=IDS)
def test_tensors_and_schedules_give_the_same_steps(name, rule, hyper, flags):
    make, numbers = getattr(optim, name), tensors(hyper)
    wanted, state = train(make(**hyper, **flags))
    later = {k: (lambda count, x=x: x) if isinstance(x, float) else x for k, x in hyper.items()}
    for other in (numbers, later):
        got, after = train(make(**other, **flags))
        assert_close(tree.leaves(got), tree.leaves(wanted), rtol=1e-10, atol=1e-12)
        if other is numbers and 0.0 not in hyper.values():
            assert tree.paths(after) == tree.paths(state)


SMALL = {"min_dim_size_to_factor": 2}
TRANSFORMS = [
    ("clip", clipped, {"max_delta": 0.3}, {}),
    ("clip_by_block_rms", clipped_by_rms, {"threshold": 0.5}, {}),
    ("adaptive_grad_clip", clipped_by_unit, {"clipping": 0.1}, {}),
    ("adaptive_grad_clip", clipped_by_unit, {"clipping": 0.3, "eps": 0.5}, {}),
    ("centralize", centralized, {}, {}),
    ("scale_by_sign", signs, {}, {}),
    ("scale_by_factored_rms", factored_rms, {}, {}),
    ("scale_by_factored_rms", factored_rms, {"least": 2}, SMALL),
    (
        "scale_by_factored_rms",
        factored_rms,
        {"least": 2, "decay_rate": 0.5, "step_offset": -3, "epsilon": 1e-3},
        SMALL,
    ),
    ("scale_by_factored_rms", factored_rms, {"of": False}, {"factored": False, **SMALL}),
]


@pytest.mark.parametrize(("name", "rule", "hyper", "flags"), TRANSFORMS)
def test_transforms_are_the_formulas(name, rule, hyper, flags):
    own = {key: value for key, value in hyper.items() if key not in ("least", "of")}
    piece = getattr(optim, name)(**own, **flags)
    got, _ = train(optim.chain(piece=piece, lr=optim.scale(-1.0)))
    assert_close(tree.leaves(got), tree.leaves(loop(rule, **hyper)), rtol=1e-10, atol=1e-12)


def test_units_are_over_the_axis_that_is_asked_for():
    piece = optim.adaptive_grad_clip(0.2, axis=1)
    got, _ = train(optim.chain(piece=piece, lr=optim.scale(-1.0)), names="ad")
    wanted = loop(clipped_by_unit, "ad", clipping=0.2, axis=1)
    assert_close(tree.leaves(got), tree.leaves(wanted), rtol=1e-10, atol=1e-12)
    four = TensorDict({"w": torch.ones(2, 3, 1, 2)})
    got, _ = optim.adaptive_grad_clip(0.5).update(four, TensorDict({}), four)
    assert_close(got["w"], four["w"] * 0.5)  # all dims but the last


def test_nans_are_zeroed_and_reported():
    zero = optim.zero_nans()
    p = TensorDict({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.complex64)})
    bad = TensorDict(
        {"a": torch.tensor([1.0, float("nan"), float("inf")]), "b": torch.tensor([1j, 2.0])}
    )
    updates, state = zero.update(bad, zero.init(p), p)
    assert updates["a"].tolist() == [1.0, 0.0, float("inf")] and state["found_nan", "a"]
    assert not state["found_nan", "b"] and state["found_nan", "a"].shape == ()
    _, state = zero.update(p, state, p)
    assert not state["found_nan", "a"]


# ----------------------------------------------------------------------------------- matrices

MUON = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.7, "nesterov": False, "weight_decay": 0.0},
    {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "eps": 10.0},
    {"lr": 0.1, "ns_coefficients": (2.0, -1.5, 0.5), "adjust_lr_fn": "original"},
]


@pytest.mark.parametrize("hyper", MUON)
@pytest.mark.parametrize("as_tensors", [False, True])
def test_muon_in_the_leafs_own_dtype_is_the_formula(hyper, as_tensors):
    made = tensors(hyper) if as_tensors else hyper
    got, _ = train(optim.muon(**made, dtype=None), names="ae")
    wanted = loop(muon, "ae", **hyper)
    assert_close(tree.leaves(got), tree.leaves(wanted), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("hyper", MUON)
@pytest.mark.parametrize("shape", [(3, 4), (7, 2), (1, 5), (0, 3), (4, 0)])
def test_muon_is_torchs_in_bfloat16(hyper, shape):
    source = torch.Generator().manual_seed(1)
    steps = torch.randn((STEPS + 1, *shape), generator=source, dtype=torch.float64)
    steps[3] = 0.0
    params, leaf = TensorDict({"w": steps[0]}), torch.nn.Parameter(steps[0].clone())
    ours, theirs = optim.muon(**hyper), torch.optim.Muon([leaf], **hyper)
    state = ours.init(params)
    for g in steps[1:]:
        leaf.grad = g.clone()
        if leaf.numel():
            theirs.step()
        updates, state = ours.update(TensorDict({"w": g}), state, params)
        params = optim.apply_updates(params, updates)
    assert_close(params["w"], leaf.detach(), rtol=1e-10, atol=1e-12)


def test_muon_makes_singular_values_alike():
    g = torch.randn((4, 6), generator=torch.Generator().manual_seed(0))
    piece, p = optim.scale_by_muon(), TensorDict({"w": g})
    u = piece.update(p, piece.init(p), p)[0]["w"]
    assert u.dtype is torch.float32
    values = torch.linalg.svdvals(u)
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_at_a_zero_gradient_has_the_slope_of_its_bound():
    """Below eps the norm doesn't count: u = g / eps where there is no iteration."""
    piece = optim.scale_by_muon(ns_steps=0, momentum=0.0, eps=0.5, nesterov=False, dtype=None)

    def direction(g):
        p = TensorDict({"w": g})
        return piece.update(p, piece.init(p), p)[0]["w"]

    zero = torch.zeros(2, 3, dtype=torch.float64)
    slope = torch.func.jacrev(direction)(zero).reshape(6, 6)
    assert_close(slope, 2.0 * torch.eye(6, dtype=torch.float64))


def test_adafactor_is_torchs_on_leaves_of_every_rank():
    for options in ({}, {"lr": 0.5, "eps": (1e-3, 0.1), "weight_decay": 0.1, "d": 1.5}):
        leaves = {n: torch.nn.Parameter(torch.tensor(PARAMS[n])) for n in SHAPES}
        theirs = torch.optim.Adafactor(leaves.values(), **options)
        for t in range(STEPS):
            for n, leaf in leaves.items():
                leaf.grad = torch.tensor(GRADS[n][t])
            theirs.step()
        got, state = train(optim.adafactor(**options))
        wanted = as_tree({n: leaf.detach().numpy() for n, leaf in leaves.items()})
        assert_close(tree.leaves(got), tree.leaves(wanted), rtol=1e-10, atol=1e-12)
        row = state["adafactor", "row_var", "top", "d"]
        assert_close(row, theirs.state[leaves["d"]]["row_var"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [optim.scale_by_sign, optim.scale_by_lion])
def test_the_sign_of_nan_is_nan(make):
    g, piece = TensorDict({"w": torch.tensor([float("nan"), -2.0, 0.0])}), make()
    updates, _ = piece.update(g, piece.init(g), g)
    assert_close(updates["w"], torch.tensor([float("nan"), -1.0, 0.0]), equal_nan=True)


# ----------------------------------------------------------------------------- what they are for


def play(optimizer, steps=2000):
    """Both players' own optimizer on min over x, max over y of x y; their distance from (0, 0)."""
    p = TensorDict({"x": torch.tensor(1.0).double(), "y": torch.tensor(1.0).double()})
    state = optimizer.init(p)
    for _ in range(steps):
        grads = TensorDict({"x": p["y"], "y": -p["x"]})
        updates, state = optimizer.update(grads, state, p)
        p = optim.apply_updates(p, updates)
    return tree.norm(p)


def test_optimistic_players_come_to_rest_where_plain_ones_diverge():
    assert play(optim.optimistic_gradient_descent(0.3)) < 1e-6
    assert play(optim.sgd(0.3)) > 100
    assert play(optim.optimistic_gradient_descent(0.1, beta=0.0), 100) > 2.0  # plain


@pytest.mark.parametrize("make", [optim.lamb, lambda lr: optim.lars(lr, 0.0, 1.0, momentum=0.0)])
def test_a_step_of_each_leaf_is_as_long_as_its_params(make):
    p = as_tree({**PARAMS, "b": np.zeros(5)})
    g = as_tree({n: GRADS[n][5] for n in SHAPES})
    optimizer = make(0.1)
    updates, _ = optimizer.update(g, optimizer.init(p), p)
    for path in tree.paths(p):
        if p[path].norm() > 0:
            assert_close(updates[path].norm(), 0.1 * p[path].norm(), rtol=1e-5, atol=0)
        else:  # a ratio of 1
            assert updates[path].norm() > 0


def test_noise_is_its_keys_and_of_its_variance():
    nothing = torch.zeros(20_000)
    p = TensorDict({"a": nothing, "b": nothing.to(torch.complex64), "c": nothing})

    def noises(key, steps=3, names=("a", "b", "c")):
        optimizer = optim.noisy_sgd(0.5, rng.key(key), eta=0.3, gamma=0.9)
        own = p.select(*names)
        state, out = optimizer.init(own), []
        for _ in range(steps):
            updates, state = optimizer.update(own, state, own)
            out.append(updates)
        return out

    before = torch.random.get_rng_state()
    first, again, other = noises(1), noises(1), noises(2)
    assert torch.equal(before, torch.random.get_rng_state())
    for t, (x, y, z) in enumerate(zip(first, again, other, strict=True), 1):
        assert torch.equal(x["a"], y["a"]) and not torch.equal(x["a"], z["a"])
        wanted = 0.25 * 0.3 / t**0.9
        for part in (x["a"], x["b"].real, x["b"].imag):
            assert_close(part.var().item(), wanted, rtol=0.04, atol=0)
            assert abs(part.mean()) < 4 * (wanted / 20_000) ** 0.5
    joint = torch.corrcoef(torch.stack([x for u in first for x in (u["a"], u["b"].real, u["c"])]))
    assert (joint - torch.eye(9)).abs().max() < 0.04  # steps and leaves don't share any
    assert torch.equal(noises(1, 1, ("a",))[0]["a"], first[0]["a"])  # nor do they depend on others


def test_each_task_has_the_noise_of_its_key():
    keys, p = rng.split(rng.key(0), 3), TensorDict({"a": torch.zeros(3, 2)}, [3])

    def first(key, p):
        optimizer = optim.add_noise(key, 1.0, 0.5)
        return optimizer.update(p, optimizer.init(p), p)

    updates, state = paramtree.vmap(first)(keys, p)
    for i in range(3):
        alone, after = first(keys[i], p[i])
        assert_close(updates["a"][i], alone["a"])
        assert torch.equal(state["key"][i], after["key"]) and not torch.equal(keys[i], after["key"])
