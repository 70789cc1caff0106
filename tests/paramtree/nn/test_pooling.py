import itertools

import pytest
import torch
from torch.testing import assert_close

from paramtree import nn, rng
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    NEAR,
    check_compiled,
    check_derivatives,
    check_kinds,
    check_vmapped,
    close,
    draw,
)
from tests.paramtree.nn.flax_cases import CASES

MAX = {1: nn.max_pool1d, 2: nn.max_pool2d, 3: nn.max_pool3d}
AVG = {1: nn.avg_pool1d, 2: nn.avg_pool2d, 3: nn.avg_pool3d}
SIZE = (7, 6, 8)


def same_as(module, ours, x):
    """Values and gradients."""
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = ours(a), module(b)
    close(out, expected)
    weights = draw(*out.shape, seed=9)
    (out.sin() * weights).sum().backward()
    (expected.sin() * weights).sum().backward()
    close(a.grad, b.grad)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_max_pools_equal_torch(n):
    make = {1: torch.nn.MaxPool1d, 2: torch.nn.MaxPool2d, 3: torch.nn.MaxPool3d}[n]
    for kernel, stride, padding, dilation, ceil in itertools.product(
        (2, (3, 2, 3)[:n]), (None, 1, (2, 3, 1)[:n]), (0, 1), (1, 2), (False, True)
    ):
        options = {"padding": padding, "dilation": dilation, "ceil_mode": ceil}
        module = make(kernel, stride, **options)
        same_as(module, MAX[n](kernel, stride, **options), draw(2, 3, *SIZE[:n]))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_avg_pools_equal_torch(n):
    make = {1: torch.nn.AvgPool1d, 2: torch.nn.AvgPool2d, 3: torch.nn.AvgPool3d}[n]
    for kernel, stride, padding, ceil, count in itertools.product(
        (2, (3, 2, 3)[:n]), (None, 1, (2, 3, 1)[:n]), (0, 1), (False, True), (False, True)
    ):
        options = {"padding": padding, "ceil_mode": ceil, "count_include_pad": count}
        module = make(kernel, stride, **options)
        same_as(module, AVG[n](kernel, stride, **options), draw(2, 3, *SIZE[:n]))


ADAPTIVE = [
    (nn.adaptive_max_pool1d, torch.nn.AdaptiveMaxPool1d, 1, [1, 3, 7, 9]),
    (nn.adaptive_max_pool2d, torch.nn.AdaptiveMaxPool2d, 2, [1, (3, 5), (None, 4)]),
    (nn.adaptive_max_pool3d, torch.nn.AdaptiveMaxPool3d, 3, [1, (3, 5, 9), (None, 4, None)]),
    (nn.adaptive_avg_pool1d, torch.nn.AdaptiveAvgPool1d, 1, [1, 3, 7, 9]),
    (nn.adaptive_avg_pool2d, torch.nn.AdaptiveAvgPool2d, 2, [1, (3, 5), (None, 4)]),
    (nn.adaptive_avg_pool3d, torch.nn.AdaptiveAvgPool3d, 3, [1, (3, 5, 9), (None, 4, None)]),
]


@pytest.mark.parametrize("row", ADAPTIVE, ids=lambda row: row[0].__name__)
def test_adaptive_pools_equal_torch(row):
    ours, module, n, sizes = row
    for size in sizes:
        same_as(module(size), ours(size), draw(2, 3, *SIZE[:n]))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_global_pools_are_reductions(n):
    x = draw(2, 3, *SIZE[:n])
    flat = x.flatten(2)
    same_as(lambda x: x.flatten(2).mean(-1), nn.global_avg_pool(n), x)
    same_as(lambda x: x.flatten(2).max(-1).values, nn.global_max_pool(n), x)
    assert nn.global_max_pool(n)(flat[0, 0].view(SIZE[:n])).shape == ()


@pytest.mark.parametrize("name", ["max_pool", "avg_pool", "avg_pool_alone"])
@pytest.mark.parametrize("number", range(3))
def test_same_padding_equals_flax(name, number):
    case = CASES[name][number]
    window, stride = (tuple(case[f"in/{n}"].tolist()) for n in ("window", "stride"))
    pool = {
        "max_pool": nn.max_pool2d(window, stride, "same"),
        "avg_pool": nn.avg_pool2d(window, stride, "same"),
        "avg_pool_alone": nn.avg_pool2d(window, stride, "same", count_include_pad=False),
    }[name]
    x = case["in/x"].movedim(-1, 1).requires_grad_()
    out = pool(x).movedim(1, -1)
    close(out, case["out"])
    (slope,) = torch.autograd.grad((out * case["w"]).sum(), x)
    close(slope.movedim(1, -1), case["grad/x"])


@pytest.mark.parametrize("pairs", [[(2, 0)], [(1, 2)], [(0, 2)]], ids=str)
def test_padding_in_pairs(pairs):
    x, (before, after) = draw(2, 3, 6), pairs[0]
    ends = [torch.full((2, 3, n), float("-inf"), dtype=DOUBLE) for n in (before, after)]
    padded = torch.cat([ends[0], x, ends[1]], -1)
    windows = padded.unfold(-1, 3, 2)
    close(nn.max_pool1d(3, 2, pairs)(x), windows.amax(-1))
    finite = torch.where(windows.isinf(), 0.0, windows)
    close(nn.avg_pool1d(3, 2, pairs)(x), finite.mean(-1))
    alone = finite.sum(-1) / (~windows.isinf()).sum(-1)
    close(nn.avg_pool1d(3, 2, pairs, count_include_pad=False)(x), alone)


POOLS = {
    "max1": (nn.max_pool1d(2, 1, 1), draw(2, 2, 4)),
    "max2": (nn.max_pool2d(2), draw(2, 2, 4, 4)),
    "max2 same": (nn.max_pool2d(3, 2, "same"), draw(2, 2, 4, 4)),
    "max3": (nn.max_pool3d(2, 1, 1, 2), draw(1, 2, 3, 3, 3)),
    "avg1": (nn.avg_pool1d(2, 1, [(1, 0)], count_include_pad=False), draw(2, 2, 4)),
    "avg2": (nn.avg_pool2d(3, 2, 1), draw(2, 2, 4, 4)),
    "avg3": (nn.avg_pool3d(2), draw(1, 2, 2, 4, 2)),
    "adaptive max1": (nn.adaptive_max_pool1d(2), draw(2, 2, 5)),
    "adaptive max2": (nn.adaptive_max_pool2d((2, None)), draw(2, 2, 3, 2)),
    "adaptive max3": (nn.adaptive_max_pool3d(2), draw(1, 2, 3, 3, 2)),
    "adaptive avg1": (nn.adaptive_avg_pool1d(2), draw(2, 2, 5)),
    "adaptive avg2": (nn.adaptive_avg_pool2d((2, None)), draw(2, 2, 3, 2)),
    "adaptive avg3": (nn.adaptive_avg_pool3d(2), draw(1, 2, 3, 3, 2)),
    "global max": (nn.global_max_pool(2), draw(2, 3, 3, 2)),
    "global avg": (nn.global_avg_pool(2), draw(2, 3, 3, 2)),
}


@pytest.mark.parametrize("name", POOLS)
def test_derivatives(name):
    check_derivatives(*POOLS[name])


@pytest.mark.parametrize("name", POOLS)
def test_mapped_inputs_equal_a_loop(name):
    check_vmapped(*POOLS[name])


@pytest.mark.parametrize("name", ["max2 same", "avg1", "adaptive max2", "adaptive avg1"])
def test_compiled_equals_eager(name):
    check_compiled(*POOLS[name])


@pytest.mark.parametrize("name", POOLS)
def test_dtypes_and_devices(name):
    pool, x = POOLS[name]
    near = {torch.float32: 1e-5} if name == "avg3" else NEAR  # torch's kernel for the CPU is none
    check_kinds(lambda dtype: pool, x, near)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3), (2, 0)], ids=str)
@pytest.mark.parametrize("name", ["max2", "max2 same", "avg2", "adaptive max2", "global max"])
def test_any_leading_axes(batch, name):
    pool, _ = POOLS[name]
    x = draw(*batch, 4, 6)
    rows = [pool(row) for row in x.reshape(-1, 4, 6)] if x.numel() else []
    out = pool(x)
    if rows:
        close(out, torch.stack(rows).reshape((*batch, *rows[0].shape)))
    assert out.shape == (*batch, *pool(draw(4, 6)).shape)


def test_pools_are_layers_of_sequential():
    net = nn.sequential(
        nn.conv2d(1, 4, 3, padding="same"), torch.relu, nn.max_pool2d(2), nn.global_avg_pool(2)
    )
    params, buffers = net.init(rng.key(0))
    x = draw(5, 1, 6, 6).float()
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding="same"), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
    )
    module.load_state_dict({f"0.{n}": params["0", n] for n in ("weight", "bias")})
    assert_close(net.apply(params, buffers, x)[0], module(x).mean((-2, -1)))
    assert net.apply(params, EMPTY, x)[1] is EMPTY


# ---- refusals

REFUSED = [
    (lambda: nn.max_pool2d(0), ValueError, "max_pool2d: kernel_size is 0"),
    (lambda: nn.max_pool2d((2, 2, 2)), ValueError, r"kernel_size is \(2, 2, 2\)"),
    (lambda: nn.max_pool1d(2, 1.5), TypeError, "max_pool1d: stride holds a float"),
    (lambda: nn.max_pool3d(2, padding=2), ValueError, "padding is 2, expected less than 2"),
    (lambda: nn.avg_pool2d(2, padding="half"), ValueError, "avg_pool2d: padding is 'half'"),
    (lambda: nn.avg_pool1d(3, 2, [(2, 0)], True), ValueError, "with ceil_mode"),
    (lambda: nn.adaptive_avg_pool2d((2, 3, 4)), ValueError, r"output_size is \(2, 3, 4\)"),
    (lambda: nn.adaptive_max_pool2d((2, 0)), ValueError, "adaptive_max_pool2d: output_size"),
    (lambda: nn.adaptive_max_pool2d(2.0), TypeError, "output_size holds a float"),
    (lambda: nn.global_avg_pool(0), ValueError, "global_avg_pool: spatial is 0"),
    (lambda: nn.max_pool2d(2)([1.0]), TypeError, "max_pool2d: x is list"),
    (lambda: nn.max_pool2d(2)(torch.zeros(4, 4).long()), TypeError, "x is torch.int64"),
    (lambda: nn.max_pool2d(2)(torch.zeros(4)), ValueError, r"x has shape \(4,\), expected at lea"),
    (lambda: nn.avg_pool2d(3)(torch.zeros(4, 2)), ValueError, r"avg_pool2d: .*dim -1 .*at least 3"),
    (lambda: nn.adaptive_avg_pool1d(2)(torch.zeros(3, 0)), ValueError, r"\(3, 0\).*not empty"),
    (lambda: nn.global_max_pool(2)(torch.zeros(3)), ValueError, "global_max_pool: x has shape"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_wrong_use_is_refused(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()
