import math

import pytest
import torch
from torchrl.modules import NoisyLinear

from paramtree import autodiff, grad, nn, rng, tree, vmap
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_compiled,
    check_derivatives,
    check_kinds,
    check_vmapped,
    close,
    draw,
    moved,
    scalar,
)


def started(layer, seed=0):
    return layer.init(rng.key(seed))


# ---- dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(rate):
    layer = nn.dropout(rate)
    x = torch.full((200, 100), 3.0, dtype=DOUBLE)
    out, _ = layer.apply(*started(layer), x)
    kept = out != 0
    close(out[kept], torch.full_like(out[kept], 3 / (1 - rate)))
    spread = math.sqrt(rate * (1 - rate) / x.numel())
    assert abs((~kept).double().mean() - rate) < 4 * spread
    for dim in (0, 1):  # and the same for every row and column
        count = x.shape[dim]
        off = (~kept).double().mean(dim) - rate
        assert off.abs().max() < 5 * math.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize("rate", [0.0, 0, 1.0, 1])
def test_rates_at_the_bounds(rate):
    x = draw(4, 3).requires_grad_()
    for given in (rate, torch.tensor(float(rate), dtype=DOUBLE, requires_grad=True)):
        layer = nn.dropout(given)
        params, buffers = started(layer)
        out, after = layer.apply(params, buffers, x)
        close(out, x if rate == 0 else torch.zeros_like(x))
        (slope,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
        close(slope, torch.full_like(x, 1.0 - rate))
        assert (after is buffers) == (given is rate and rate == 0)
        if given is not rate:
            (of_rate,) = torch.autograd.grad(out.sum(), given)
            assert of_rate.isfinite()


def test_a_rate_is_a_hyper_parameter():
    x = draw(50, 4)

    def fn(rate):
        layer = nn.dropout(rate)
        return layer.apply(*started(layer), x)[0]

    rate = torch.tensor(0.37, dtype=DOUBLE, requires_grad=True)
    out = fn(rate)
    close(out, fn(0.37))
    (slope,) = torch.autograd.grad(out.sum(), rate)
    close(slope, (out / (1 - rate)).sum())  # the mask stays as it is
    assert torch.autograd.gradcheck(fn, rate) and torch.autograd.gradgradcheck(fn, rate)
    rates = torch.tensor([0.1, 0.5, 1.0], dtype=DOUBLE)
    close(torch.func.vmap(fn)(rates), torch.stack([fn(one) for one in rates]))


def test_the_same_buffers_give_the_same_mask_and_those_that_come_back_another():
    layer = nn.dropout(0.5)
    params, buffers = started(layer)
    x = torch.ones(20, 20, dtype=DOUBLE)
    out, after = layer.apply(params, buffers, x)
    again, same = layer.apply(params, buffers, x)
    close(out, again)
    assert torch.equal(after["key"], same["key"]) and after.is_locked
    third, _ = layer.apply(params, after, x)
    agree = (third == out).double().mean()
    assert 0.35 < agree < 0.65
    with pytest.raises(ValueError, match="this model updates its buffers .key.; use apply"):
        layer(params, buffers, x)


def test_without_training_nothing_happens():
    layer, still = nn.dropout(0.5), nn.dropout(0.5, train=False)
    params, buffers = started(still)
    assert tree.paths(buffers) == tree.paths(started(layer)[1]) == [("key",)]
    x = draw(3, 2)
    out, after = still.apply(params, buffers, x)
    assert out is x and after is buffers


@pytest.mark.parametrize("dims", [(0,), (-2,), (0, 2)])
def test_broadcast_dims_share_a_draw(dims):
    layer = nn.dropout(0.5, broadcast_dims=dims)
    out, _ = layer.apply(*started(layer), torch.ones(8, 9, 7))
    for dim in dims:
        assert (out == out.narrow(dim, 0, 1)).all()
    other = next(dim for dim in range(3) if dim not in [d % 3 for d in dims])
    assert not (out == out.narrow(other, 0, 1)).all()


def test_dropout_in_every_way():
    layer, x = nn.dropout(0.4), draw(3, 2)
    check_derivatives(layer, x)
    check_vmapped(layer, x)
    check_compiled(layer, x)
    params, buffers = started(layer)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        out = layer.apply(params, buffers, x.to(dtype))[0]
        assert out.dtype == dtype and torch.equal(out == 0, layer.apply(params, buffers, x)[0] == 0)
    away = tree.map(lambda leaf: leaf.to("meta"), buffers)
    out, after = layer.apply(params, away, x.to("meta"))
    assert out.device.type == after["key"].device.type == "meta"


def test_one_mask_for_all_rows_of_a_map_or_a_mask_for_each():
    layer, x = nn.dropout(0.5), torch.ones(3, 50)
    params, buffers = started(layer)
    same = vmap(lambda x: layer.apply(params, buffers, x)[0])(x)
    assert torch.equal(same[0], same[1])
    many = vmap(layer.init)(rng.split(rng.key(0), 3))[1]
    own, after = vmap(layer.apply, (None, 0, 0))(params, many, x)
    assert not torch.equal(own[0], own[1]) and after["key"].shape == (3, 2)


# ---- noisy linear


def noise(layer, n_in, n_out):
    """What the layer adds for each deviation: weights and biases."""
    params, buffers = started(layer)
    units = {"weight_sigma": torch.ones(n_out, n_in), "bias_sigma": torch.ones(n_out)}
    zeros = {"weight_mu": torch.zeros(n_out, n_in), "bias_mu": torch.zeros(n_out)}
    params = tree.map(lambda leaf: leaf.double(), tree.new({**units, **zeros}))
    shift = layer.apply(params, buffers, torch.zeros(n_in, dtype=DOUBLE))[0]
    return (layer.apply(params, buffers, torch.eye(n_in, dtype=DOUBLE))[0] - shift).mT, shift


@pytest.mark.parametrize("factorized", [True, False])
def test_noisy_linear_equals_torchrl_with_the_same_noise(factorized):
    layer = nn.noisy_linear(4, 3, factorized=factorized, dtype=DOUBLE)
    params, buffers = moved(layer, rng.key(1))
    module = NoisyLinear(4, 3, dtype=DOUBLE, use_exploration_type=False)
    for name in ("weight_mu", "weight_sigma", "bias_mu", "bias_sigma"):
        getattr(module, name).data.copy_(params[name])
    _, own = started(layer)
    weight, shift = noise(layer, 4, 3)
    module.weight_epsilon.copy_(weight)
    module.bias_epsilon.copy_(shift)
    x = draw(5, 4).requires_grad_()
    expected = module(x)
    close(layer.apply(params, own, x)[0], expected)
    scalar(expected).backward()
    slopes = grad(lambda p: scalar(layer.apply(p, own, x.detach())[0]))(params)
    for name in params.keys():
        close(slopes[name], getattr(module, name).grad)
    module.eval()
    still = nn.noisy_linear(4, 3, factorized=factorized, train=False, dtype=DOUBLE)
    out, after = still.apply(params, buffers, x)
    assert after is buffers
    close(out, torch.nn.functional.linear(x, module.weight_mu, module.bias_mu))


def test_factorized_noise_is_a_product():
    weight, shift = noise(nn.noisy_linear(200, 300, dtype=DOUBLE), 200, 300)
    into = weight[0] / shift[0]
    close(weight, shift.unsqueeze(1) * into, rtol=1e-8, atol=1e-8)
    for part in (shift, into):  # f(z) with f(z)^2 = |z|
        assert abs(part.square().mean() - math.sqrt(2 / math.pi)) < 0.2
        assert abs(part.pow(4).mean() - 1.0) < 0.4 and abs(part.mean()) < 0.25


def test_independent_noise_is_normal():
    weight, shift = noise(nn.noisy_linear(60, 50, factorized=False, dtype=DOUBLE), 60, 50)
    both = torch.cat((weight, shift.unsqueeze(1)), 1)
    assert abs(both.mean()) < 0.08 and abs(both.std() - 1) < 0.05
    assert abs(both.pow(4).mean() - 3) < 0.5
    assert torch.linalg.matrix_rank(both) == 50
    assert abs((weight[:, :-1] * weight[:, 1:]).mean()) < 0.08


@pytest.mark.parametrize(
    ("factorized", "bound", "sigma"),
    [(True, 1 / 8, 0.5 / 8), (False, math.sqrt(3 / 64), 0.017)],
)
def test_initial_values_are_the_papers(factorized, bound, sigma):
    params, buffers = started(nn.noisy_linear(64, 32, factorized=factorized))
    for name in ("weight", "bias"):
        mean = params[f"{name}_mu"]
        assert 0.9 * bound < mean.abs().max() <= bound
        assert torch.equal(params[f"{name}_sigma"], torch.full_like(mean, sigma))
    assert tree.paths(buffers) == [("key",)]
    own, _ = started(nn.noisy_linear(16, 2, sigma_init=0.4, weight_init=nn.zeros, bias=False))
    assert sorted(own.keys()) == ["weight_mu", "weight_sigma"] and not own["weight_mu"].any()
    close(own["weight_sigma"], torch.full((2, 16), 0.1))


def test_noise_is_fresh_and_of_mean_zero():
    layer = nn.noisy_linear(3, 2, dtype=DOUBLE)
    params, buffers = started(layer)
    x = draw(3)
    outs = []
    for _ in range(400):
        out, buffers = layer.apply(params, buffers, x)
        outs.append(out)
    outs = torch.stack(outs)
    still = nn.noisy_linear(3, 2, train=False, dtype=DOUBLE)(params, buffers, x)
    off = (outs.mean(0) - still).abs() / (outs.std(0) / 20)
    assert off.max() < 4 and outs.std(0).min() > 0.1
    lagged = torch.corrcoef(torch.stack((outs[:-1, 0], outs[1:, 0])))[0, 1]
    assert abs(lagged) < 0.2


@pytest.mark.parametrize("factorized", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_noisy_linear_in_every_way(factorized, bias):
    layer = nn.noisy_linear(3, 2, bias, factorized=factorized, dtype=DOUBLE)
    check_derivatives(layer, draw(4, 3))
    check_vmapped(layer, draw(4, 3))
    if bias:
        check_compiled(layer, draw(4, 3))

        def make(dtype):
            return nn.noisy_linear(3, 2, factorized=factorized, train=False, dtype=dtype)

        check_kinds(make, draw(4, 3))
        lean = nn.noisy_linear(3, 2, factorized=factorized, dtype=torch.bfloat16)
        assert lean.apply(*started(lean), draw(4, 3).bfloat16())[0].dtype == torch.bfloat16


def test_the_first_deviation_is_a_hyper_parameter():
    x, sigma = draw(4, 3), torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)

    def fn(sigma):
        layer = nn.noisy_linear(3, 2, sigma_init=sigma, dtype=DOUBLE)
        return layer.apply(*started(layer), x)[0]

    close(fn(sigma), fn(None))
    assert torch.autograd.gradcheck(fn, sigma)
    assert autodiff.grad(lambda s: fn(s).sum())(sigma.detach()) != 0


NOISY, DROP = nn.noisy_linear(3, 2, dtype=DOUBLE), nn.dropout(0.5)
PARAMS, BUFFERS = started(NOISY)
X = draw(4, 3)
KEYS = tree.new({"key": rng.split(rng.key(0), 3)})
REFUSED = [
    (lambda: nn.dropout(1.5), ValueError, r"dropout: rate is 1.5, expected in \[0.0, 1.0\]"),
    (lambda: nn.dropout("half"), TypeError, "dropout: rate is a str"),
    (lambda: nn.dropout(torch.ones(2)), ValueError, r"dropout: rate is a tensor \[2\]"),
    (lambda: nn.dropout(broadcast_dims=1), TypeError, "dropout: broadcast_dims is 1, expected a t"),
    (lambda: DROP.init(KEYS["key"]), ValueError, r"dropout: key has shape \(3, 2\), .* with vmap"),
    (lambda: DROP.apply(EMPTY, BUFFERS, [1.0]), TypeError, "dropout: x is list, expected a float"),
    (lambda: DROP.apply(EMPTY, BUFFERS, X.long()), TypeError, "dropout: x is torch.int64"),
    (lambda: DROP.apply(EMPTY, EMPTY, X), ValueError, "dropout: buffers lack key; expected key"),
    (
        lambda: DROP.apply(EMPTY, KEYS, X),
        ValueError,
        r"buffers.key has shape \(3, 2\), .*vmap",
    ),
    (lambda: DROP.apply(EMPTY, tree.new({"key": X}), X), TypeError, "buffers.key is torch.float64"),
    (
        lambda: nn.dropout(0.5, broadcast_dims=(2,)).apply(EMPTY, BUFFERS, X),
        ValueError,
        r"dropout: x has shape \(4, 3\), which lacks dim 2 \(from broadcast_dims\)",
    ),
    (
        lambda: nn.dropout(torch.tensor(1.5)).apply(EMPTY, BUFFERS, X),
        ValueError,
        "holds a value outside",
    ),
    (lambda: nn.noisy_linear(0, 2), ValueError, "noisy_linear: n_in is 0"),
    (
        lambda: nn.noisy_linear(3, 2, sigma_init=-1.0),
        ValueError,
        "noisy_linear: sigma_init is -1",
    ),
    (lambda: nn.noisy_linear(3, 2, bias_init=0.0), TypeError, "noisy_linear: bias_init is a float"),
    (
        lambda: NOISY.apply(PARAMS, BUFFERS, draw(4, 2)),
        ValueError,
        r"noisy_linear: x has shape \(4, 2\), .* whose weight_mu has shape \(2, 3\)",
    ),
    (lambda: NOISY.apply(PARAMS, EMPTY, X), ValueError, "noisy_linear: buffers lack key"),
    (
        lambda: NOISY.apply(tree.exclude(PARAMS, "bias_sigma"), BUFFERS, X),
        ValueError,
        "noisy_linear: params lack bias_sigma",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
