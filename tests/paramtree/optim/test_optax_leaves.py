"""Every kind of leaf, of number and of mistake, for the optimizers that torch doesn't have."""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import optim, rng, tree

ALL = {
    "lion": lambda: optim.lion(0.1),
    "adabelief": lambda: optim.adabelief(0.1),
    "yogi": lambda: optim.yogi(0.1),
    "novograd": lambda: optim.novograd(0.1),
    "lamb": lambda: optim.lamb(0.1),
    "lars": lambda: optim.lars(0.1),
    "fromage": lambda: optim.fromage(0.1),
    "noisy_sgd": lambda: optim.noisy_sgd(0.1, rng.key(0)),
    "optimistic_gradient_descent": lambda: optim.optimistic_gradient_descent(0.1),
    "optimistic_adam": lambda: optim.optimistic_adam(0.1),
    "adafactor": lambda: optim.adafactor(0.1),
    "scale_by_sign": optim.scale_by_sign,
    "scale_by_factored_rms": lambda: optim.scale_by_factored_rms(min_dim_size_to_factor=2),
    "clip": lambda: optim.clip(0.1),
    "clip_by_block_rms": lambda: optim.clip_by_block_rms(0.1),
    "adaptive_grad_clip": lambda: optim.adaptive_grad_clip(0.1),
    "centralize": optim.centralize,
    "zero_nans": optim.zero_nans,
    "muon": lambda: optim.muon(0.1),
    "muon-own": lambda: optim.muon(0.1, dtype=None),
}
NO_COMPLEX = {"adafactor", "muon", "muon-own"}


def leaves_of(name, dtype):
    shapes = {"w": (3, 2), "empty": (0, 3), "wide": (2, 0)}
    if not name.startswith("muon"):
        shapes |= {"b": (3,), "s": (), "none": (0,)}
    source = torch.Generator().manual_seed(2)
    draw = {k: torch.randn(s, generator=source, dtype=dtype) for k, s in shapes.items()}
    return TensorDict(draw)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_empty_and_scalar_leaves(name):
    p, wide = leaves_of(name, torch.bfloat16), leaves_of(name, torch.bfloat16).float()
    optimizer = ALL[name]()
    state, other = optimizer.init(p), optimizer.init(wide)
    for _ in range(3):
        updates, state = optimizer.update(p, state, p)
        wanted, other = optimizer.update(wide, other, wide)
        for path in tree.paths(p):
            assert updates[path].dtype is torch.bfloat16 and updates[path].shape == p[path].shape
            assert torch.equal(updates[path], wanted[path].bfloat16())
    for x, y in zip(tree.leaves(state), tree.leaves(other), strict=True):
        assert torch.equal(x, y) and x.dtype is y.dtype
        assert x.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_a_tree_without_leaves(name):
    optimizer, nothing = ALL[name](), TensorDict({})
    updates, _ = optimizer.update(nothing, optimizer.init(nothing), nothing)
    assert tree.leaves(updates) == []


@pytest.mark.parametrize("name", ALL)
def test_complex_leaves(name):
    p, optimizer = leaves_of(name, torch.complex64), ALL[name]()
    if name in NO_COMPLEX:
        with pytest.raises(TypeError, match=r"params at '?\w+'? is torch.complex64"):
            optimizer.init(p)
        return
    state = optimizer.init(p)
    for _ in range(2):
        updates, state = optimizer.update(p, state, p)
    assert all(u.dtype is torch.complex64 and u.isfinite().all() for u in tree.leaves(updates))


ELEMENTWISE = ["lion", "adabelief", "yogi", "optimistic_gradient_descent", "scale_by_sign", "clip"]
NORMED = ["novograd", "lamb", "lars", "fromage", "scale_by_trust_ratio", "clip_by_block_rms"]


@pytest.mark.parametrize("name", ELEMENTWISE + NORMED[:1] + NORMED[2:4])
def test_a_complex_leaf_is_a_leaf_of_pairs(name):
    p = leaves_of(name, torch.complex128).select("w", "b")
    pairs = tree.map(torch.view_as_real, p)
    optimizer = ALL[name]()
    state, other = optimizer.init(p), optimizer.init(pairs)
    for factor in (1.0, 0.3, 0.0, -2.0):
        g = tree.map(lambda x, f=factor: x.sin() * f, p)
        updates, state = optimizer.update(g, state, p)
        wanted, other = optimizer.update(tree.map(torch.view_as_real, g), other, pairs)
        got = [torch.view_as_real(u) for u in tree.leaves(updates)]
        assert_close(got, tree.leaves(wanted), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_nan_in_two_derivatives_at_zero_gradients(name, dtype):
    """In the slope of gradients that are slope * params, at 0, for two steps."""
    p, optimizer = leaves_of(name, dtype), ALL[name]()
    p = tree.replace(p, {"w": torch.zeros_like(p["w"])}) if "b" in p.keys() else p

    def moved(slope, scale):
        start = tree.map(lambda x: x * scale, p)
        now, state = start, optimizer.init(start)
        for _ in range(2):
            grads = tree.map(lambda x: x * slope, now)
            updates, state = optimizer.update(grads, state, now)
            now = optim.apply_updates(now, updates)
        return sum((x * (2 + torch.arange(x.numel()).view_as(x))).sum() for x in tree.leaves(now))

    zero, one = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)
    first = torch.func.jacrev(moved, (0, 1))
    assert all(x.isfinite() for x in first(zero, one))
    second = torch.func.jacrev(lambda a, b: torch.stack(first(a, b)), (0, 1))(zero, one)
    assert all(x.isfinite().all() for x in second)


@pytest.mark.parametrize("name", [*ALL, "scale_by_trust_ratio"])
def test_tasks_at_once_are_tasks_apart(name):
    make = ALL.get(name, optim.scale_by_trust_ratio)
    p = tree.map(torch.Tensor.double, leaves_of(name, torch.float32))
    tasks = [tree.map(lambda x, k=k: (x + k).cos(), p) for k in range(4)]

    def twice(p):
        optimizer = make()
        state = optimizer.init(p)
        for _ in range(2):
            updates, state = optimizer.update(tree.map(torch.sin, p), state, p)
            p = optim.apply_updates(p, updates)
        return p, state

    together = paramtree.vmap(twice)(tree.stack(tasks))
    for i, task in enumerate(tasks):
        got = [x[i] for x in tree.leaves(together)]
        assert_close(got, tree.leaves(twice(task)), rtol=1e-10, atol=1e-12)


def test_nothing_is_computed_on_another_device():
    with torch.device("meta"):
        p = TensorDict({"w": torch.ones(3, 2), "b": torch.ones(3)})
    for name, make in ALL.items():
        own = p.select("w") if name.startswith("muon") else p
        optimizer = make()
        state = optimizer.init(own)
        updates, state = optimizer.update(own, state, own)
        assert all(x.is_meta for x in (*tree.leaves(updates), *tree.leaves(state)))


# ----------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: optim.lion(-0.1), ValueError, "lion: lr is -0.1, expected at least 0"),
        (lambda: optim.lion(b1=1.0), ValueError, "scale_by_lion: b1 is 1.0"),
        (lambda: optim.adabelief(nesterov=1), TypeError, "scale_by_belief: nesterov is a int"),
        (lambda: optim.scale_by_yogi(initial_accumulator_value=-1.0), ValueError, "initial_accum"),
        (lambda: optim.scale_by_yogi(initial_accumulator_value=abs), TypeError, "initial_accum"),
        (lambda: optim.novograd(weight_decay=-1.0), ValueError, "scale_by_novograd: weight_decay"),
        (lambda: optim.lamb("0.1"), TypeError, "lamb: lr is a str"),
        (lambda: optim.lars(0.1, momentum=0, nesterov=True), ValueError, "lars: momentum is 0"),
        (lambda: optim.fromage(torch.ones(2)), ValueError, r"fromage: lr has shape \(2,\)"),
        (lambda: optim.noisy_sgd(0.1, 3), TypeError, "noisy_sgd: key is a int"),
        (lambda: optim.noisy_sgd(0.1, torch.ones(2)), TypeError, "key is torch.float32"),
        (
            lambda: optim.add_noise(rng.split(rng.key(0)), 1.0, 0.5),
            ValueError,
            r"add_noise: key has shape \(2, 2\), expected \[2\]; vmap",
        ),
        (lambda: optim.add_noise(rng.key(0), -1.0, 0.5), ValueError, "eta is -1.0"),
        (lambda: optim.optimistic_adam(-1.0), ValueError, "optimistic_adam: lr is -1.0"),
        (lambda: optim.adafactor(beta2_decay=0.8), ValueError, "beta2_decay is 0.8"),
        (lambda: optim.adafactor(eps=1e-3), TypeError, "eps is 0.001, expected a pair"),
        (lambda: optim.adafactor(d=0.5), ValueError, "d is 0.5, expected at least 1"),
        (lambda: optim.scale_by_factored_rms(factored=1), TypeError, "factored is a int"),
        (lambda: optim.scale_by_factored_rms(step_offset=1.0), TypeError, "step_offset is a float"),
        (
            lambda: optim.scale_by_factored_rms(min_dim_size_to_factor=0),
            ValueError,
            "min_dim_size_to_factor is 0",
        ),
        (lambda: optim.scale_by_factored_rms(epsilon=0.0), ValueError, "epsilon is 0"),
        (lambda: optim.muon(adjust_lr_fn="mine"), ValueError, "adjust_lr_fn is 'mine'"),
        (lambda: optim.muon(ns_steps=100), ValueError, "ns_steps is 100"),
        (lambda: optim.muon(ns_steps=2.0), TypeError, "ns_steps is a float"),
        (lambda: optim.muon(ns_coefficients=(1.0, 2.0)), ValueError, "ns_coefficients has 2"),
        (lambda: optim.muon(ns_coefficients=1.0), TypeError, "ns_coefficients is a float"),
        (lambda: optim.muon(dtype=torch.int64), TypeError, "dtype is torch.int64"),
        (lambda: optim.clip(0.0), ValueError, "clip: max_delta is 0"),
        (lambda: optim.clip_by_block_rms(-1.0), ValueError, "clip_by_block_rms: threshold is -1"),
        (lambda: optim.adaptive_grad_clip(0.1, axis="0"), TypeError, "axis is '0'"),
        (lambda: optim.adaptive_grad_clip(0.1, axis=()), ValueError, r"axis is \(\)"),
        (lambda: optim.adaptive_grad_clip(0.1, axis=True), TypeError, "axis is True"),
    ],
)
def test_bad_numbers_are_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_leaves_that_a_rule_does_not_take_are_refused_by_name():
    p = TensorDict({"net": TensorDict({"bias": torch.ones(3)})})
    piece = optim.scale_by_muon()
    for call in (optim.muon().init, lambda p: piece.update(p, TensorDict({}), p)):
        with pytest.raises(ValueError, match=r"net\.bias.* has shape \(3,\), .*partition"):
            call(p)
    with pytest.raises(ValueError, match=r"net\.bias.* has shape \(3,\), expected one with axis 1"):
        optim.adaptive_grad_clip(0.1, axis=1).init(p)
    with pytest.raises(ValueError, match=r"\(1, 2, 1, 2, 1, 2\), expected five dims or fewer"):
        optim.adaptive_grad_clip(0.1).init(TensorDict({"w": torch.ones(1, 2, 1, 2, 1, 2)}))


def test_what_is_not_its_own_is_refused():
    p = leaves_of("lion", torch.float32)
    other = p.select("w", "s")
    for make in ALL.values():
        if make in (ALL["muon"], ALL["muon-own"]):
            continue
        optimizer = make()
        state = optimizer.init(p)
        with pytest.raises(ValueError, match="only params has 'b', 'empty', 'none', 'wide'"):
            optimizer.update(other, state, p)
        if not state.is_empty():
            with pytest.raises(ValueError, match="state"):
                optimizer.update(p, optim.sgd(0.1, 0.9).init(p), p)
