# pyright: reportArgumentType=false, reportCallIssue=false
import math

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.testing import assert_close
from torchrl.modules.value_norm import PercentileValueNorm, PopArtValueNorm

from losses import (
    ema_moments_init,
    ema_moments_normalize,
    ema_moments_unnormalize,
    ema_moments_update,
    return_scale,
    return_scale_init,
    return_scale_update,
)

D = torch.float64
DRAW = np.random.default_rng(0)
DATA = torch.tensor(DRAW.normal(2, 3, (5, 4, 6)))  # five updates


def run(update, state, data, *args, **kwargs):
    for x in data:
        state = update(state, x, *args, **kwargs)
    return state


def test_moments_are_the_debiased_averages():
    mu, nu, product = 0.0, 0.0, 1.0
    state = ema_moments_init(dtype=D)
    for x in DATA:
        mu, nu = 0.9 * mu + 0.1 * x.mean(), 0.9 * nu + 0.1 * x.square().mean()
        product *= 0.9
        state = ema_moments_update(state, x, 0.9)
        mean = mu / (1 - product)
        assert_close(state["mean"], mean)
        assert_close(state["variance"], nu / (1 - product) - mean**2)
        assert_close(state["weight"], torch.tensor(1 - product, dtype=D))
        assert state.is_locked


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99999])
def test_the_first_update_gives_the_datas_moments(decay):
    state = ema_moments_update(ema_moments_init(), DATA[0].float(), decay)
    assert_close(state["mean"], DATA[0].float().mean())
    assert_close(state["variance"], DATA[0].float().var(correction=0))
    assert_close(
        grad(lambda d: ema_moments_update(ema_moments_init(dtype=D), DATA[0], d)["variance"])(
            torch.tensor(0.5, dtype=D)
        ),
        torch.tensor(0.0, dtype=D),
    )


def test_moments_a_component():
    state = run(ema_moments_update, ema_moments_init((6,), D), DATA, 0.9)
    for i in range(6):
        alone = run(ema_moments_update, ema_moments_init((), D), DATA[..., i], 0.9)
        assert_close(state["mean"][i], alone["mean"])
        assert_close(state["variance"][i], alone["variance"])
    one = ema_moments_update(ema_moments_init((6,), D), DATA[0, 0])  # a batch of none
    assert_close(one["mean"], DATA[0, 0])
    assert (one["variance"] == 0).all()


def test_normalized_numbers():
    state = run(ema_moments_update, ema_moments_init(dtype=D), DATA, 0.9)
    deviation = (state["variance"] + 1e-12).sqrt() + 1e-6
    for center in (True, False):
        shift = state["mean"] if center else 0
        found = ema_moments_normalize(state, DATA, center=center)
        assert_close(found, (DATA - shift) / deviation)
        assert_close(ema_moments_unnormalize(state, found, center=center), DATA)


def test_torchrls_value_norm():
    """MAPPO's; ours adds the floor to the variance, theirs takes the larger one."""
    theirs = PopArtValueNorm(shape=2, beta=0.99)
    theirs = theirs.to(D)
    state = ema_moments_init((2,), D)
    for x in DATA.reshape(5, 12, 2):
        theirs.update(x)
        state = ema_moments_update(state, x, 0.99)
    x = DATA[0].reshape(12, 2)
    hyper = {"eps": 0.0, "root_eps": 1e-5}
    assert_close(ema_moments_normalize(state, x, **hyper), theirs.normalize(x), rtol=1e-5, atol=0)
    assert_close(
        ema_moments_unnormalize(state, x, **hyper), theirs.denormalize(x), rtol=1e-5, atol=0
    )
    same = torch.full((12, 2), 3.0, dtype=D)
    theirs = PopArtValueNorm(shape=2).to(D)
    theirs.update(same)
    ours = ema_moments_update(ema_moments_init((2,), D), same)
    ratio = theirs.scale() / (ours["variance"] + 1e-5).sqrt()
    assert_close(ratio, torch.ones(2, dtype=D), rtol=1e-5, atol=0)  # the floor alone: the same


def test_a_large_mean_leaves_the_variance_its_digits():
    """nu - mu^2, as rlax has it, is here 1e8 - 1e8, of which float32 keeps no digit."""
    x = 1e4 + torch.tensor(DRAW.normal(size=(40, 100))).float()
    state = run(ema_moments_update, ema_moments_init(), x, 0.9)
    right = run(ema_moments_update, ema_moments_init(dtype=D), x.double(), 0.9)
    assert_close(state["variance"].double(), right["variance"], rtol=1e-3, atol=0)


def test_numbers_all_equal():
    state = run(ema_moments_update, ema_moments_init(dtype=D), torch.full((3, 8), 2.0, dtype=D))
    assert state["variance"] == 0

    def f(x, root_eps):
        state = ema_moments_update(ema_moments_init(dtype=D), x)
        return ema_moments_normalize(state, x, eps=0.1, root_eps=root_eps).sum()

    x = torch.full((8,), 2.0, dtype=D)
    for root_eps in (0.0, 1e-12):
        assert_close(ema_moments_normalize(state, x, root_eps=root_eps), torch.zeros_like(x))
        assert grad(f)(x, root_eps).isfinite().all()


def test_masked_numbers_are_not_there():
    mask = torch.tensor(DRAW.random((4, 6)) < 0.5)
    start = ema_moments_update(ema_moments_init(dtype=D), DATA[1], 0.9)
    spoiled = torch.where(mask, DATA[0], math.nan)
    expected = ema_moments_update(start, DATA[0][mask], 0.9)
    found = ema_moments_update(start, spoiled, 0.9, mask=mask)
    none = ema_moments_update(start, spoiled, 0.9, mask=torch.zeros_like(mask))
    for key in expected.keys():
        assert_close(found[key], expected[key])
        assert_close(none[key], start[key], rtol=0, atol=0)
    for m in (mask, torch.zeros_like(mask)):
        slope = grad(lambda x, m=m: ema_moments_update(start, x, 0.9, mask=m)["variance"])(spoiled)
        assert slope.isfinite().all() and (slope[~m] == 0).all()


def test_the_decay_is_data(central, variant):
    def f(decay):
        state = run(ema_moments_update, ema_moments_init(dtype=D), DATA, decay)
        return ema_moments_normalize(state, DATA[0]).sin().sum()

    decay = torch.tensor(0.8, dtype=D)
    found = variant(grad(f))(decay)
    assert found.abs() > 1e-4
    assert_close(found, central(f, decay), rtol=1e-6, atol=1e-8)


def test_a_decay_of_one_learns_nothing():
    state = run(ema_moments_update, ema_moments_init(dtype=D), DATA, 1.0)
    assert all((state[key] == 0).all() for key in state.keys())


# ---- the range of returns


@pytest.mark.parametrize("low", [0.05, 0.0, 0.4])
def test_torchrls_return_scale(low):
    theirs = PercentileValueNorm(shape=1, quantiles=(low, 0.95), rate=0.01).to(D)
    state = return_scale_init(D)
    for x in 100 * DATA:
        theirs.update(x.reshape(-1, 1))
        state = return_scale_update(state, x, low_quantile=low)
    assert_close(state["low"], theirs.low.squeeze())
    assert_close(state["high"], theirs.high.squeeze())
    assert_close(return_scale(state), theirs.scale().squeeze())
    assert return_scale(state) > 1 and return_scale(return_scale_init()) == 1
    assert return_scale(return_scale_init(), 1e-8) == torch.tensor(1e-8)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_quantiles(n):
    x = torch.tensor(DRAW.normal(size=n))
    for q in (0.0, 0.05, 0.5, 0.95, 1.0):
        state = return_scale_update(return_scale_init(D), x, 0.0, low_quantile=q, high_quantile=q)
        assert_close(state["low"], x.quantile(q))


def test_return_scale_is_differentiable(central, variant):
    hyper = {"decay": 0.9, "low_quantile": 0.13, "high_quantile": 0.87}

    def f(x, data):
        named = dict(zip(hyper, x, strict=True))
        state = run(return_scale_update, return_scale_init(D), data, **named)
        return (return_scale(state, 0.1) * 3).sin() + state["low"].cos()

    x = torch.tensor(list(hyper.values()), dtype=D)
    found = variant(grad(f))(x, DATA)
    assert (found.abs() > 1e-4).all()
    assert_close(found, central(lambda x: f(x, DATA), x), rtol=1e-6, atol=1e-8)
    some = DATA[:2, 0]
    assert_close(grad(f, 1)(x, some), central(lambda d: f(x, d), some), rtol=1e-6, atol=1e-8)


def test_masked_returns_are_not_there():
    mask = torch.tensor(DRAW.random((4, 6)) < 0.5)
    start = return_scale_update(return_scale_init(D), DATA[1])
    spoiled = torch.where(mask, DATA[0], math.nan)
    expected = return_scale_update(start, DATA[0][mask])
    found = return_scale_update(start, spoiled, mask=mask)
    none = return_scale_update(start, spoiled, mask=torch.zeros_like(mask))
    for key in expected.keys():
        assert_close(found[key], expected[key])
        assert_close(none[key], start[key], rtol=0, atol=0)
    for m in (mask, torch.zeros_like(mask)):
        slope = grad(lambda x, m=m: return_scale_update(start, x, mask=m)["high"])(spoiled)
        assert slope.isfinite().all() and (slope[~m] == 0).all()


def test_mapped_over_decays_alone():
    decays = torch.tensor([0.5, 0.9], dtype=D)
    for init, update, key in (
        (ema_moments_init, ema_moments_update, "variance"),
        (return_scale_init, return_scale_update, "high"),
    ):
        found = vmap(lambda d, i=init, u=update, k=key: run(u, i(dtype=D), DATA, d)[k])(decays)
        for d, x in zip(decays, found, strict=True):
            assert_close(x, run(update, init(dtype=D), DATA, d)[key])


def test_the_states_dtype_stays():
    for init, update in (
        (ema_moments_init, ema_moments_update),
        (return_scale_init, return_scale_update),
    ):
        for dtype in (torch.float32, torch.bfloat16, D):
            state = update(init(dtype=dtype), DATA[0], torch.tensor(0.9, dtype=D))
            assert all(state[key].dtype == dtype for key in state.keys())


STATE, SCALE = ema_moments_init((2,)), return_scale_init()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: ema_moments_update(STATE, torch.ones(4, 3)),
            ValueError,
            r"x has shape \(4, 3\), expected \[\*batch, 2\] \(from state\)",
        ),
        (lambda: ema_moments_update(STATE, torch.ones(0, 2)), ValueError, r"x has shape \(0, 2\)"),
        (lambda: ema_moments_update(STATE, torch.ones(2), 1.5), ValueError, "decay is 1.5"),
        (
            lambda: ema_moments_update(STATE, torch.ones(2), torch.ones(2)),
            ValueError,
            r"decay has shape \(2,\), expected \(\)",
        ),
        (lambda: ema_moments_update(STATE, torch.ones(2).long()), TypeError, "x has dtype int64"),
        (lambda: ema_moments_update(SCALE, torch.ones(2)), ValueError, "the td has no 'mean'"),
        (lambda: ema_moments_update(None, torch.ones(2)), TypeError, "state is None"),
        (
            lambda: ema_moments_update(STATE, torch.ones(3, 2), mask=torch.ones(3)),
            TypeError,
            "mask has dtype float32, expected bool",
        ),
        (
            lambda: ema_moments_update(STATE, torch.ones(3, 2), mask=torch.ones(3, 2).bool()),
            ValueError,
            r"mask has shape \(3, 2\), expected \[3\] \(from x\)",
        ),
        (lambda: ema_moments_normalize(STATE, torch.ones(3)), ValueError, r"x has shape \(3,\)"),
        (lambda: ema_moments_normalize(STATE, torch.ones(())), ValueError, r"x has shape \(\)"),
        (lambda: ema_moments_normalize(STATE, torch.ones(2), eps=-1.0), ValueError, "eps is -1"),
        (lambda: return_scale_update(SCALE, torch.ones(0)), ValueError, "at least one number"),
        (
            lambda: return_scale_update(SCALE, torch.ones(3), low_quantile=5.0),
            ValueError,
            "low_quantile is 5.0, expected a number from 0 to 1",
        ),
        (lambda: return_scale(STATE), ValueError, "return_scale: the td has no 'low'"),
        (lambda: return_scale(SCALE, -1.0), ValueError, "limit is -1.0, expected at least 0"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
