import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from paramtree import rng

DOUBLE = torch.float64
N = 100_000


def compiled(fn):
    torch.compiler.reset()
    return torch.compile(fn, fullgraph=True, backend="aot_eager")


# ---- the same numbers in every variant

PROBABILITIES = tensor([0.1, 0.9, 0.0, 1.0, 0.5])
LOGITS = tensor([[0.0, 1.0, -torch.inf], [3.0, -torch.inf, 2.0]])

DRAWS = {
    "split": lambda key: rng.split(key, 3),
    "fold_in_int": lambda key: rng.fold_in(key, 7),
    "fold_in_name": lambda key: rng.fold_in(key, "weight"),
    "fold_in_tensor": lambda key: rng.fold_in(key, torch.arange(3, device=key.device)),
    "bits": lambda key: rng.bits(key, (5,)),
    "bits_many": lambda key: rng.bits(key, (3, 67)),
    "uniform": lambda key: rng.uniform(key, (3, 3)),
    "uniform_range": lambda key: rng.uniform(key, (50,), -0.1, 0.3),
    "uniform_double": lambda key: rng.uniform(key, (5,), dtype=DOUBLE),
    "uniform_bfloat16": lambda key: rng.uniform(key, (5,), dtype=torch.bfloat16),
    "normal": lambda key: rng.normal(key, (7,)),
    "normal_many": lambda key: rng.normal(key, (2, 77), 3.0, 2.0),
    "normal_double": lambda key: rng.normal(key, (7,), dtype=DOUBLE),
    "truncated_normal": lambda key: rng.truncated_normal(key, (7,), dtype=DOUBLE),
    "bernoulli": lambda key: rng.bernoulli(key, PROBABILITIES.to(key.device)),
    "bernoulli_float": lambda key: rng.bernoulli(key, 0.5, (9,)),
    "categorical": lambda key: rng.categorical(key, LOGITS.to(key.device), (40, 2)),
    "randint": lambda key: rng.randint(key, (9,), -3, 10),
    "permutation": lambda key: rng.permutation(key, 6),
}

# What key(2026) gives; these numbers must never change.
TABLE = {
    "split": [
        [4471107688913194423, -2321911011693271100],
        [-6507260973301829096, 6097586780106887689],
    ],
    "fold_in_name": [-8675632762802993291, -2385521478994439371],
    "bits": [1851468003, 2243411547, 3016668856, 1273610028, 4244632846],
    "uniform": ["0x1.b96ca0p-2", "0x1.0b6f7cp-1", "0x1.679d6cp-1", "0x1.2fa6fcp-2"],
    "uniform_double": ["0x1.b96ca38e16deep-2", "0x1.679d6d7097d37p-1"],
    "normal": [-1.2845247983932495, -0.18145610392093658, -0.24229194223880768, 0.804907500743866],
    "normal_double": [-0.38244171999617915, -1.2396243515954473, -0.14196592153678167],
    "truncated_normal": [-0.1656544834370248, 0.5048415323068679, 1.8258517435515174],
    "bernoulli_float": [True, False, False, True, False, True],
    "randint": [0, -1, 7, 8, 1, -1],
    "permutation": [0, 3, 4, 1, 5, 2],
}


@pytest.mark.parametrize("name", TABLE)
def test_numbers_are_those_of_the_table(name):
    drawn, expected = DRAWS[name](rng.key(2026)), TABLE[name]
    if name.startswith("uniform"):
        expected = [float.fromhex(value) for value in expected]
    drawn = drawn.flatten(0, -1 if name != "split" else 0)[: len(expected)]
    if drawn.is_floating_point() and not name.startswith("uniform"):
        assert_close(drawn, tensor(expected, dtype=drawn.dtype), rtol=3e-16, atol=3e-16)
    else:
        assert drawn.tolist() == expected


def same(name, actual, expected):
    """Bit-equal; to 2 ulp for what goes through transcendental functions."""
    if "normal" in name:
        assert_close(actual, expected, rtol=2 * torch.finfo(expected.dtype).eps, atol=0)
    else:
        assert torch.equal(actual, expected), name


@pytest.mark.parametrize("name", DRAWS)
def test_vmapped_draws_equal_a_loop(name):
    draw, keys = DRAWS[name], rng.split(rng.key(2026), 6)
    loop = [draw(key) for key in keys]
    mapped = torch.vmap(draw)(keys)
    same(name, mapped, torch.stack(loop))
    same(name, torch.vmap(torch.vmap(draw))(keys.view(3, 2, 2)).flatten(0, 1), mapped)


def test_compiled_draws_equal_eager_ones():
    names = ("split", "fold_in_name", "uniform", "normal_double", "truncated_normal")
    names += ("bernoulli", "categorical", "randint", "permutation")

    def draw(key):
        return [DRAWS[name](key) for name in names]

    key = rng.key(2026)
    for name, one, other in zip(names, draw(key), compiled(draw)(key), strict=True):
        same(name, other, one)


@pytest.mark.parametrize("name", DRAWS)
def test_meta_keys_give_meta_draws(name):
    real, meta = DRAWS[name](rng.key(0)), DRAWS[name](rng.key(0, "meta"))
    assert (meta.device.type, meta.shape, meta.dtype) == ("meta", real.shape, real.dtype)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_touch_neither_the_key_nor_global_generators(name):
    key = rng.split(rng.key(9), 5)[2]
    before = key.clone(), torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert torch.equal(DRAWS[name](key), DRAWS[name](key))
    DRAWS[name](key[None].expand(1, 2)[0])
    assert torch.equal(key, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]
    assert (np.random.get_state()[1] == before[3]).all()


BATCHED = {
    "bits": lambda key, shape: rng.bits(key, shape),
    "uniform": lambda key, shape: rng.uniform(key, shape, -1.0, 2.0),
    "uniform_double": lambda key, shape: rng.uniform(key, shape, dtype=DOUBLE),
    "normal": lambda key, shape: rng.normal(key, shape),
    "normal_double": lambda key, shape: rng.normal(key, shape, dtype=DOUBLE),
    "truncated_normal": lambda key, shape: rng.truncated_normal(key, shape),
    "bernoulli": lambda key, shape: rng.bernoulli(key, 0.3, shape),
    "categorical": lambda key, shape: rng.categorical(key, LOGITS[0], shape),
    "randint": lambda key, shape: rng.randint(key, shape, 0, 100),
}


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("rest", [(), (1,), (3, 5), (60,), (0,)], ids=str)
def test_each_key_of_a_batch_draws_its_own_slice(name, rest):
    draw, keys = BATCHED[name], rng.split(rng.key(5), 6).view(2, 3, 2)
    drawn = draw(keys, (2, 3, *rest))
    assert drawn.shape == (2, 3, *rest)
    for i, j in itertools.product(range(2), range(3)):
        assert torch.equal(drawn[i, j], draw(keys[i, j], rest))
    expanded = draw(keys[:, :1], (2, 4, *rest))
    assert torch.equal(expanded, drawn[:, :1].expand(expanded.shape))


def test_permutation_of_a_batch_of_keys():
    keys = rng.split(rng.key(5), 3)
    assert torch.equal(rng.permutation(keys, 50)[1], rng.permutation(keys[1], 50))
    assert rng.permutation(keys, 0).shape == (3, 0)


# ---- distributions


def within(value, expected, std_error, sigmas=5):
    assert abs(float(value) - float(expected)) < sigmas * float(std_error)


def check_moments(drawn, raw):
    """First four raw moments, given the first eight, within 5 standard errors."""
    drawn = drawn.double()
    for order in (1, 2, 3, 4):
        error = math.sqrt((raw[2 * order] - raw[order] ** 2) / drawn.numel())
        within(drawn.pow(order).mean(), raw[order], error)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_moments_of_uniform(dtype):
    drawn = rng.uniform(rng.key(1), (N,), dtype=dtype)
    check_moments(drawn, [1 / (order + 1) for order in range(9)])
    counts = torch.bincount((drawn * 100).long(), minlength=100).double()
    chi2 = ((counts - N / 100) ** 2 / (N / 100)).sum()
    within(chi2, 99, math.sqrt(2 * 99))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_moments_of_normal(dtype):
    drawn = rng.normal(rng.key(2), (N,), dtype=dtype)
    check_moments(drawn, [1, 0, 1, 0, 3, 0, 15, 0, 105])
    counts = torch.bincount((normal_below(drawn.double()) * 100).long(), minlength=100)
    chi2 = ((counts - N / 100) ** 2 / (N / 100)).sum()
    within(chi2, 99, math.sqrt(2 * 99))
    assert 4.0 < drawn.abs().max() < 6.0


def normal_below(z):
    return torch.erfc(-z / math.sqrt(2)) / 2


@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.0), (-0.5, 3.0), (9.0, 10.0), (-9.0, -8.0)])
def test_truncated_normal_follows_its_distribution_function(low, high):
    drawn = rng.truncated_normal(rng.key(3), (N,), low, high, dtype=DOUBLE)
    assert low <= drawn.min() and drawn.max() <= high
    sign = -1 if low + high > 0 else 1  # tails at the right are taken at the left, exactly
    ends = normal_below(sign * tensor([low, high], dtype=DOUBLE))
    uniform = (normal_below(sign * drawn) - ends[0]) / (ends[1] - ends[0])
    check_moments(uniform, [1 / (order + 1) for order in range(9)])


def test_truncated_normal_scales_what_it_cut():
    key = rng.key(4)
    z = rng.truncated_normal(key, (1000,), -1.0, 0.5, dtype=DOUBLE)
    scaled = rng.truncated_normal(key, (1000,), -1.0, 0.5, 3.0, 2.0, dtype=DOUBLE)
    assert_close(scaled, 3.0 + 2.0 * z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 2.0), (-0.1, 0.1), (7.0, 7.0)])
def test_uniform_never_reaches_high(dtype, low, high):
    bounds = tensor([low, high], dtype=dtype)
    by_float = rng.uniform(rng.key(6), (20_000,), low, high, dtype=dtype)
    by_tensor = rng.uniform(rng.key(6), (20_000,), *bounds, dtype=dtype)
    for drawn in (by_float, by_tensor):
        assert drawn.dtype == dtype
        assert bounds[0] <= drawn.min()
        assert drawn.max() < bounds[1] or low == high
    if dtype in (torch.float32, DOUBLE):  # 16-bit floats compute the bounds' difference apart
        assert_close(by_float, by_tensor)


def test_bernoulli_has_its_probability_and_its_certainties():
    p = tensor([0.0, 0.03, 0.5, 1.0])
    mean = rng.bernoulli(rng.key(7), p, (N, 4)).double().mean(0)
    assert mean[0] == 0 and mean[3] == 1
    for i in (1, 2):
        within(mean[i], p[i], math.sqrt(p[i] * (1 - p[i]) / N))


def test_categorical_has_its_probabilities():
    logits = tensor([0.3, -1.0, -torch.inf, 2.0, 0.0])
    counts = torch.bincount(rng.categorical(rng.key(8), logits, (N,)), minlength=5)
    expected = N * logits.softmax(0)
    assert counts[2] == 0
    chi2 = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    within(chi2, 3, math.sqrt(2 * 3))


@pytest.mark.parametrize("wanted", [0, 2, 4])
def test_categorical_never_draws_probability_zero(wanted):
    for other in (-torch.inf, -1e4):  # the other one underflows
        logits = torch.full((5,), other)
        logits[wanted] = 0.1
        assert (rng.categorical(rng.key(9), logits, (20_000,)) == wanted).all()


@pytest.mark.parametrize(("low", "high"), [(0, 7), (-5, 5), (0, 3 * 2**30), (2**40, 2**40 + 2)])
def test_randint_is_uniform(low, high):
    drawn = rng.randint(rng.key(10), (N,), low, high)
    assert low <= drawn.min() and drawn.max() < high
    size = high - low
    within((drawn - low).double().mean(), (size - 1) / 2, math.sqrt((size**2 - 1) / 12 / N))
    if size < 100:
        chi2 = ((torch.bincount(drawn - low) - N / size) ** 2 / (N / size)).sum()
        within(chi2, size - 1, math.sqrt(2 * (size - 1)))
    else:  # a remainder of 32 bits by 3 * 2^30 would draw the lowest third twice as often
        within((drawn - low < size / 3).double().mean(), 1 / 3, math.sqrt(2 / 9 / N))


def test_randint_takes_bounds_by_element():
    high = tensor([1, 2, 1000])
    drawn = rng.randint(rng.key(11), (50, 3), tensor([[0]]), high)
    assert (drawn[:, 0] == 0).all()
    assert drawn[:, 1].unique().tolist() == [0, 1]
    assert torch.equal(drawn[:, 2], rng.randint(rng.key(11), (50, 3), 0, 1000)[:, 2])


def test_permutations_are_uniform():
    drawn = rng.permutation(rng.split(rng.key(12), 12_000), 4)
    assert torch.equal(drawn.sort(-1).values, torch.arange(4).expand(12_000, 4))
    code = (drawn * tensor([64, 16, 4, 1])).sum(-1)
    counts = code.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    within(((counts - 500) ** 2 / 500).sum(), 23, math.sqrt(2 * 23))


def test_streams_are_independent():
    key, draws = rng.key(13), 20_000
    names = [rng.fold_in(key, name) for name in ("weight", "bias", "weight_ih", "weight_hh")]
    seeds = [rng.key(seed) for seed in (0, 1, 2, 3, -1)]
    children = rng.split(key, 16)
    keys = torch.stack([key, *names, *seeds, *children, *rng.split(children[0], 8)])
    streams = rng.uniform(keys, (len(keys), draws), dtype=DOUBLE)
    # each stream against every other, and against itself and the others a step later
    for left, right in ((streams, streams), (streams[:, 1:], streams[:, :-1])):
        left, right = (x - x.mean(1, keepdim=True) for x in (left, right))
        correlation = left @ right.mT / (left.norm(dim=1)[:, None] * right.norm(dim=1))
        if left.shape[1] == draws:
            correlation = correlation - torch.eye(len(keys))
        assert correlation.abs().max() < 5 / math.sqrt(draws)
        within(correlation.square().mean() * draws, 1, math.sqrt(2 / len(keys) ** 2), 6)


# ---- derivatives


def test_parameters_get_their_derivatives():
    key = rng.key(14)

    def draw(low, high, mean, std):
        return (
            rng.uniform(key, (3, 2), low, high, dtype=DOUBLE),
            rng.normal(key, (3, 2), mean, std, dtype=DOUBLE),
            rng.truncated_normal(key, (3, 2), low, high, mean, std, dtype=DOUBLE),
            rng.truncated_normal(key, (3, 2), low + 4, high + 5, mean, std, dtype=DOUBLE),
        )

    values = (tensor(-0.7), tensor([1.0, 2.0]), tensor([[0.1], [0.2], [0.3]]), tensor([0.5, 2.0]))
    values = tuple(value.double().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(draw, values)
    assert torch.autograd.gradgradcheck(draw, values)


def test_parameters_get_their_derivatives_under_transforms():
    def loss(std, key):
        return rng.normal(key, (4,), 1.0, std, dtype=DOUBLE).square().sum()

    keys, std = rng.split(rng.key(15), 3), tensor(2.0, dtype=DOUBLE)
    z = rng.normal(keys, (3, 4), dtype=DOUBLE)
    expected = (2 * (1 + std * z) * z).sum(1)
    mapped = torch.vmap(torch.func.grad(loss), (None, 0))
    assert_close(mapped(std, keys), expected)
    assert_close(compiled(mapped)(std, keys), expected)


# ---- refusals

KEY = torch.zeros(2, dtype=torch.int64)

REFUSED = [
    (lambda: rng.uniform(KEY, 3), TypeError, "uniform: shape is 3"),
    (lambda: rng.uniform(KEY, (-3,)), ValueError, r"uniform: shape is \(-3,\)"),
    (
        lambda: rng.normal(KEY.expand(3, 2), (4,)),
        ValueError,
        r"normal: shape is \(4,\), expected it to start with \(3,\)",
    ),
    (lambda: rng.normal(KEY.expand(3, 2), ()), ValueError, r"normal: shape is \(\)"),
    (lambda: rng.uniform(KEY, (2,), 1.0, 0.0), ValueError, "uniform: low is 1.0"),
    (lambda: rng.uniform(KEY, (2,), math.nan, 0.0), ValueError, "uniform: low is nan"),
    (lambda: rng.uniform(KEY, (2,), "a"), TypeError, "uniform: low is a str"),
    (
        lambda: rng.uniform(KEY, (2,), torch.zeros(3)),
        ValueError,
        r"uniform: low has shape \(3,\), expected one that broadcasts to \(2,\)",
    ),
    (lambda: rng.uniform(KEY, (2,), dtype=torch.int64), TypeError, "uniform: dtype is torch.int64"),
    (lambda: rng.normal(KEY, (2,), std=-1.0), ValueError, "normal: std is -1.0"),
    (lambda: rng.truncated_normal(KEY, (2,), 1.0, 1.0), ValueError, "truncated_normal: low is 1.0"),
    (lambda: rng.bernoulli(KEY, 1.5), ValueError, "bernoulli: p is 1.5"),
    (lambda: rng.bernoulli(KEY, tensor([0.5, -0.1])), ValueError, "bernoulli: p holds a value"),
    (lambda: rng.categorical(KEY, [0.0]), TypeError, "categorical: logits is list"),
    (lambda: rng.categorical(KEY, KEY), TypeError, "categorical: logits is torch.int64"),
    (lambda: rng.categorical(KEY, torch.zeros(2, 0)), ValueError, r"logits has shape \(2, 0\)"),
    (
        lambda: rng.categorical(KEY, torch.full((2,), -torch.inf)),
        ValueError,
        "categorical: logits has a row",
    ),
    (
        lambda: rng.categorical(KEY, torch.zeros(3, 2), (4,)),
        ValueError,
        r"categorical: logits .* has shape \(3,\)",
    ),
    (lambda: rng.randint(KEY, (2,), 3, 3), ValueError, "randint: high - low is 0"),
    (lambda: rng.randint(KEY, (2,), 0, 2**33), ValueError, "randint: high - low is 8589934592"),
    (lambda: rng.randint(KEY, (2,), 0, tensor([1, 0])), ValueError, "randint: high - low holds"),
    (lambda: rng.randint(KEY, (2,), 0.0, 3), TypeError, "randint: low is float"),
    (lambda: rng.permutation(KEY, -1), ValueError, "permutation: n is -1"),
    (lambda: rng.permutation(KEY, 3.0), TypeError, "permutation: n is a float"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
