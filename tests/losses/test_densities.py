# pyright: reportArgumentType=false, reportCallIssue=false
import math

import pytest
import torch
import torch.distributions as td_
from tensordict import TensorDict
from torch.distributions import Categorical, Independent, Normal
from torch.func import grad, jacrev
from torch.testing import assert_close
from torchrl.modules.distributions import MaskedCategorical as PeerMasked
from torchrl.modules.distributions import TanhNormal as PeerTanh

from losses import (
    categorical_cross_entropy,
    categorical_kl,
    distribution,
    importance_ratio,
    independent_normal,
    joint,
    kl_divergence,
    masked_categorical,
    tanh_normal,
)

D = torch.float64
INF = math.inf


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def numbers(*values, dtype=D):
    return torch.tensor(values, dtype=dtype)


# ---- tanh-normal


def quadrature(mean, scale):
    """Entropy and mean of tanh(z), z ~ Normal(mean, scale), by the trapezoidal rule."""
    z = torch.linspace(mean - 12 * scale, mean + 12 * scale, 200001, dtype=D)
    density = (-0.5 * ((z - mean) / scale) ** 2).exp() / (scale * math.sqrt(2 * math.pi))
    log_cosh = z.abs() + (-2 * z.abs()).exp().log1p() - math.log(2)
    stretch = torch.trapezoid(-2 * density * log_cosh, z)
    entropy = math.log(scale) + 0.5 * math.log(2 * math.pi * math.e) + stretch
    return entropy, torch.trapezoid(density * z.tanh(), z)


@pytest.mark.parametrize("mean", [0.0, 0.3, -2.0, 20.0])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 7.4, 30.0])
def test_tanh_normal_has_its_entropy_and_mean(mean, scale, central):
    entropy, expected = quadrature(mean, scale)
    for dtype, tolerance in ((D, 1e-12), (torch.float32, 1e-5)):
        dist = tanh_normal(numbers(mean, dtype=dtype), numbers(scale, dtype=dtype))
        for found, wanted in ((dist.entropy(), entropy), (dist.mean, expected.reshape(1))):
            assert found.dtype == dtype
            assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)

    def f(x):
        dist = tanh_normal(x[:1], x[1:] * scale, low=-3.0, high=numbers(1.0, dtype=x.dtype))
        return dist.entropy() + dist.mean.sum()

    x = numbers(mean, 1.0)
    assert_close(grad(f)(x), central(f, x), rtol=1e-6, atol=1e-6)
    second = jacrev(grad(f))(x)
    wanted = torch.stack([central(lambda y, i=i: grad(f)(y)[i], x) for i in range(2)])
    assert_close(second, wanted, rtol=1e-5, atol=1e-5)
    single = grad(f)(x.float()).double()
    assert_close(single, grad(f)(x), rtol=1e-4, atol=1e-4 * max(1.0, scale))


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-2.0, 0.5)])
def test_tanh_normal_is_torchrls(bounds):
    loc, scale, noise = draw(4, 5, 3), draw(4, 5, 3, seed=1).exp(), draw(4, 5, 3, seed=2)
    limits = [torch.tensor(x, dtype=D) for x in bounds]
    peer = PeerTanh(loc, scale, low=limits[0], high=limits[1])
    ours = tanh_normal(loc, scale, *bounds)
    action, log_prob = ours.sample_with(noise)
    assert ours.batch_shape == peer.batch_shape and ours.event_shape == peer.event_shape
    assert_close(ours.deterministic_sample, peer.deterministic_sample)
    inside = (action - limits[0]).minimum(limits[1] - action) > 1e-6
    assert_close(ours.log_prob(action), log_prob, rtol=1e-6, atol=1e-6)
    action = torch.where(inside, action, torch.tensor(sum(bounds) / 2, dtype=D))

    def of(make):
        return lambda x, s: make(x, s).log_prob(action).sin().sum()

    pair = (
        of(lambda x, s: tanh_normal(x, s, *bounds)),
        of(lambda x, s: PeerTanh(x, s, low=limits[0], high=limits[1])),
    )
    assert_close(pair[0](loc, scale), pair[1](loc, scale), rtol=1e-8, atol=1e-8)
    found = grad(pair[0], (0, 1))(loc, scale)
    leaves = [loc.clone().requires_grad_(), scale.clone().requires_grad_()]
    wanted = torch.autograd.grad(pair[1](*leaves), leaves)
    assert_close(found, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, D, torch.bfloat16])
def test_an_action_on_the_bound_of_a_tanh_normal_is_as_torchrl_takes_it(dtype):
    loc, scale = draw(4, 2).to(dtype), draw(4, 2, seed=1).exp().to(dtype)
    action = numbers(1.0, -1.0, dtype=dtype).expand(4, 2)
    dist = tanh_normal(loc, scale)
    peer = PeerTanh(loc, scale, low=numbers(-1.0, dtype=dtype), high=numbers(1.0, dtype=dtype))
    tolerance = 1e-1 if dtype == torch.bfloat16 else 1e-4
    assert_close(dist.log_prob(action), peer.log_prob(action), rtol=tolerance, atol=tolerance)
    found = grad(lambda x, s: tanh_normal(x, s).log_prob(action).sum(), (0, 1))(loc, scale)
    assert all(x.isfinite().all() and x.dtype == dtype for x in found)
    assert (grad(lambda a: dist.log_prob(a).sum())(action) == 0).all()
    assert dist.entropy().dtype == dist.log_prob(action).dtype == dtype


def test_a_sample_is_exact_where_tanh_rounds_to_the_bound():
    loc, scale = numbers(30.0, dtype=torch.float32), numbers(0.5, dtype=torch.float32)
    action, log_prob = tanh_normal(loc, scale).sample_with(numbers(1.0, dtype=torch.float32))
    assert action == 1
    z = 30.5
    expected = -0.5 - math.log(0.5) - 0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - z)
    assert_close(log_prob, torch.tensor(expected))
    slope = grad(lambda m: tanh_normal(m, scale).sample_with(numbers(1.0).float())[1].sum())(loc)
    assert_close(slope, numbers(2.0, dtype=torch.float32))


def test_bounds_of_a_tanh_normal_carry_gradient(central):
    loc, scale, action = draw(4, 2), draw(4, 2, seed=1).exp(), 0.3 * draw(4, 2, seed=2).tanh()

    def f(bounds):
        dist = tanh_normal(loc, scale, bounds[0], bounds[1])
        return dist.log_prob(action).sum() + dist.entropy().sum() + dist.mean.square().sum()

    bounds = numbers(-1.5, 2.0)
    assert_close(grad(f)(bounds), central(f, bounds), rtol=1e-6, atol=1e-6)
    per_action = bounds.unsqueeze(-1).expand(2, 2)
    assert_close(f(per_action), f(bounds))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: tanh_normal(draw(4, 2), draw(3)), ValueError, "tanh_normal: scale has shape"),
        (lambda: tanh_normal(draw(()), draw(())), ValueError, r"loc has shape \(\), expected"),
        (
            lambda: tanh_normal(draw(2), numbers(1.0, 2.0), 1.0, 1.0),
            ValueError,
            "low is 1.0, expected a num",
        ),
        (lambda: tanh_normal(draw(2), numbers(1.0, 2.0), "a"), TypeError, "low is a str"),
        (
            lambda: tanh_normal(draw(2), numbers(1.0, 2.0), draw(3)),
            ValueError,
            r"low has shape \(3,\)",
        ),
        (
            lambda: tanh_normal(draw(2), draw(2).exp()).log_prob(draw(1)),
            ValueError,
            r"log_prob: action has shape \(1,\), expected \[2\] \(from loc\)",
        ),
        (lambda: tanh_normal(torch.arange(2), draw(2)), TypeError, "loc has dtype int64"),
        (lambda: masked_categorical(draw(2), draw(2)), TypeError, "action_mask has dtype float64"),
        (
            lambda: masked_categorical(draw(4, 2), draw(4, 3) > 0),
            ValueError,
            r"masked_categorical: action_mask has shape \(4, 3\), expected \[4, 2\] \(from log",
        ),
        (lambda: masked_categorical(draw(()), draw(()) > 0), ValueError, "logits has shape"),
        (
            lambda: categorical_kl(draw(4, 2), draw(4, 3)),
            ValueError,
            "categorical_kl: logits_q has",
        ),
        (
            lambda: categorical_cross_entropy(draw(2), torch.arange(2)),
            TypeError,
            "categorical_cross_entropy: logits has dtype int64",
        ),
        (lambda: importance_ratio(draw(2), draw(3)), ValueError, "behavior_log_prob has shape"),
        (lambda: joint(), ValueError, "joint: no head is given"),
        (lambda: joint(a=3), TypeError, "joint: a is an int, expected a dist_class"),
        (
            lambda: joint(a=Categorical)(a=3),
            ValueError,
            r"joint\(a\): the heads' parameters have the batch sizes .* one TensorDict for each",
        ),
        (
            lambda: kl_divergence(
                independent_normal(draw(2), draw(2).exp()), Categorical(draw(2).exp())
            ),
            ValueError,
            "no divergence is known of an Independent from a Categorical",
        ),
        (
            lambda: kl_divergence(
                tanh_normal(draw(2), numbers(1.0, 2.0)),
                tanh_normal(draw(2), numbers(1.0, 2.0), -2.0),
            ),
            ValueError,
            "kl_divergence: no divergence is known of a TanhNormal from a TanhNormal",
        ),
    ],
)
def test_bad_arguments(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---- masked categorical


@pytest.mark.parametrize("n", [4, 20])
def test_masked_categorical_is_torchrls(n):
    logits, mask = draw(6, n), draw(6, n, seed=1) > 0
    mask[:, 1] = True
    action = torch.where(mask, draw(6, n, seed=2), -INF).argmax(-1)

    def f(make):
        def value(x):
            dist = make(logits=x, mask=mask) if make is PeerMasked else make(x, mask)
            return weight * (dist.log_prob(action).sin() + dist.entropy().sin()).sum()

        return value

    weight, leaf = 1.0, logits.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(f(PeerMasked)(leaf), leaf)
    assert_close(f(masked_categorical)(logits), f(PeerMasked)(logits))
    assert_close(grad(f(masked_categorical))(logits), wanted)
    weight = 3.0
    assert_close(grad(f(masked_categorical))(logits), 3 * wanted)
    assert torch.autograd.grad(f(PeerMasked)(leaf), leaf)[0].isnan().any()
    dist = masked_categorical(logits, mask)
    assert (dist.probs[~mask] == 0).all() and (dist.log_prob((~mask).int().argmax(-1)) <= 0).all()
    assert mask.gather(-1, dist.mode.unsqueeze(-1)).all()


@pytest.mark.parametrize("dtype", [D, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("junk", [0.0, -INF, INF, math.nan, 1e30])
@pytest.mark.parametrize("mask", [(0, 1, 0), (1, 1, 0), (0, 0, 0)], ids=str)
def test_forbidden_actions_have_no_influence(dtype, junk, mask):
    mask = torch.tensor(mask, dtype=torch.bool)
    logits = torch.where(mask, numbers(0.3, -0.2, 0.1), junk).to(dtype)

    def f(x):
        dist = masked_categorical(x, mask)
        chosen = dist.log_prob(torch.tensor(1)) if mask.any() else 0.0
        return 1e3 * (dist.entropy() + chosen) + dist.logits.exp().square().sum()

    assert f(logits).isfinite()
    for slope in (grad(f)(logits), grad(lambda x: grad(f)(x).sin().sum())(logits)):
        assert slope.isfinite().all() and (slope[~mask] == 0).all() and slope.dtype == dtype
    dist = masked_categorical(logits, mask)
    for i in range(3):
        assert mask[i] or dist.log_prob(torch.tensor(i)) == -INF
    if mask.sum() == 1:
        assert dist.entropy() == 0 and dist.log_prob(torch.tensor(1)) == 0
    if not mask.any():
        assert dist.entropy() == 0


def test_entropy_with_a_large_weight_at_impossible_actions():
    logits = numbers(0.0, -INF, 1.0, dtype=torch.float32)
    slope = grad(lambda x: 1e6 * distribution(TensorDict({"logits": x}, [])).entropy())(logits)
    assert slope.isfinite().all() and slope[1] == 0


# ---- divergences


def test_divergences_are_torchs():
    p, q = draw(4, 5, 3), draw(4, 5, 3, seed=1)
    expected = td_.kl_divergence(Categorical(logits=p), Categorical(logits=q))
    assert_close(categorical_kl(p, q), expected)
    lean = [distribution(TensorDict({"logits": x}, (4, 5))) for x in (p, q)]
    for pair in (lean, (lean[0], Categorical(logits=q)), (Categorical(logits=p), lean[1])):
        assert_close(kl_divergence(*pair), expected)
    everything = torch.ones(4, 5, 3, dtype=torch.bool)
    assert_close(kl_divergence(masked_categorical(p, everything), lean[1]), expected)
    assert_close(
        categorical_cross_entropy(p.softmax(-1), q), expected + Categorical(logits=p).entropy()
    )
    scales = draw(4, 5, 3, seed=2).exp(), draw(4, 5, 3, seed=3).exp()
    normals = [Normal(x, s) for x, s in zip((p, q), scales, strict=True)]
    expected = td_.kl_divergence(*normals)
    assert_close(kl_divergence(*normals), expected)
    vectors = [independent_normal(x.loc, x.scale) for x in normals]
    assert_close(kl_divergence(*vectors), expected.sum(-1))
    squashed = [tanh_normal(x.loc, x.scale, -2.0, 1.0) for x in normals]
    assert_close(kl_divergence(*squashed), expected.sum(-1))
    for make in (td_.Bernoulli, td_.OneHotCategorical):
        pair = [make(logits=x) for x in (p, q)]
        assert_close(kl_divergence(*pair), td_.kl_divergence(*pair))
    betas = [td_.Beta(s, s + 1) for s in scales]
    assert_close(kl_divergence(*betas), td_.kl_divergence(*betas))
    deep = [Independent(Normal(x.loc, x.scale), 2) for x in normals]
    assert_close(kl_divergence(*deep), expected.sum((-1, -2)))


def test_divergence_of_tanh_normals_is_an_average_log_ratio():
    noise = torch.special.ndtri((torch.arange(200000, dtype=D) + 0.5) / 200000).unsqueeze(-1)
    p, q = (
        tanh_normal(numbers(0.3), numbers(0.8), -2.0),
        tanh_normal(numbers(-0.1), numbers(1.1), -2.0),
    )
    action, log_prob = p.sample_with(noise)
    assert_close(kl_divergence(p, q), (log_prob - q.log_prob(action)).mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_divergence_at_probabilities_of_zero(dtype):
    p, q = numbers(0.0, -INF, 1.0, dtype=dtype), numbers(0.5, -INF, 0.2, dtype=dtype)
    expected = categorical_kl(p[[0, 2]], q[[0, 2]])
    assert_close(categorical_kl(p, q), expected)
    assert_close(
        categorical_kl(p, numbers(0.5, 0.5, 0.2, dtype=dtype)).isfinite(), torch.tensor(True)
    )
    endless = categorical_kl(numbers(0.0, 0.0, 1.0, dtype=dtype), q)
    assert endless == INF
    assert categorical_cross_entropy(numbers(0.5, 0.0, 0.5, dtype=dtype), q).isfinite()
    assert categorical_cross_entropy(numbers(0.5, 0.5, 0.0, dtype=dtype), q) == INF
    certain = numbers(0.0, -INF, -INF, dtype=dtype)
    assert categorical_kl(certain, certain) == 0
    pairs = [(p, q), (q, p), (numbers(0.0, 0.0, 1.0, dtype=dtype), q), (certain, certain)]
    pairs += [(certain, p), (numbers(80.0, 0.0, -800.0, dtype=dtype), certain)]
    for pair in pairs:
        for slope in grad(lambda *x: 1e3 * categorical_kl(*x), (0, 1))(*pair):
            assert slope.isfinite().all()
        twice = grad(
            lambda *x: sum(g.sin().sum() for g in grad(categorical_kl, (0, 1))(*x)), (0, 1)
        )
        assert all(x.isfinite().all() for x in twice(*pair))


def test_cross_entropy_has_its_gradient_at_a_probability_of_zero():
    q = numbers(0.5, 0.1, 0.2)
    slope = grad(categorical_cross_entropy)(numbers(1.0, 0.0, 0.0), q)
    assert_close(slope, -q.log_softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, D])
def test_importance_ratio_of_long_runs(dtype):
    for value in (0.0, 80.0, -80.0, -INF):
        x = torch.tensor(value, dtype=dtype)
        ratio, slope = torch.func.vjp(lambda x: importance_ratio(x, torch.zeros_like(x)), x)[:2]
        expected = torch.tensor(math.exp(value), dtype=dtype)
        assert_close(ratio, expected, rtol=1e-2, atol=0)
        assert_close(slope(torch.ones_like(x))[0], expected, rtol=1e-2, atol=0)


def test_normals_that_are_nearly_equal_in_float32():
    loc, scale = draw(1000).float(), draw(1000, seed=1).exp().float()
    p, q = Normal(loc, scale), Normal(loc, scale * (1 + 1e-4))
    value = kl_divergence(p, q)
    log_ratio = 2 * (q.scale.double() / p.scale.double()).log()
    assert_close(value.double(), (torch.expm1(-log_ratio) + log_ratio) / 2, rtol=0, atol=1e-9)
