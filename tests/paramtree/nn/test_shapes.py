import pytest
import torch

from paramtree import Model, compose, grad, nn, rng, td_model, tree, vmap
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_compiled,
    check_derivatives,
    check_kinds,
    check_vmapped,
    close,
    draw,
)


@pytest.mark.parametrize("dims", [(), (0,), (2,), (1, 2), (-3, -2), (0, -1), (-1,)], ids=str)
def test_flatten_equals_torch(dims):
    x = draw(2, 3, 4, 5)
    close(nn.flatten(*dims)(x), torch.nn.Flatten(*dims)(x))


@pytest.mark.parametrize(
    "shape, preserve, wanted",
    [
        ((4, 15), 1, (2, 4, 15)),
        ((-1,), 1, (2, 60)),
        ((-1,), 0, (120,)),
        ((5, -1), 2, (2, 3, 5, 4)),
        ((2, 2, 5), -2, (2, 3, 2, 2, 5)),
        ((5, 1), -1, (2, 3, 4, 5, 1)),
        ((), 4, (2, 3, 4, 5)),
        ((1, 1), 4, (2, 3, 4, 5, 1, 1)),
    ],
)
def test_reshape_keeps_the_first_dims(shape, preserve, wanted):
    x = draw(2, 3, 4, 5)
    out = nn.reshape(*shape, preserve_dims=preserve)(x)
    assert out.shape == wanted
    close(out.flatten(), x.flatten())


def test_reshape_parts_as_unflatten_does():
    x = draw(2, 3, 12)
    close(nn.reshape(3, 4, preserve_dims=-1)(x), torch.nn.Unflatten(-1, (3, 4))(x))


def test_plain_functions_are_layers():
    net = nn.sequential(
        nn.reshape(4, 3),
        nn.flatten(),
        lambda x: x,
        torch.nn.Identity(),
        nn.linear(12, 2, dtype=DOUBLE),
        scaled=lambda x: 2 * x,
    )
    params, buffers = net.init(rng.key(0))
    assert tree.paths(params) == [("4", "bias"), ("4", "weight")]
    x = draw(5, 12)
    out = net.apply(params, buffers, x)[0]
    close(out, 2 * torch.nn.functional.linear(x, params["4", "weight"], params["4", "bias"]))


# ---- bias


@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (3, 1)], ids=str)
def test_bias_is_added_to_the_last_dims(shape):
    layer = nn.bias(*shape, bias_init=nn.normal(), dtype=DOUBLE)
    params, buffers = layer.init(rng.key(0))
    assert params["bias"].shape == shape and buffers.is_empty()
    x = draw(2, 3, 4)
    out, after = layer.apply(params, buffers, x)
    assert after is buffers
    close(out, x + params["bias"])
    assert (nn.bias(4).init(rng.key(0))[0]["bias"] == 0).all()


# ---- batch_apply


def one_axis(x, y):
    """A function that takes matrices alone."""
    assert x.dim() == y.dim() == 2
    return torch.cat([x, y], -1), x * 2


def test_batch_apply_makes_one_axis_of_several():
    x, y = draw(2, 3, 4), draw(2, 3, 5, seed=1)
    layer = nn.batch_apply(lambda inputs: one_axis(*inputs))
    out, double = layer.apply(EMPTY, EMPTY, (x, y))[0]
    close(out, torch.cat([x, y], -1))
    close(double, 2 * x)
    single = nn.batch_apply(lambda x: x.flatten(1), 3).apply(EMPTY, EMPTY, draw(2, 1, 3, 4, 5))
    assert single[0].shape == (2, 1, 3, 20) and single[1] is EMPTY


def test_batch_apply_has_the_layers_params_and_buffers():
    inner = nn.batch_norm(3, dtype=DOUBLE)
    layer = nn.batch_apply(inner)
    params, buffers = layer.init(rng.key(0))
    wanted = inner.init(rng.key(0))
    assert tree.allclose(params, wanted[0]) and tree.allclose(buffers, wanted[1])
    x = draw(2, 4, 3)
    out, after = layer.apply(params, buffers, x)
    flat, wanted = inner.apply(params, buffers, x.reshape(8, 3))
    close(out.reshape(8, 3), flat)
    close(after["running_var"], wanted["running_var"])


def test_batch_apply_passes_none_on():
    def pick(inputs):
        x, nothing = inputs
        assert nothing is None
        return x

    x = draw(2, 3, 4)
    close(nn.batch_apply(pick).apply(EMPTY, EMPTY, (x, None))[0], x)


# ---- residual


def test_residual_adds_its_input():
    inner = nn.linear(3, 3, dtype=DOUBLE)
    layer = nn.residual(inner, scale=0.5)
    params, buffers = layer.init(rng.key(0))
    assert tree.paths(params) == [("layer", "bias"), ("layer", "weight")]
    assert params.is_locked and buffers.is_empty()
    wanted = inner.init(rng.fold_in(rng.key(0), "layer"))[0]
    assert torch.equal(params["layer", "weight"], wanted["weight"])
    x = draw(4, 3)
    out, after = layer.apply(params, buffers, x)
    close(out, x + 0.5 * inner.apply(wanted, buffers, x)[0])
    assert after is buffers
    function = nn.residual(torch.tanh)
    assert function.init(rng.key(0))[0].is_empty()
    close(function.apply(EMPTY, EMPTY, x)[0], x + x.tanh())


def test_residual_with_a_shortcut():
    layer = nn.residual(
        nn.sequential(
            conv=nn.conv2d(2, 4, 3, 2, 1, dtype=DOUBLE), norm=nn.batch_norm(4, spatial=2)
        ),
        nn.conv2d(2, 4, 1, 2, bias=False, dtype=DOUBLE),
    )
    params, buffers = layer.init(rng.key(0))
    params = tree.map(lambda leaf: leaf.double(), params)
    assert [path[0] for path in tree.paths(params)] == ["layer"] * 4 + ["shortcut"]
    assert set(buffers.keys()) == {"layer"}
    x = draw(3, 2, 6, 6)
    out, after = layer.apply(params, buffers, x)
    body = torch.nn.functional.conv2d(
        x, params["layer", "conv", "weight"], params["layer", "conv", "bias"], 2, 1
    )
    norm = torch.nn.functional.batch_norm(body, None, None, training=True)
    short = torch.nn.functional.conv2d(x, params["shortcut", "weight"], stride=2)
    close(out, norm + short)
    assert after["layer", "norm", "num_batches_tracked"] == 1 and after.is_locked
    assert buffers["layer", "norm", "num_batches_tracked"] == 0


def test_residual_differentiates_its_scale():
    inner = nn.linear(3, 3, dtype=DOUBLE)
    params, buffers = nn.residual(inner).init(rng.key(0))
    scale, x = torch.tensor(0.3, dtype=DOUBLE), draw(4, 3)
    slope = grad(lambda s: nn.residual(inner, scale=s).apply(params, buffers, x)[0].sum())(scale)
    close(slope, inner.apply(params["layer"], EMPTY, x)[0].sum())
    wide = torch.tensor([0.1, 0.2, 0.3], dtype=DOUBLE)
    out = nn.residual(inner, scale=wide).apply(params, buffers, x)[0]
    close(out, x + wide * inner.apply(params["layer"], EMPTY, x)[0])


def test_a_stack_of_residual_blocks_is_a_model():
    block = nn.residual(nn.sequential(nn.layer_norm(4), nn.linear(4, 4), torch.relu))
    net = compose(torso=td_model(nn.sequential(a=block, b=block), "x", "h"))
    params, buffers = net.init(rng.key(0))
    assert ("torso", "b", "layer", "1", "weight") in tree.paths(params)
    td = tree.new({"x": draw(5, 4).float()}, (5,))
    assert net(params, buffers, td)["h"].shape == (5, 4)


LAYERS = {
    "bias": (nn.bias(3, 1, dtype=DOUBLE), draw(2, 3, 2)),
    "batch_apply": (nn.batch_apply(nn.linear(3, 2, dtype=DOUBLE)), draw(2, 2, 3)),
    "residual": (
        nn.residual(
            nn.sequential(nn.linear(2, 3, dtype=DOUBLE), torch.tanh),
            nn.linear(2, 3, dtype=DOUBLE),
            0.7,
        ),
        draw(2, 2),
    ),
    "residual with buffers": (nn.residual(nn.batch_norm(2, dtype=DOUBLE)), draw(3, 2)),
    "reshape": (nn.reshape(3, 2), draw(2, 6)),
    "flatten": (nn.flatten(-2), draw(2, 3, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name):
    check_derivatives(*LAYERS[name])


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_parameters_under_vmap_equal_a_loop(name):
    check_vmapped(*LAYERS[name])


@pytest.mark.parametrize("name", ["bias", "batch_apply", "residual with buffers"])
def test_compiled_equals_eager(name):
    check_compiled(*LAYERS[name])


def test_dtypes_and_devices():
    check_kinds(lambda dtype: nn.bias(3, bias_init=nn.normal(), dtype=dtype), draw(2, 3))
    check_kinds(lambda dtype: nn.batch_apply(nn.linear(3, 2, dtype=dtype)), draw(2, 2, 3))
    check_kinds(lambda dtype: nn.residual(nn.linear(3, 3, dtype=dtype), scale=0.5), draw(2, 3))


def test_init_of_stacked_tasks():
    layer = nn.residual(nn.bias(2))
    params, buffers = vmap(layer.init)(rng.split(rng.key(0), 3))
    assert params["layer", "bias"].shape == (3, 2) and params.batch_size == (3,)
    assert buffers.is_empty()


# ---- refusals


def applied(layer, x, params=None):
    params = layer.init(rng.key(0))[0] if params is None else params
    return lambda: layer.apply(params, EMPTY, x)


WRONG = tree.new({"layre": EMPTY})

REFUSED = [
    (lambda: nn.flatten(1.0), TypeError, "flatten: start_dim is a float"),
    (lambda: nn.flatten()(torch.zeros(3)), ValueError, r"flatten: x has shape \(3,\)"),
    (lambda: nn.flatten(-1, 0)(torch.zeros(3, 2)), ValueError, "start_dim is -1 and end_dim 0"),
    (lambda: nn.flatten()([1.0]), TypeError, "flatten: x is a list"),
    (lambda: nn.reshape(2.0), TypeError, r"reshape: shape\[0\] is a float"),
    (lambda: nn.reshape(-1, -1), ValueError, r"reshape: shape is \(-1, -1\)"),
    (lambda: nn.reshape(-2), ValueError, r"reshape: shape is \(-2,\)"),
    (lambda: nn.reshape(5)(torch.zeros(2, 4)), ValueError, r"of which \(4,\) was to become \(5,\)"),
    (lambda: nn.reshape(3, -1)(torch.zeros(2, 4)), ValueError, r"\(4,\) was to become \(3, -1\)"),
    (lambda: nn.reshape(4, preserve_dims=3)(torch.zeros(2, 4)), ValueError, "at least 3 dims"),
    (lambda: nn.bias(0), ValueError, r"bias: shape\[0\] is 0"),
    (applied(nn.bias(3), torch.zeros(2, 4)), ValueError, r"bias: x has shape \(2, 4\), expected"),
    (applied(nn.bias(2, 3), torch.zeros(3)), ValueError, r"x has shape \(3,\)"),
    (applied(nn.bias(3), torch.zeros(3).double()), TypeError, "bias: x has dtype torch.float64"),
    (lambda: nn.batch_apply(3), TypeError, "batch_apply: layer is a int, expected a Model or a f"),
    (lambda: nn.batch_apply(torch.relu, 0), ValueError, "batch_apply: n_dims is 0"),
    (applied(nn.batch_apply(torch.relu), torch.zeros(3)), ValueError, "begin with 2 batch axes"),
    (
        applied(nn.batch_apply(torch.relu), (torch.zeros(3, 2), torch.zeros(2, 3))),
        ValueError,
        r"input 1 has shape \(2, 3\), expected it to begin with 2 batch axes, \(3, 2\)",
    ),
    (applied(nn.batch_apply(torch.relu), "x"), TypeError, "the input is str"),
    (applied(nn.batch_apply(torch.sum), torch.zeros(3, 2)), ValueError, r"the layer gave \(\)"),
    (lambda: nn.residual("x"), TypeError, "residual: layer is a str"),
    (lambda: nn.residual(torch.tanh, 3), TypeError, "residual: shortcut is a int"),
    (lambda: nn.residual(torch.tanh, scale="1"), TypeError, "residual: scale is a str"),
    (
        applied(nn.residual(nn.linear(3, 2)), torch.zeros(4, 3)),
        ValueError,
        r"residual: the layer gave \(4, 2\), expected \(4, 3\) \(from x",
    ),
    (
        applied(nn.residual(nn.linear(3, 3)), torch.zeros(4, 2)),
        ValueError,
        r"linear: x has shape \(4, 2\).*; in layer",
    ),
    (
        applied(nn.residual(torch.tanh), torch.zeros(2), WRONG),
        ValueError,
        "unknown layre; expected",
    ),
    (lambda: nn.residual(torch.tanh).init(rng.key(0)[:1]), ValueError, "residual: key has shape"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_wrong_use_is_refused(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_these_are_models():
    for layer in (nn.bias(2), nn.batch_apply(torch.relu), nn.residual(torch.relu)):
        assert isinstance(layer, Model)
