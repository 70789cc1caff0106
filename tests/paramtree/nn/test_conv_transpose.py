import itertools
import math

import pytest
import torch

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

CONV = {1: nn.conv_transpose1d, 2: nn.conv_transpose2d, 3: nn.conv_transpose3d}
TORCH = {
    1: torch.nn.ConvTranspose1d,
    2: torch.nn.ConvTranspose2d,
    3: torch.nn.ConvTranspose3d,
}
SIZE = (4, 3, 5)


def grid(n):
    for stride, padding, more, groups, bias, dilation, kernel in itertools.product(
        (1, (2, 1, 3)[:n]),
        (0, (1, 2, 0)[:n]),
        (0, (0, 1, 1)[:n], 1),
        (1, 2),
        (True, False),
        (1, 2),
        (3, (4, 5, 1)[:n]),
    ):
        steps = stride if isinstance(stride, tuple) else (stride,) * n
        added = more if isinstance(more, tuple) else (more,) * n
        if all(a < max(s, dilation) for a, s in zip(added, steps, strict=True)):
            yield kernel, stride, padding, more, groups, bias, dilation


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_grid_of_options_equals_torch(n):
    x, rows = draw(3, 4, *SIZE[:n]), list(grid(n))
    assert len(rows) > 100
    for row in rows:
        torch.manual_seed(0)
        module = TORCH[n](4, 6, *row, dtype=DOUBLE)
        params, buffers = of_module(module)
        close(CONV[n](4, 6, *row).apply(params, buffers, x)[0], module(x))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_gradients_equal_torch(n):
    options = (3, 2, 1, 1, 2)
    module = TORCH[n](4, 6, *options, dtype=DOUBLE)
    check_module(CONV[n](4, 6, *options), module, draw(3, 4, *SIZE[:n]))


LAYERS = {
    "1d": (nn.conv_transpose1d(2, 3, 3, 2, 1, 1, dtype=DOUBLE), draw(2, 2, 4)),
    "1d same": (nn.conv_transpose1d(2, 3, 2, 3, "same", dtype=DOUBLE), draw(2, 2, 3)),
    "2d": (nn.conv_transpose2d(2, 4, 2, 2, groups=2, dtype=DOUBLE), draw(2, 2, 3, 2)),
    "2d pairs": (
        nn.conv_transpose2d(2, 1, 3, 2, [(2, 0), (0, 1)], bias=False, dtype=DOUBLE),
        draw(2, 2, 3, 2),
    ),
    "3d": (nn.conv_transpose3d(1, 2, 2, dilation=2, dtype=DOUBLE), draw(2, 1, 2, 1, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name):
    check_derivatives(*LAYERS[name], fast=name != "1d")


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_parameters_under_vmap_equal_a_loop(name):
    check_vmapped(*LAYERS[name])


@pytest.mark.parametrize("name", ["1d same", "2d pairs"])
def test_compiled_equals_eager(name):
    check_compiled(*LAYERS[name])


def test_dtypes_and_devices():
    check_kinds(
        lambda dtype: nn.conv_transpose2d(2, 4, 2, 2, groups=2, dtype=dtype), draw(2, 2, 3, 2)
    )


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("options", [(3, 2, 1, 1), (2, 1, [0, (1, 0), 1], 2)], ids=str)
def test_is_the_transpose_of_a_convolution(n, options):
    """<conv(x), y> = <x, conv_transpose(y)> with one weight, for every size that has an output."""
    kernel, stride, padding, dilation = options
    padding = padding if isinstance(padding, int) else padding[:n]
    forward = {1: nn.conv1d, 2: nn.conv2d, 3: nn.conv3d}[n](
        3, 2, kernel, stride, padding, dilation, bias=False, dtype=DOUBLE
    )
    weight, buffers = forward.init(rng.key(0))
    x = draw(2, 3, *(7, 6, 5)[:n])
    out = forward.apply(weight, buffers, x)[0]
    y = draw(*out.shape, seed=1)
    pairs = padding if isinstance(padding, list) else [padding] * n
    ends = [(p, p) if isinstance(p, int) else p for p in pairs]
    more = tuple(
        (have + sum(end) - (dilation * (kernel - 1) + 1)) % stride
        for have, end in zip(x.shape[2:], ends, strict=True)
    )
    back = CONV[n](2, 3, kernel, stride, padding, more, bias=False, dilation=dilation)
    close((out * y).sum(), (x * back.apply(weight, buffers, y)[0]).sum())


@pytest.mark.parametrize("case", CASES["transposed"])
def test_same_padding_equals_flax(case):
    stride, dilation = (tuple(case[f"in/{n}"].tolist()) for n in ("stride", "dilation"))
    # flax correlates with the kernel as it is, torch with its mirror image
    weight = case["in/kernel"].flip(0, 1).permute(2, 3, 0, 1).contiguous()
    kernel = tuple(weight.shape[2:])
    layer = nn.conv_transpose2d(2, 3, kernel, stride, "same", dilation=dilation)
    leaves = [weight, case["in/bias"], case["in/x"].movedim(-1, 1)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    params = tree.new({"weight": leaves[0], "bias": leaves[1]})
    out = layer.apply(params, EMPTY, leaves[2])[0].movedim(1, -1)
    assert out.shape[1:3] == tuple(
        s * n for s, n in zip(stride, case["in/x"].shape[1:3], strict=True)
    )
    close(out, case["out"])
    w, b, x = torch.autograd.grad((out * case["w"]).sum(), leaves)
    close(w.permute(2, 3, 0, 1).flip(0, 1), case["grad/kernel"])
    close(b, case["grad/bias"])
    close(x.movedim(1, -1), case["grad/x"])


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,)], ids=str)
def test_any_leading_axes(batch):
    layer = nn.conv_transpose2d(2, 3, 2, 2, dtype=DOUBLE)
    params, buffers = layer.init(rng.key(0))
    x = draw(*batch, 2, 4, 3)
    out, after = layer.apply(params, buffers, x)
    assert out.shape == (*batch, 3, 8, 6) and after is buffers
    flat = x.reshape(math.prod(batch), 2, 4, 3)
    rows = [layer.apply(params, buffers, row)[0] for row in flat]
    close(out.reshape(-1, 3, 8, 6), torch.stack(rows) if rows else out.reshape(0, 3, 8, 6))


def test_starts_as_torch_does():
    params, buffers = nn.conv_transpose2d(20, 64, 5, groups=4).init(rng.key(0))
    assert params.is_locked and buffers.is_empty()
    bound = (16 * 25) ** -0.5
    for leaf in (params["weight"], params["bias"]):
        assert leaf.dtype == torch.float32
        assert 0.95 * bound < leaf.abs().max() < bound
        assert abs(leaf.mean()) < 5 * bound / math.sqrt(3 * leaf.numel())
    module = torch.nn.ConvTranspose2d(20, 64, 5, groups=4)
    assert 0.95 * bound < module.weight.abs().max() < bound


# ---- refusals


def applied(layer, x):
    return lambda: layer.apply(layer.init(rng.key(0))[0], EMPTY, x)


LAYER = nn.conv_transpose2d(3, 4, 3)

REFUSED = [
    (lambda: nn.conv_transpose1d(3, 0, 2), ValueError, "conv_transpose1d: n_out is 0"),
    (lambda: nn.conv_transpose2d(3, 2, "3"), TypeError, "kernel_size holds a str"),
    (lambda: nn.conv_transpose2d(3, 4, 2, groups=2), ValueError, "n_in is 3, expected a mul"),
    (lambda: nn.conv_transpose2d(3, 4, 2, 2, 0, 2), ValueError, "output_padding is 2, expected l"),
    (lambda: nn.conv_transpose2d(3, 4, 2, 2, 0, -1), ValueError, "output_padding is -1"),
    (lambda: nn.conv_transpose2d(3, 4, 2, 2, "same", 1), ValueError, "expected 0 with padding"),
    (lambda: nn.conv_transpose2d(3, 4, 2, 2, "reflect"), ValueError, "padding is 'reflect'"),
    (applied(LAYER, torch.zeros(4, 5, 5)), ValueError, r"expected \[\*batch, 3, H, W\] \(from"),
    (applied(LAYER, torch.zeros(3, 5, 5).half()), TypeError, "x has dtype torch.float16"),
    (
        applied(nn.conv_transpose1d(3, 4, 2, padding=2), torch.zeros(2, 3, 3)),
        ValueError,
        r"dim -1 the padding \(2, 2\) leaves 0",
    ),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_wrong_use_is_refused(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()
