import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from paramtree import nn, rng, tree
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_compiled,
    check_derivatives,
    check_kinds,
    check_module,
    check_vmapped,
    close,
    draw,
    of_module,
)
from tests.paramtree.nn.flax_cases import CASES

CONV = {1: nn.conv1d, 2: nn.conv2d, 3: nn.conv3d}
TORCH = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}
SIZE = (7, 6, 5)
EVEN = "ignore:Using padding='same' with even kernel lengths"  # torch's own

GRID = [
    (n, kernel, stride, padding, dilation, groups, bias, mode)
    for n in (1, 2, 3)
    for kernel, stride, padding, dilation, groups, bias, mode in itertools.product(
        (3, (2, 3, 1)[:n]),
        (1, (2, 1, 3)[:n]),
        (0, (1, 2, 0)[:n], "same", "valid"),
        (1, 2),
        (1, 2),
        (True, False),
        ("zeros", "reflect", "replicate", "circular"),
    )
    if not (padding == "same" and stride != 1)
]


@pytest.mark.filterwarnings(EVEN)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_grid_of_options_equals_torch(n):
    x = draw(3, 4, *SIZE[:n])
    rows = [row[1:] for row in GRID if row[0] == n]
    assert len(rows) == 448
    for row in rows:
        torch.manual_seed(0)
        module = TORCH[n](4, 6, *row, dtype=DOUBLE)
        params, buffers = of_module(module)
        close(CONV[n](4, 6, *row).apply(params, buffers, x)[0], module(x))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_gradients_equal_torch(n, mode):
    options = (3, 2, 1, 1, 2, True, mode)
    module = TORCH[n](4, 6, *options, dtype=DOUBLE)
    check_module(CONV[n](4, 6, *options), module, draw(3, 4, *SIZE[:n]))


LAYERS = {
    "conv1d": (nn.conv1d(2, 3, 3, 2, 1, dtype=DOUBLE), draw(2, 2, 6)),
    "conv1d causal": (nn.conv1d(2, 2, 2, 1, [(2, 0)], 2, dtype=DOUBLE), draw(2, 2, 4)),
    "conv2d": (nn.conv2d(2, 4, (2, 3), 1, (0, 1), groups=2, dtype=DOUBLE), draw(2, 2, 3, 4)),
    "conv2d same": (nn.conv2d(2, 2, 3, 2, "same", bias=False, dtype=DOUBLE), draw(2, 2, 4, 3)),
    "conv3d": (nn.conv3d(1, 2, 2, dtype=DOUBLE), draw(2, 1, 3, 2, 3)),
    "depthwise": (nn.depthwise_conv2d(2, 2, 2, dtype=DOUBLE), draw(2, 2, 3, 3)),
    "separable": (nn.separable_conv1d(2, 3, 2, 2, dtype=DOUBLE), draw(2, 2, 4)),
    **{
        f"{mode}{n}d": (
            CONV[n](1, 2, 2, padding=1, padding_mode=mode, dtype=DOUBLE),
            draw(2, 1, *(3, 2, 2)[:n]),
        )
        for mode in ("reflect", "replicate", "circular")
        for n in (1, 2, 3)
    },
}


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name):
    check_derivatives(*LAYERS[name], fast=name[-2:] in ("2d", "3d"))


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_parameters_under_vmap_equal_a_loop(name):
    check_vmapped(*LAYERS[name])


def test_many_channels_under_vmap_equal_a_loop():
    check_vmapped(nn.conv2d(17, 3, 2, dtype=DOUBLE), draw(2, 17, 3, 3))


@pytest.mark.parametrize("name", ["conv1d causal", "conv2d", "conv2d same", "circular2d"])
def test_compiled_equals_eager(name):
    check_compiled(*LAYERS[name])


@pytest.mark.parametrize("name", ["conv2d", "circular2d"])
def test_dtypes_and_devices(name):
    make = {
        "conv2d": lambda dtype: nn.conv2d(2, 4, (2, 3), 1, (0, 1), groups=2, dtype=dtype),
        "circular2d": lambda d: nn.conv2d(2, 2, 2, padding=1, padding_mode="circular", dtype=d),
    }[name]
    check_kinds(make, draw(2, 2, 3, 4))


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (2, 0)], ids=str)
def test_any_leading_axes(batch):
    layer = nn.conv2d(2, 3, 2, padding=1, dtype=DOUBLE)
    params, buffers = layer.init(rng.key(0))
    x = draw(*batch, 2, 4, 3)
    out, after = layer.apply(params, buffers, x)
    assert out.shape == (*batch, 3, 5, 4) and after is buffers
    flat = x.reshape(math.prod(batch), 2, 4, 3)
    rows = [layer.apply(params, buffers, row)[0] for row in flat]
    close(out.reshape(-1, 3, 5, 4), torch.stack(rows) if rows else out.reshape(0, 3, 5, 4))


def test_padding_in_pairs_is_padding_before():
    x = draw(2, 3, 5, 4)
    layer = nn.conv2d(3, 2, 2, padding=[(2, 0), (0, 1)], dtype=DOUBLE)
    params, buffers = layer.init(rng.key(0))
    expected = torch.nn.functional.conv2d(
        torch.nn.functional.pad(x, (0, 1, 2, 0)), params["weight"], params["bias"]
    )
    close(layer.apply(params, buffers, x)[0], expected)


def test_a_causal_convolution_sees_no_future():
    layer = nn.conv1d(1, 1, 3, padding=[(4, 0)], dilation=2, dtype=DOUBLE)
    params, buffers = layer.init(rng.key(0))
    slope = torch.autograd.functional.jacobian(
        lambda x: layer.apply(params, buffers, x)[0], draw(1, 6)
    )[0, :, 0]
    assert (slope.triu(1) == 0).all() and (slope.diagonal() != 0).all()


@pytest.mark.parametrize("case", CASES["conv"])
def test_same_padding_with_strides_equals_flax(case):
    stride, dilation = (tuple(case[f"in/{n}"].tolist()) for n in ("stride", "dilation"))
    weight = case["in/kernel"].permute(3, 2, 0, 1).contiguous()
    layer = nn.conv2d(2, 3, tuple(weight.shape[2:]), stride, "same", dilation)
    leaves = [weight, case["in/bias"], case["in/x"].movedim(-1, 1)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    params = tree.new({"weight": leaves[0], "bias": leaves[1]})
    out = layer.apply(params, EMPTY, leaves[2])[0]
    close(out.movedim(1, -1), case["out"])
    w, b, x = torch.autograd.grad((out.movedim(1, -1) * case["w"]).sum(), leaves)
    close(w.permute(2, 3, 1, 0), case["grad/kernel"])
    close(b, case["grad/bias"])
    close(x.movedim(1, -1), case["grad/x"])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_depthwise_equals_torch_with_groups(n):
    layer = {1: nn.depthwise_conv1d, 2: nn.depthwise_conv2d, 3: nn.depthwise_conv3d}[n]
    module = TORCH[n](3, 6, 2, 2, 1, groups=3, dtype=DOUBLE)
    check_module(layer(3, 2, 2, 2, 1), module, draw(2, 3, *SIZE[:n]))


@pytest.mark.parametrize("n", [1, 2])
def test_separable_equals_two_modules(n):
    layer = {1: nn.separable_conv1d, 2: nn.separable_conv2d}[n]
    depthwise = TORCH[n](3, 6, 2, 2, 1, 2, groups=3, bias=False, dtype=DOUBLE)
    pointwise = TORCH[n](6, 4, 1, dtype=DOUBLE)
    params = tree.new({"depthwise": of_module(depthwise)[0], "pointwise": of_module(pointwise)[0]})
    x = draw(2, 3, *SIZE[:n])
    made = layer(3, 4, 2, 2, 2, 1, 2, dtype=DOUBLE)
    close(made.apply(params, EMPTY, x)[0], pointwise(depthwise(x)))
    ours, _ = made.init(rng.key(0))
    assert tree.paths(ours) == tree.paths(params)
    bare, _ = layer(3, 4, 2, bias=False).init(rng.key(0))
    assert tree.paths(bare) == [("depthwise", "weight"), ("pointwise", "weight")]


def test_starts_as_torch_does():
    params, buffers = nn.conv2d(20, 64, 5, groups=4).init(rng.key(0))
    assert params.is_locked and buffers.is_empty()
    bound = (5 * 25) ** -0.5
    for leaf in (params["weight"], params["bias"]):
        assert leaf.dtype == torch.float32
        assert 0.95 * bound < leaf.abs().max() < bound
        assert abs(leaf.mean()) < 5 * bound / math.sqrt(3 * leaf.numel())


def test_initializers_are_given():
    layer = nn.conv2d(
        3, 5, 3, 1, "same", weight_init=nn.identity(2.0), bias_init=nn.constant(0.5), dtype=DOUBLE
    )
    params, buffers = layer.init(rng.key(0))
    x = draw(2, 3, 4, 4)
    out = layer.apply(params, buffers, x)[0]
    close(out[:, :3], 2 * x + 0.5)
    close(out[:, 3:], torch.full_like(out[:, 3:], 0.5))


def test_under_autocast():
    layer = nn.conv2d(2, 3, 2)
    params, buffers = layer.init(rng.key(0))
    x = draw(2, 2, 4, 4).float()
    with torch.autocast("cpu"):
        out = layer.apply(params, buffers, x)[0]
        again = layer.apply(params, buffers, x.bfloat16())[0]
    assert out.dtype == again.dtype == torch.bfloat16
    assert_close(out.float(), layer.apply(params, buffers, x)[0], rtol=0.05, atol=0.05)


# ---- refusals


def applied(layer, x):
    return lambda: layer.apply(layer.init(rng.key(0))[0], EMPTY, x)


LAYER = nn.conv2d(3, 4, 3)
REFLECT = nn.conv2d(3, 4, 3, padding=2, padding_mode="reflect")
ROUND = nn.conv1d(3, 4, 3, padding=3, padding_mode="circular")

REFUSED = [
    (lambda: nn.conv2d(0, 3, 2), ValueError, "conv2d: n_in is 0"),
    (lambda: nn.conv2d(3, 2, 2.0), TypeError, "conv2d: kernel_size holds a float"),
    (lambda: nn.conv2d(3, 2, 0), ValueError, "conv2d: kernel_size is 0, expected at least 1"),
    (lambda: nn.conv3d(3, 2, (2, 2)), ValueError, r"kernel_size is \(2, 2\), expected.*3 of them"),
    (lambda: nn.conv2d(3, 2, 2, stride=0), ValueError, "stride is 0"),
    (lambda: nn.conv2d(3, 2, 2, dilation=True), TypeError, "dilation holds a bool"),
    (lambda: nn.conv2d(3, 4, 2, groups=2), ValueError, "n_in is 3, expected a multiple of groups"),
    (lambda: nn.conv2d(4, 3, 2, groups=2), ValueError, "n_out is 3, expected a multiple of gr"),
    (lambda: nn.conv2d(3, 2, 2, padding="full"), ValueError, "padding is 'full', expected"),
    (lambda: nn.conv2d(3, 2, 2, padding=(1, 2, 3)), ValueError, r"padding is \(1, 2, 3\)"),
    (lambda: nn.conv2d(3, 2, 2, padding=((1, 2, 3), 0)), ValueError, r"padding\[0\] is \(1, 2, 3"),
    (lambda: nn.conv2d(3, 2, 2, padding=-1), ValueError, r"padding\[0\] is -1"),
    (lambda: nn.conv2d(3, 2, 2, padding_mode="constant"), ValueError, "padding_mode is 'constant'"),
    (lambda: nn.conv2d(3, 2, 2, weight_init=1), TypeError, "weight_init is a int"),
    (lambda: nn.depthwise_conv2d(3, 2, 0), ValueError, "depthwise_conv2d: multiplier is 0"),
    (lambda: nn.separable_conv2d(3, 0, 2), ValueError, "separable_conv2d: n_out is 0"),
    (applied(LAYER, [1.0]), TypeError, r"x is a list, expected a tensor \[\*batch, 3, H, W\]"),
    (applied(LAYER, torch.zeros(3, 5)), ValueError, r"x has shape \(3, 5\), expected \[\*batch, 3"),
    (
        applied(LAYER, torch.zeros(2, 4, 5, 5)),
        ValueError,
        r"conv2d: x has shape \(2, 4, 5, 5\).*conv2d\(3, 4, 3\), whose weight has.*\(4, 3, 3, 3\)",
    ),
    (applied(LAYER, torch.zeros(3, 5, 5).double()), TypeError, "x has dtype torch.float64"),
    (applied(LAYER, torch.zeros(3, 5, 2)), ValueError, r"dim -1 with padding \(0, 0\) is 2.*3"),
    (applied(REFLECT, torch.zeros(3, 5, 2)), ValueError, "x has size 2 in dim -1, expected.*3"),
    (applied(ROUND, torch.zeros(3, 2)), ValueError, "x has size 2 in dim -1, expected at least 3"),
    (
        applied(nn.separable_conv2d(3, 4, 2), torch.zeros(2, 5, 5)),
        ValueError,
        r"separable_conv2d\(3, 4, 2, 1\).*; in depthwise",
    ),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_wrong_use_is_refused(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()
