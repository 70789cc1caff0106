# pyright: reportArgumentType=false, reportCallIssue=false
import math

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.testing import assert_close

from losses import (
    TxPair,
    compose_tx,
    discount_pair,
    hyperbolic_sin_pair,
    identity_pair,
    muzero_pair,
    signed_hyperbolic,
    signed_hyperbolic_pair,
    signed_logp1_pair,
    signed_parabolic,
    symexp,
    symlog,
    two_hot,
    two_hot_mean,
    two_hot_pair,
    unbiased_transform_pair,
)

D = torch.float64
X = torch.tensor([-300.0, -2.5, -1.0, -1e-3, 0.0, 1e-3, 0.7, 2.5, 80.0], dtype=D)
SUPPORT = torch.tensor([-2.0, -0.5, 0.0, 1.0, 4.0], dtype=D)


def test_elementwise_functions_are_their_equations():
    x = X.numpy()
    sign, size = np.sign(x), np.abs(x)
    assert_close(symlog(X), torch.tensor(sign * np.log1p(size)))
    assert_close(symexp(X), torch.tensor(sign * np.expm1(size)))
    for eps in (1e-3, 1e-2, 0.5):
        squashed = sign * (np.sqrt(size + 1) - 1) + eps * x
        assert_close(signed_hyperbolic(X, eps), torch.tensor(squashed))
        z = (np.sqrt(1 + 4 * eps * (eps + 1 + size)) - 1) / (2 * eps)
        assert_close(signed_parabolic(X, eps), torch.tensor(sign * (z**2 - 1)), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "pair",
    [
        identity_pair,
        signed_logp1_pair,
        signed_hyperbolic_pair,
        hyperbolic_sin_pair,
        compose_tx(signed_hyperbolic_pair, signed_logp1_pair),
        compose_tx(),
    ],
)
def test_there_and_back(pair):
    x = X[1:-1]
    assert_close(pair.inverse(pair.apply(x)), x, rtol=1e-12, atol=1e-14)
    assert_close(pair.apply(pair.inverse(x)), x, rtol=1e-12, atol=1e-14)
    slope = vmap(grad(lambda v: pair.inverse(pair.apply(v))))(x)
    assert_close(slope, torch.ones_like(x))


def test_discounts_and_horizons():
    x = torch.tensor([0.0, 1e-9, 0.5, 0.99], dtype=D)
    assert_close(discount_pair.apply(x), -torch.log1p(-x))
    assert_close(discount_pair.inverse(discount_pair.apply(x)), x, rtol=1e-12, atol=0)


def test_a_composition_applies_in_order():
    double = TxPair(lambda x: 2 * x, lambda x: x / 2)
    more = TxPair(lambda x: x + 3, lambda x: x - 3)
    pair = compose_tx(double, more)
    assert pair.apply(torch.tensor(1.0)) == 5 and pair.inverse(torch.tensor(5.0)) == 1


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (symlog, 1.0),
        (symexp, 1.0),
        (signed_hyperbolic, 0.5 + 1e-3),
        (signed_parabolic, 1 / (0.5 + 1e-3)),
        (lambda x: signed_parabolic(x, 0.0), 2.0),
    ],
)
def test_at_zero(function, slope):
    zero = torch.tensor(0.0, dtype=D)
    assert function(zero) == 0 and function(-zero) == 0
    assert_close(grad(function)(zero), torch.tensor(slope, dtype=D))
    assert_close(function(torch.tensor(1e-30, dtype=D)), torch.tensor(1e-30 * slope, dtype=D))
    assert grad(grad(function))(zero).isfinite()


@pytest.mark.parametrize("function", [symlog, signed_hyperbolic, signed_parabolic])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_at_the_ends(function, dtype):
    top = torch.finfo(dtype).max
    x = torch.tensor([top, -top, math.inf, -math.inf, math.nan], dtype=dtype)
    y = function(x)
    assert y.dtype == dtype
    assert y[:4].isnan().logical_not().all() and (y[:4].sign() == x[:4].sign()).all()
    assert y[2] == math.inf and y[3] == -math.inf and y[4].isnan()
    assert not vmap(grad(function))(x[:4]).isnan().any()


def test_symexp_overflows_to_infinity():
    x = torch.tensor([88.0, 100.0, -100.0])
    assert symexp(x)[0].isfinite() and (symexp(x)[1:] == torch.tensor([math.inf, -math.inf])).all()
    assert_close(
        vmap(grad(lambda v: symexp(symlog(v))))(torch.tensor([1e30, -1e30])), torch.ones(2)
    )


def test_small_numbers_keep_their_digits_in_float32():
    """The formula of the paper leaves none of them: 1 + 4 eps (...) rounds x away."""
    x = torch.tensor([1e-5, -1e-6, 1e-12])
    right = signed_parabolic(x.double())
    assert_close(signed_parabolic(x).double(), right, rtol=1e-6, atol=0)
    assert_close(signed_hyperbolic(signed_parabolic(x)), x, rtol=1e-6, atol=0)
    naive = ((1 + 4e-3 * (1e-3 + 1 + x.abs())).sqrt() / 2e-3 - 1 / 2e-3).square() - 1
    assert ((naive - right).abs() > 1e-6).all()


def test_eps_is_data(central, variant):
    def f(eps):
        return (signed_hyperbolic(X, eps).sin() + signed_parabolic(X / 50, eps).cos()).sum()

    eps = torch.tensor(0.02, dtype=D)
    assert_close(variant(grad(f))(eps), central(f, eps), rtol=1e-6, atol=1e-8)
    assert_close(signed_parabolic(X, torch.full_like(X, 0.02)), signed_parabolic(X, eps))


# ---- supports


def test_two_hot_is_a_loop():
    x = torch.tensor(np.random.default_rng(0).uniform(-3, 5, (3, 20)))
    expected = np.zeros((3, 20, 5))
    atoms = SUPPORT.numpy()
    for i, value in np.ndenumerate(x.numpy()):
        value = min(max(value, atoms[0]), atoms[-1])
        k = max(j for j in range(4) if atoms[j] <= value)
        expected[(*i, k + 1)] = (value - atoms[k]) / (atoms[k + 1] - atoms[k])
        expected[(*i, k)] = 1 - expected[(*i, k + 1)]
    probs = two_hot(x, SUPPORT)
    assert_close(probs, torch.tensor(expected))
    assert_close(two_hot_mean(probs, SUPPORT), x.clamp(-2, 4))
    assert ((probs >= 0).all() and ((probs > 0).sum(-1) <= 2).all()) and (probs.sum(-1) == 1).all()


def test_on_atoms_and_beyond_the_ends():
    assert_close(two_hot(SUPPORT, SUPPORT), torch.eye(5, dtype=D), rtol=0, atol=0)
    beyond = torch.tensor([-2.1, -1e30, -math.inf, 4.1, 1e30, math.inf], dtype=D)
    ends = torch.eye(5, dtype=D)[[0, 0, 0, 4, 4, 4]]
    assert_close(two_hot(beyond, SUPPORT), ends, rtol=0, atol=0)
    slope = grad(lambda x: two_hot_mean(two_hot(x, SUPPORT), SUPPORT).sum())
    assert_close(slope(SUPPORT), torch.ones(5, dtype=D))
    assert_close(slope(beyond), torch.zeros(6, dtype=D))


def test_nan_stays_and_does_not_spread():
    x = torch.tensor([0.3, math.nan])
    probs = two_hot(x, SUPPORT.float())
    assert two_hot_mean(probs, SUPPORT.float())[1].isnan() and probs[0].isfinite().all()


def test_discos_support():
    """601 atoms from -300 to 300; rlax adds 1e-5 to the denominator, so its mean is off."""
    atoms = torch.linspace(-300, 300, 601)
    x = torch.tensor([0.0, 0.25, -299.5, 299.0, 17.125])
    probs = two_hot(x, atoms)
    assert probs.shape == (5, 601)
    assert_close(two_hot_mean(probs, atoms), x, rtol=0, atol=0)
    # rlax.transform_to_2hot(jnp.array([.25]), -300., 300., 601)[0, 300:302] under float64
    rlax = torch.tensor([0.74999250, 0.25000750], dtype=D)
    assert_close(probs[1, 300:302].double(), rlax, rtol=0, atol=1e-5)
    assert (probs[1, 300:302].double() - rlax).abs().min() > 5e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes_stay(dtype):
    x = torch.tensor([0.5, 1.0], dtype=dtype)
    probs = two_hot(x, torch.linspace(-300, 300, 601))
    assert (
        probs.dtype == dtype
        and two_hot_mean(probs, SUPPORT.new_zeros(601) + X.new_tensor(np.arange(601.0))).dtype
        == dtype
    )
    assert_close(probs[0, 300:302].double(), torch.tensor([0.5, 0.5], dtype=D))


def test_two_hot_in_variants(variant, central):
    def f(x, atoms):
        return (two_hot(x, atoms) * torch.arange(5.0, dtype=D).cos()).sum().sin()

    x, atoms = torch.tensor([0.3, 2.2, -1.1], dtype=D), SUPPORT
    for i, wrt in ((0, lambda v: f(v, atoms)), (1, lambda v: f(x, v))):
        args = (x, atoms)
        assert_close(variant(grad(f, i))(x, atoms), central(wrt, args[i]), rtol=1e-6, atol=1e-8)


def test_two_hot_mapped_over_supports_alone():
    many = torch.stack([SUPPORT, SUPPORT * 2])
    x = torch.tensor([0.3, 2.2], dtype=D)
    found = vmap(two_hot, (None, 0))(x, many)
    assert_close(found, torch.stack([two_hot(x, atoms) for atoms in many]))


def test_muzero_and_the_unbiased_pair():
    x = torch.tensor([-40.0, 0.3, 7.0], dtype=D)
    atoms = torch.linspace(-20, 20, 41, dtype=D)
    muzero, unbiased = muzero_pair(atoms), unbiased_transform_pair(atoms)
    assert_close(muzero.apply(x), two_hot(signed_hyperbolic(x), atoms))
    for pair in (muzero, unbiased):
        assert_close(pair.inverse(pair.apply(x)), x)
    apart = (pair.apply(x[:1]) + pair.apply(x[1:2]) for pair in (muzero, unbiased))
    means = [pair.inverse(p / 2) for pair, p in zip((muzero, unbiased), apart, strict=True)]
    assert_close(means[1], x[:2].mean(0, keepdim=True))
    assert (means[0] - x[:2].mean()).abs() > 1  # squashed, the mean is another one
    assert_close(two_hot_pair(atoms).apply(x), two_hot(x, atoms))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: symlog(torch.tensor(1)), TypeError, "symlog: x has dtype int64"),
        (lambda: symexp(1.0), TypeError, "symexp: x is a float, expected a floating-point tensor"),
        (lambda: signed_hyperbolic(X, -1.0), ValueError, "eps is -1.0, expected at least 0"),
        (lambda: signed_parabolic(X, math.nan), ValueError, "signed_parabolic: eps is nan"),
        (
            lambda: signed_parabolic(X, X[:2]),
            ValueError,
            r"eps has shape \(2,\), expected one that broadcasts to \(9,\) \(from x\)",
        ),
        (lambda: two_hot(X, SUPPORT.flip(0)), ValueError, "two_hot: support does not increase"),
        (
            lambda: two_hot(X, torch.ones(1)),
            ValueError,
            r"support has shape \(1,\), expected \[K\]",
        ),
        (lambda: two_hot(X, torch.arange(3)), TypeError, "two_hot: support has dtype int64"),
        (
            lambda: two_hot_mean(X, SUPPORT),
            ValueError,
            r"probs has shape \(9,\), expected \[..., 5\] \(from support\)",
        ),
        (lambda: two_hot_pair(SUPPORT[:1]), ValueError, "two_hot_pair: support has shape"),
        (lambda: muzero_pair(SUPPORT, symlog), TypeError, "muzero_pair: tx is a function"),
        (lambda: compose_tx(identity_pair, 2), TypeError, r"compose_tx: pairs\[1\] is an int"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
