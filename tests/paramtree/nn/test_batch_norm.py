import itertools

import pytest
import torch
from torch.testing import assert_close
from torchrl.modules import BatchRenorm1d

import paramtree
from paramtree import grad, nn, rng, tree
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_compiled,
    check_derivatives,
    check_kinds,
    check_vmapped,
    close,
    draw,
    floats,
    moved,
    of_module,
    scalar,
)
from tests.paramtree.nn.flax_cases import CASES

TORCH = {
    0: torch.nn.BatchNorm1d,
    1: torch.nn.BatchNorm1d,
    2: torch.nn.BatchNorm2d,
    3: torch.nn.BatchNorm3d,
}
SIZE = (4, 3, 2)


def stirred(module):
    for i, leaf in enumerate(module.parameters()):
        leaf.data += draw(*leaf.shape, seed=i)
    return module


@pytest.mark.parametrize("spatial", [0, 1, 2, 3])
def test_several_steps_equal_torch(spatial):
    """Outputs, gradients and buffers in training, then the output without."""
    for eps, momentum, affine, tracks in itertools.product(
        (1e-5, 0.1), (0.1, 0.7, None, 0.0, 1.0), (True, False), (True, False)
    ):
        row = (eps, momentum, affine, tracks)
        module = stirred(TORCH[spatial](3, *row, dtype=DOUBLE))
        layer = nn.batch_norm(3, *row, spatial=spatial)
        params, buffers = of_module(module)
        for step in range(4):
            x = (2 + step) * draw(5, 3, *SIZE[:spatial], seed=step) + step
            ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
            module.zero_grad()
            expected = module(theirs)
            out, after = layer.apply(params, buffers, ours)
            close(out, expected)
            scalar(expected).backward()
            scalar(out).backward()
            close(ours.grad, theirs.grad)
            slopes = grad(lambda p, b, x, f=layer.apply: scalar(f(p, b, x)[0]))(params, buffers, x)
            for name, leaf in module.named_parameters():
                close(slopes[name], leaf.grad)
            assert (after is buffers) == (not tracks)
            buffers = paramtree.detach(after)
            for name, leaf in module.named_buffers():
                close(buffers[name], leaf)
            assert tree.paths(buffers) == sorted((n,) for n, _ in module.named_buffers())
        module.eval()
        resting = nn.batch_norm(3, *row, spatial=spatial, train=False)
        x = draw(5, 3, *SIZE[:spatial], seed=9)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, after = resting.apply(params, buffers, ours)
        assert after is buffers
        close(out, module(theirs))
        scalar(module(theirs)).backward()
        scalar(out).backward()
        close(ours.grad, theirs.grad)


@pytest.mark.parametrize("make", [nn.batch_norm, nn.batch_renorm])
def test_training_and_not_have_the_same_names(make):
    one, other = (make(3, train=train).init(rng.key(0)) for train in (True, False))
    for a, b in zip(one, other, strict=True):
        assert tree.paths(a) == tree.paths(b) and a.is_locked
    assert (one[0]["weight"] == 1).all() and (one[0]["bias"] == 0).all()
    assert (one[1]["running_mean"] == 0).all() and (one[1]["running_var"] == 1).all()
    assert one[1]["num_batches_tracked"].dtype == torch.int64
    assert one[1]["num_batches_tracked"].shape == ()


def test_calling_the_model_says_that_buffers_would_be_lost():
    layer = nn.sequential(nn.linear(3, 3), nn.batch_norm(3))
    params, buffers = layer.init(rng.key(0))
    with pytest.raises(ValueError, match=r"updates its buffers \(1.num_batches_tracked.*use apply"):
        layer(params, buffers, draw(4, 3).float())
    still = nn.sequential(nn.linear(3, 3), nn.batch_norm(3, train=False))
    close(
        still(params, buffers, draw(4, 3).float()),
        still.apply(params, buffers, draw(4, 3).float())[0],
    )


@pytest.mark.parametrize("batch", [(4,), (2, 3), (2, 0, 3), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("spatial", [0, 2])
def test_any_leading_axes_are_one_batch(batch, spatial):
    layer = nn.batch_norm(3, spatial=spatial, dtype=DOUBLE)
    params, buffers = moved(layer, rng.key(0))
    x = draw(*batch, 3, *SIZE[:spatial])
    if 0 in batch:
        with pytest.raises(ValueError, match="0 values for each channel"):
            layer.apply(params, buffers, x)
        return
    out, after = layer.apply(params, buffers, x)
    flat, wanted = layer.apply(params, buffers, x.reshape(-1, 3, *SIZE[:spatial]))
    close(out.reshape(flat.shape), flat)
    for a, b in zip(tree.leaves(after), tree.leaves(wanted), strict=True):
        close(a, b)


# ---- masks


@pytest.mark.parametrize("spatial", [0, 1])
def test_what_is_masked_does_not_count(spatial):
    x = draw(4, 5, 3) if not spatial else draw(4, 3, 5)
    mask = rng.bernoulli(rng.key(1), 0.6, (4, 5))
    chosen = (x if not spatial else x.movedim(1, -1))[mask]
    assert 2 < len(chosen) < 20
    module = stirred(torch.nn.BatchNorm1d(3, dtype=DOUBLE))
    params, buffers = of_module(module)
    layer = nn.batch_norm(3, spatial=spatial)
    # what is masked may be anything
    wild = torch.where(mask.unsqueeze(1 if spatial else -1), x, float("inf"))
    for inputs in (x, wild):
        out, after = layer.apply(params, buffers, (inputs, mask))
        module.load_state_dict({**params.to_dict(), **buffers.to_dict()})
        close((out if not spatial else out.movedim(1, -1))[mask], module(chosen))
        for name, leaf in module.named_buffers():
            close(after[name], leaf)
    everything = torch.ones_like(mask)
    masked, plain = (layer.apply(params, buffers, given) for given in ((x, everything), (x, None)))
    for a, b in zip(tree.leaves(masked), tree.leaves(plain), strict=True):
        close(a, b)


def test_gradients_pass_by_what_is_masked():
    layer = nn.batch_norm(2, dtype=DOUBLE)
    params, buffers = moved(layer, rng.key(0))
    x, mask = draw(5, 2), torch.tensor([True, False, True, True, False])
    x[1] = 1e3
    slope = grad(lambda x: scalar(layer.apply(params, buffers, (x, mask))[0][mask]))(x)
    assert (slope[~mask] == 0).all() and slope[mask].isfinite().all() and slope[mask].all()
    chosen = grad(lambda x: scalar(layer.apply(params, buffers, x)[0]))(x[mask])
    close(slope[mask], chosen)


def test_a_batch_of_which_nothing_counts_changes_no_statistics():
    layer = nn.batch_norm(2, dtype=DOUBLE)
    params, buffers = moved(layer, rng.key(0))
    nothing = torch.zeros(4, dtype=torch.bool)
    out, after = layer.apply(params, buffers, (draw(4, 2), nothing))
    assert out.isfinite().all()
    for name in ("running_mean", "running_var"):
        close(after[name], buffers[name])


@pytest.mark.parametrize("number", range(2))
def test_masked_equals_flax(number):
    case = CASES["masked_batch_norm"][number]
    names = ("x", "scale", "bias", "mean", "var")
    leaves = [case[f"in/{name}"].requires_grad_() for name in names]
    x, scale, bias, mean, var = leaves
    params = tree.new({"weight": scale, "bias": bias})
    count = torch.tensor(0)
    state = {"running_mean": mean, "running_var": var, "num_batches_tracked": count}
    layer = nn.batch_norm(2, 1e-3, 0.3)
    out, after = layer.apply(params, tree.new(state), (x, case["in/mask"]))
    close(out, case["out/y"])
    close(after["running_mean"], case["out/mean"])
    n = case["in/mask"].sum()  # flax's running variance is of the biased one
    variance = 0.7 * var + (after["running_var"] - 0.7 * var) * (n - 1) / n
    close(variance, case["out/var"])
    outs = {"y": out, "mean": after["running_mean"], "var": variance}
    slopes = torch.autograd.grad(sum((case[f"w/{k}"] * v).sum() for k, v in outs.items()), leaves)
    for name, slope in zip(names, slopes, strict=True):
        close(slope, case[f"grad/{name}"], rtol=1e-9)


# ---- derivatives

MASK = torch.tensor([True, False, True, True])
TENSORS = [torch.tensor(value, dtype=DOUBLE) for value in (0.1, 0.3, 1.2, 0.2)]

LAYERS = {
    "vectors": (nn.batch_norm(2, dtype=DOUBLE), draw(3, 2)),
    "images": (nn.batch_norm(2, spatial=2, dtype=DOUBLE), draw(2, 2, 2, 2)),
    "cumulative": (nn.batch_norm(2, momentum=None, affine=False), draw(3, 2)),
    "untracked": (nn.batch_norm(2, track_running_stats=False, dtype=DOUBLE), draw(3, 2)),
    "resting": (nn.batch_norm(2, train=False, dtype=DOUBLE), draw(3, 2)),
    "renorm": (nn.batch_renorm(2, warmup_steps=0, dtype=DOUBLE), draw(3, 2)),
    "renorm resting": (nn.batch_renorm(2, train=False, dtype=DOUBLE), draw(3, 2)),
}


@pytest.mark.parametrize("name", [n for n in LAYERS if n != "renorm"])
def test_derivatives_of_outputs_and_buffers(name):
    check_derivatives(*LAYERS[name])


def test_derivatives_with_a_mask():
    layer = nn.batch_norm(2, dtype=DOUBLE)
    check_derivatives(layer, (draw(4, 2), MASK))


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_parameters_under_vmap_equal_a_loop(name):
    check_vmapped(*LAYERS[name])


def test_masks_under_vmap_equal_a_loop():
    layer = nn.batch_norm(2, dtype=DOUBLE)
    masks = torch.stack([MASK, ~MASK | MASK.flip(0), MASK.flip(0)])
    xs = draw(3, 4, 2)
    params, buffers = moved(layer, rng.key(0))
    out, after = paramtree.vmap(layer.apply, (None, None, 0))(params, buffers, (xs, masks))
    for i in range(3):
        single, wanted = layer.apply(params, buffers, (xs[i], masks[i]))
        close(out[i], single)
        for a, b in zip(tree.leaves(after), tree.leaves(wanted), strict=True):
            close(a[i] if a.dim() else a, b)


@pytest.mark.parametrize("name", ["vectors", "cumulative", "renorm"])
def test_compiled_equals_eager(name):
    check_compiled(*LAYERS[name])


@pytest.mark.parametrize("train", [True, False])
def test_eps_and_momentum_may_be_tensors(train):
    """The running statistics of two batches and the output by them, as a function of both."""
    x, y = draw(4, 3, 2), draw(4, 3, 2, seed=1)

    def fn(eps, momentum):
        layers = [nn.batch_norm(3, eps, momentum, spatial=1, train=on) for on in (True, train)]
        params, buffers = moved(nn.batch_norm(3, dtype=DOUBLE), rng.key(0))
        _, buffers = layers[0].apply(params, buffers, x)
        out, buffers = layers[1].apply(params, buffers, y)
        return (out, *floats(buffers))

    inputs = [leaf.clone().requires_grad_() for leaf in TENSORS[:2]]
    for a, b in zip(fn(*inputs), fn(0.1, 0.3), strict=True):
        close(a, b)
    assert torch.autograd.gradcheck(fn, inputs)
    assert torch.autograd.gradgradcheck(fn, inputs)


def test_a_gradient_keeps_no_graph_in_its_buffers():
    net = nn.sequential(nn.linear(2, 2, dtype=DOUBLE), nn.batch_norm(2, dtype=DOUBLE))
    params, buffers = net.init(rng.key(0))

    def loss(params, buffers):
        out, buffers = net.apply(params, buffers, draw(4, 2))
        return scalar(out), buffers

    for _ in range(2):
        _, buffers = grad(loss, has_aux=True)(params, buffers)
        assert not any(leaf.requires_grad for leaf in tree.leaves(buffers))
    assert buffers["1", "num_batches_tracked"] == 2


# ---- dtypes


def test_dtypes_and_devices():
    make = {
        "norm": lambda dtype: nn.batch_norm(4, spatial=2, dtype=dtype),
        "resting": lambda dtype: nn.batch_norm(4, spatial=2, train=False, dtype=dtype),
        "renorm": lambda dtype: nn.batch_renorm(4, spatial=2, warmup_steps=0, dtype=dtype),
    }
    for layer in make.values():
        check_kinds(layer, draw(3, 4, 2, 4))


def test_statistics_of_16_bit_layers_are_32_bit():
    layer = nn.batch_norm(3, dtype=torch.bfloat16)
    params, buffers = layer.init(rng.key(0))
    assert buffers["running_mean"].dtype == buffers["running_var"].dtype == torch.float32
    x = (10 + 0.01 * draw(500, 3)).bfloat16()
    module = torch.nn.BatchNorm1d(3, dtype=DOUBLE)
    for _ in range(3):
        module(x.double())
        _, buffers = layer.apply(params, buffers, x)
    for name, leaf in module.named_buffers():
        assert_close(buffers[name].double(), leaf.double(), rtol=1e-5, atol=1e-6)
    kept = tree.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, buffers)
    assert layer.apply(params, kept, x)[1]["running_var"].dtype == DOUBLE


# ---- batch renorm


@pytest.mark.parametrize("warmup, smooth", [(0, False), (3, False), (4, True)])
def test_renorm_equals_torchrl_up_to_twice_the_warm_up(warmup, smooth):
    """Past that TorchRL's share of the correction grows above 1."""
    options = {"momentum": 0.2, "eps": 0.01, "max_r": 1.3, "max_d": 0.4}
    module = BatchRenorm1d(3, **options, warmup_steps=warmup, smooth=smooth).double()
    stirred(module)
    params, buffers = of_module(module)
    layer = nn.batch_renorm(3, **options, warmup_steps=warmup, smooth=smooth)
    for step in range(4):
        x = (1 + step) * draw(6, 3, seed=step) + 0.3 * step
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected = module(theirs)
        out, buffers = layer.apply(params, buffers, ours)
        close(out, expected)
        scalar(expected).backward()
        scalar(out).backward()
        close(ours.grad, theirs.grad)
        buffers = paramtree.detach(buffers)
        for name, leaf in module.named_buffers():
            close(buffers[name], leaf)
    module.eval()
    still = nn.batch_renorm(3, **options, warmup_steps=warmup, smooth=smooth, train=False)
    close(still.apply(params, buffers, draw(6, 3))[0], module(draw(6, 3)))


@pytest.mark.parametrize("smooth", [True, False])
def test_past_its_warm_up_the_correction_is_whole(smooth):
    params, buffers = moved(nn.batch_renorm(3, dtype=DOUBLE), rng.key(0))
    buffers = tree.replace(buffers, {"num_batches_tracked": torch.tensor(100)})
    x = 3 * draw(4, 3) + 1
    late, always = (nn.batch_renorm(3, warmup_steps=n, smooth=smooth) for n in (7, 0))
    close(late.apply(params, buffers, x)[0], always.apply(params, buffers, x)[0])


def test_renorm_without_bounds_is_the_running_normalization():
    wide = nn.batch_renorm(3, max_r=1e9, max_d=1e9, warmup_steps=0, spatial=1, dtype=DOUBLE)
    params, buffers = moved(wide, rng.key(0))
    still = nn.batch_norm(3, spatial=1, train=False)
    x = 3 * draw(4, 3, 2) + 1
    close(wide.apply(params, buffers, x)[0], still.apply(params, buffers, x)[0])


def test_renorm_differentiates_its_bounds():
    x = 4 * draw(6, 2) + 1
    params, buffers = moved(nn.batch_renorm(2, dtype=DOUBLE), rng.key(0))

    def fn(eps, momentum, max_r, max_d):
        layer = nn.batch_renorm(2, eps, momentum, max_r, max_d, 0)
        _, after = layer.apply(params, buffers, x)
        return layer.apply(params, after, 2 * x)[0]

    inputs = [leaf.clone().requires_grad_() for leaf in TENSORS]
    slope = torch.autograd.grad(scalar(fn(*inputs)), inputs[1:])
    assert all(torch.all(s != 0) for s in slope[1:])
    # eps enters r through v too, where it has its derivative: v alone is a constant
    assert torch.autograd.gradcheck(fn, inputs)
    assert torch.autograd.gradgradcheck(fn, inputs)


# ---- refusals


def applied(layer, x, buffers=None):
    params, made = layer.init(rng.key(0))
    return lambda: layer.apply(params, made if buffers is None else buffers, x)


LAYER = nn.batch_norm(3)
STATE = tree.entries(LAYER.init(rng.key(0))[1])
FLAGS = torch.ones(4, dtype=torch.bool)

REFUSED = [
    (lambda: nn.batch_norm(0), ValueError, "batch_norm: n_channels is 0"),
    (lambda: nn.batch_norm(3, -1e-5), ValueError, "batch_norm: eps is -1e-05"),
    (lambda: nn.batch_norm(3, momentum=1.5), ValueError, r"momentum is 1.5, expected in \[0.0, 1"),
    (lambda: nn.batch_norm(3, momentum="0.1"), TypeError, "momentum is a str"),
    (lambda: nn.batch_norm(3, spatial=0.5), TypeError, "spatial holds a float"),
    (lambda: nn.batch_norm(3, weight_init=1.0), TypeError, "weight_init is a float"),
    (lambda: nn.batch_renorm(3, momentum=None), TypeError, "batch_renorm: momentum is a NoneType"),
    (lambda: nn.batch_renorm(3, max_r=0.5), ValueError, "max_r is 0.5, expected at least 1"),
    (lambda: nn.batch_renorm(3, warmup_steps=-1), ValueError, "warmup_steps is -1"),
    (applied(LAYER, torch.zeros(4, 2)), ValueError, r"x has shape \(4, 2\), expected \[\*batch, 3"),
    (applied(LAYER, torch.zeros(4, 3).double()), TypeError, "x has dtype torch.float64"),
    (applied(LAYER, torch.zeros(1, 3)), ValueError, "1 values for each channel, expected at least"),
    (applied(LAYER, (torch.zeros(4, 3),)), ValueError, "the input is a tuple of 1"),
    (applied(LAYER, (torch.zeros(4, 3), FLAGS.float())), TypeError, "mask is torch.float32"),
    (
        applied(LAYER, (torch.zeros(5, 3), FLAGS)),
        ValueError,
        r"mask has shape \(4,\), expected \(5",
    ),
    (
        applied(LAYER, torch.zeros(4, 3), EMPTY),
        ValueError,
        "buffers lack running_mean, running_var",
    ),
    (
        applied(nn.batch_norm(3, track_running_stats=False), torch.zeros(4, 3), tree.new(STATE)),
        ValueError,
        "batch_norm: buffers hold an unknown running_mean",
    ),
    (
        applied(LAYER, torch.zeros(4, 3), tree.new({**STATE, "running_var": torch.ones(2)})),
        ValueError,
        r"buffers.running_var is \(2,\), expected a tensor \(3,\) \(from batch_norm\(3",
    ),
    (
        applied(LAYER, torch.zeros(4, 3), tree.new({**STATE, "running_var": torch.ones(3).long()})),
        TypeError,
        "buffers.running_var has dtype torch.int64, expected a float dtype",
    ),
    (
        applied(
            LAYER, torch.zeros(4, 3), tree.new({**STATE, "num_batches_tracked": torch.tensor(0.0)})
        ),
        TypeError,
        "buffers.num_batches_tracked has dtype torch.float32, expected int64",
    ),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_wrong_use_is_refused(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()
