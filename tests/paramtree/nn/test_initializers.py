import math

import pytest
import torch
from torch import tensor
from torch.func import grad, vmap
from torch.testing import assert_close

from paramtree import rng
from paramtree.nn import (
    constant,
    identity,
    normal,
    orthogonal,
    truncated_normal,
    uniform,
    variance_scaling,
    zeros,
)

DOUBLE = torch.float64
KEY = rng.key(0)
SHAPE = (40, 60, 5)  # fan_in 300, fan_out 200

MAKERS = {
    "zeros": zeros,
    "constant": constant(2.5),
    "uniform": uniform(0.3),
    "normal": normal(0.7),
    "truncated_normal": truncated_normal(0.7),
    "variance_scaling": variance_scaling(),
    "variance_scaling_uniform": variance_scaling(2.0, "fan_avg", "uniform"),
    "orthogonal": orthogonal(1.5),
}


def spread(drawn, std):
    """Whether a sample has mean 0 and this std, within 5 standard errors of a normal's."""
    assert abs(drawn.mean()) < 5 * std / math.sqrt(drawn.numel())
    assert_close(drawn.std().item(), std, rtol=5 / math.sqrt(2 * drawn.numel()), atol=0)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16], ids=str)
def test_shape_dtype_and_stacks(name, dtype):
    init, keys = MAKERS[name], rng.split(rng.key(1), 3)
    loop = torch.stack([init(key, (4, 6), dtype) for key in keys])
    assert loop.shape == (3, 4, 6) and loop.dtype == dtype
    mapped = vmap(lambda key: init(key, (4, 6), dtype))(keys)
    assert_close(mapped, loop)
    assert init(keys[0], (4, 6)).dtype == torch.float32
    assert init(rng.key(0, "meta"), (4, 6), dtype).device.type == "meta"


def test_compiled_equals_eager():
    def fn(key):
        return [init(key, (3, 4), DOUBLE) for init in MAKERS.values()]

    torch.compiler.reset()
    assert_close(torch.compile(fn, fullgraph=True, backend="aot_eager")(KEY), fn(KEY))


def test_simple_distributions():
    drawn = uniform(0.3)(KEY, SHAPE)
    assert 0.299 < drawn.abs().max() <= 0.3
    spread(drawn, 0.3 / math.sqrt(3))
    spread(normal(0.7)(KEY, SHAPE), 0.7)
    drawn = truncated_normal(0.7)(KEY, SHAPE)
    assert 1.39 < drawn.abs().max() <= 1.4
    spread(drawn, 0.7 * 0.879625661)  # sqrt(1 - 4 phi(2) / (2 Phi(2) - 1))
    assert (constant(2.5)(KEY, SHAPE) == 2.5).all() and not zeros(KEY, SHAPE).any()


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 300), ("fan_out", 200), ("fan_avg", 250)])
@pytest.mark.parametrize("distribution", ["uniform", "normal", "truncated_normal"])
def test_variance_scaling_has_its_variance(mode, fan, distribution):
    drawn = variance_scaling(2.0, mode, distribution)(KEY, SHAPE)
    std = math.sqrt(2.0 / fan)
    spread(drawn, std)
    bound = {"uniform": math.sqrt(3) * std, "truncated_normal": 2 * std / 0.879625661}
    if distribution in bound:
        assert 0.99 * bound[distribution] < drawn.abs().max() <= bound[distribution]


def test_variance_scaling_of_a_matrix_reads_torchs_layout():
    assert_close(variance_scaling()(KEY, (2, 5000)).var().item(), 1 / 5000, rtol=0.1, atol=0)
    assert_close(
        variance_scaling(1.0, "fan_out")(KEY, (2, 5000)).var().item(), 1 / 2, rtol=0.1, atol=0
    )


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6), (3, 2, 4), (1, 1)], ids=str)
def test_orthogonal_is_orthogonal(shape):
    matrix = orthogonal(1.5)(KEY, shape, DOUBLE).reshape(shape[0], -1)
    small = matrix @ matrix.mT if shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    assert_close(small, 1.5**2 * torch.eye(len(small), dtype=DOUBLE))


def test_orthogonal_is_uniform():
    drawn = vmap(lambda key: orthogonal()(key, (3, 3), DOUBLE))(rng.split(KEY, 4000))
    # Haar measure: entries have mean 0 and variance 1/3, and the determinant is +1 or -1 alike
    errors = drawn.mean(0).abs() * math.sqrt(4000 * 3)
    assert errors.max() < 5
    assert abs(drawn.square().mean(0) - 1 / 3).max() < 5 * math.sqrt(0.2 / 4000)
    assert abs(torch.linalg.det(drawn).mean()) < 5 / math.sqrt(4000)
    assert abs(drawn[:, 0, 0].sign().mean()) < 5 / math.sqrt(4000)


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4)], ids=str)
def test_identity_of_a_matrix_is_torchs(shape):
    assert torch.equal(identity(2.5)(KEY, shape, DOUBLE), 2.5 * torch.eye(*shape, dtype=DOUBLE))


@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 2, 5, 1), (2, 4, 3, 5, 7)], ids=str)
def test_identity_of_an_odd_kernel_is_torchs_dirac(shape):
    expected = torch.nn.init.dirac_(torch.empty(shape, dtype=DOUBLE))
    assert torch.equal(identity()(KEY, shape, DOUBLE), expected)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_identity_leaves_what_is_convolved(kernel):
    x = rng.normal(KEY, (2, 3, 6), dtype=DOUBLE)
    weight = identity()(KEY, (3, 3, kernel), DOUBLE)
    before = (kernel - 1) // 2
    padded = torch.nn.functional.pad(x, (before, kernel - 1 - before))
    assert torch.equal(torch.nn.functional.conv1d(padded, weight), x)


TORCHS = [  # torch.nn.init's functions, and what variance_scaling calls them
    (lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="relu"), 2.0, "fan_in", "uniform"),
    (lambda w: torch.nn.init.kaiming_normal_(w, mode="fan_out"), 2.0, "fan_out", "normal"),
    (lambda w: torch.nn.init.xavier_uniform_(w, gain=1.5), 1.5**2, "fan_avg", "uniform"),
    (lambda w: torch.nn.init.xavier_normal_(w), 1.0, "fan_avg", "normal"),
]


@pytest.mark.parametrize("case", range(len(TORCHS)))
def test_variance_scaling_is_torchs_kaiming_and_xavier(case):
    fill, *options = TORCHS[case]
    torch.manual_seed(0)
    theirs = fill(torch.empty(40, 60, 3, 5))
    ours = variance_scaling(*options)(KEY, (40, 60, 3, 5))
    assert_close(ours.std(), theirs.std(), rtol=0.02, atol=0)
    if options[-1] == "uniform":
        assert_close(ours.abs().max(), theirs.abs().max(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "maker", [constant, identity, uniform, normal, truncated_normal, variance_scaling, orthogonal]
)
def test_scales_may_be_tensors_with_a_gradient(maker):
    def total(scale):
        return (maker(scale)(KEY, (3, 4), DOUBLE) * torch.arange(12.0).view(3, 4)).sum()

    scale, h = tensor(0.8, dtype=DOUBLE), 1e-6
    assert_close(total(scale), total(0.8), rtol=1e-12, atol=1e-12)
    central = (total(0.8 + h) - total(0.8 - h)) / (2 * h)
    assert_close(grad(total)(scale), central, rtol=1e-6, atol=1e-8)


REFUSED = [
    (lambda: variance_scaling(mode="fan"), "variance_scaling: mode is 'fan'"),
    (lambda: variance_scaling(distribution="cauchy"), "distribution is 'cauchy'"),
    (lambda: variance_scaling()(KEY, (3,)), r"variance_scaling: shape is \(3,\)"),
    (lambda: identity()(KEY, (3,)), r"identity: shape is \(3,\)"),
    (lambda: orthogonal()(KEY, (3,)), r"orthogonal: shape is \(3,\)"),
    (lambda: normal(-1.0)(KEY, (3,)), "normal: std is -1.0"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[row[1] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
