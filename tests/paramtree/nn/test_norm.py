import itertools

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
    moved,
    of_module,
)


def stirred(module):
    """A module whose parameters are away from ones and zeros."""
    for i, leaf in enumerate(module.parameters()):
        leaf.data += draw(*leaf.shape, seed=i)
    return module


MODULES = {
    "layer_norm": [
        (nn.layer_norm(size, *rest), torch.nn.LayerNorm(size, *rest, dtype=DOUBLE))
        for size, rest in itertools.product(
            (4, (4,), (3, 4), [2, 3, 4]),
            ((), (0.1,), (1e-5, False), (1e-5, True, False)),
        )
    ],
    "rms_norm": [
        (nn.rms_norm(size, *rest), torch.nn.RMSNorm(size, *rest, dtype=DOUBLE))
        for size, rest in itertools.product(((4,), (3, 4)), ((), (0.1,), (None, False)))
    ],
    "group_norm": [
        (nn.group_norm(*row, spatial=2), torch.nn.GroupNorm(*row, dtype=DOUBLE))
        for row in [(1, 2), (2, 2), (1, 2, 0.1), (2, 2, 1e-5, False)]
    ],
    "instance_norm": [
        (nn.instance_norm(2, **row, spatial=2), torch.nn.InstanceNorm2d(2, **row, dtype=DOUBLE))
        for row in [{}, {"affine": True}, {"eps": 0.1}]
    ],
}


@pytest.mark.parametrize("name", MODULES)
def test_equals_torch(name):
    for layer, module in MODULES[name]:
        check_module(layer, stirred(module), draw(5, 2, 3, 4))


@pytest.mark.parametrize("spatial", [0, 1, 3])
def test_group_norm_over_any_dims_equals_torch(spatial):
    x = draw(5, 6, *(3, 2, 4)[:spatial])
    module = stirred(torch.nn.GroupNorm(2, 6, dtype=DOUBLE))
    check_module(nn.group_norm(2, 6, spatial=spatial), module, x)
    if spatial:
        kinds = {1: torch.nn.InstanceNorm1d, 3: torch.nn.InstanceNorm3d}
        module = stirred(kinds[spatial](6, affine=True, dtype=DOUBLE))
        check_module(nn.instance_norm(6, affine=True, spatial=spatial), module, x)


LAYERS = {
    "layer": (nn.layer_norm((3, 2), dtype=DOUBLE), draw(2, 3, 2)),
    "layer bare": (nn.layer_norm(3, elementwise_affine=False), draw(2, 3)),
    "layer eps": (nn.layer_norm(3, torch.tensor(0.3).double(), dtype=DOUBLE), draw(2, 3)),
    "rms": (nn.rms_norm(3, dtype=DOUBLE), draw(2, 3)),
    "rms eps": (nn.rms_norm(3, torch.tensor(0.3).double(), dtype=DOUBLE), draw(2, 3)),
    "group": (nn.group_norm(2, 4, spatial=1, dtype=DOUBLE), draw(2, 4, 2)),
    "group eps": (
        nn.group_norm(2, 4, torch.tensor(0.3).double(), dtype=DOUBLE),
        draw(2, 4),
    ),
    "instance": (nn.instance_norm(2, affine=True, spatial=1, dtype=DOUBLE), draw(2, 2, 3)),
    "instance bare": (nn.instance_norm(2, spatial=2), draw(2, 2, 2, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name):
    check_derivatives(*LAYERS[name])


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_parameters_under_vmap_equal_a_loop(name):
    check_vmapped(*LAYERS[name])


@pytest.mark.parametrize("name", ["layer", "rms eps", "group", "instance bare"])
def test_compiled_equals_eager(name):
    check_compiled(*LAYERS[name])


KINDS = {
    "layer": lambda dtype: nn.layer_norm(4, dtype=dtype),
    "rms": lambda dtype: nn.rms_norm((2, 4), 1e-5, dtype=dtype),
    "group": lambda dtype: nn.group_norm(2, 4, spatial=2, dtype=dtype),
    "group eps": lambda dtype: nn.group_norm(2, 4, torch.tensor(0.3), spatial=2, dtype=dtype),
    "instance": lambda dtype: nn.instance_norm(4, affine=True, spatial=2, dtype=dtype),
}


@pytest.mark.parametrize("name", KINDS)
def test_dtypes_and_devices(name):
    check_kinds(KINDS[name], draw(3, 4, 2, 4))


EPS = {
    "layer_norm": lambda eps: nn.layer_norm((3, 4), eps, dtype=DOUBLE),
    "layer_norm bare": lambda eps: nn.layer_norm((3, 4), eps, False),
    "layer_norm no bias": lambda eps: nn.layer_norm((3, 4), eps, bias=False, dtype=DOUBLE),
    "rms_norm": lambda eps: nn.rms_norm((3, 4), eps, dtype=DOUBLE),
    "rms_norm bare": lambda eps: nn.rms_norm((3, 4), eps, False),
    "group_norm": lambda eps: nn.group_norm(3, 6, eps, spatial=2, dtype=DOUBLE),
    "group_norm bare": lambda eps: nn.group_norm(3, 6, eps, False, spatial=2),
    "instance_norm": lambda eps: nn.instance_norm(6, eps, spatial=2),
}


@pytest.mark.parametrize("name", EPS)
def test_a_tensor_for_eps_is_the_number_and_has_a_gradient(name):
    make, x = EPS[name], draw(2, 6, 3, 4)
    params, buffers = moved(make(0.2), rng.key(0))
    eps = torch.tensor(0.2, dtype=DOUBLE, requires_grad=True)
    close(make(eps).apply(params, buffers, x)[0], make(0.2).apply(params, buffers, x)[0])

    def fn(eps):
        return make(eps).apply(params, buffers, x)[0]

    assert torch.autograd.gradcheck(fn, eps)
    assert torch.autograd.gradgradcheck(fn, eps)


def test_an_eps_for_each_of_stacked_tasks():
    eps, x = torch.tensor([0.1, 1.0], dtype=DOUBLE), draw(2, 3, 4)
    out = torch.func.vmap(lambda e, x: nn.layer_norm(4, e, False).apply(EMPTY, EMPTY, x)[0])(eps, x)
    for i in range(2):
        close(out[i], torch.nn.functional.layer_norm(x[i], (4,), eps=eps[i].item()))


@pytest.mark.parametrize("name", ["layer", "rms", "group", "instance"])
def test_starts_as_the_identity_of_what_is_normal(name):
    layer, x = LAYERS[name]
    params, buffers = layer.init(rng.key(0))
    assert buffers.is_empty() and params.is_locked
    assert (params["weight"] == 1).all() and params["weight"].dtype == DOUBLE
    if name != "rms":
        assert (params["bias"] == 0).all()
    assert layer.apply(params, buffers, x)[1] is buffers


def test_initializers_are_given():
    inits = {"weight_init": nn.constant(2.0), "bias_init": nn.constant(-1.0)}
    for layer in (
        nn.layer_norm(4, **inits),
        nn.group_norm(2, 4, **inits),
        nn.instance_norm(4, affine=True, spatial=1, **inits),
    ):
        params, _ = layer.init(rng.key(0))
        assert (params["weight"] == 2).all() and (params["bias"] == -1).all()
    assert (nn.rms_norm(4, weight_init=nn.constant(2.0)).init(rng.key(0))[0]["weight"] == 2).all()


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (2, 0)], ids=str)
@pytest.mark.parametrize("name", ["layer", "rms", "group", "instance"])
def test_any_leading_axes(batch, name):
    layer, x = LAYERS[name]
    params, buffers = moved(layer, rng.key(0))
    x = draw(*batch, *x.shape[1:])
    out = layer.apply(params, buffers, x)[0]
    assert out.shape == x.shape
    rows = [layer.apply(params, buffers, row)[0] for row in x.reshape(-1, *x.shape[len(batch) :])]
    if rows:
        close(out, torch.stack(rows).reshape(x.shape))


def test_under_autocast():
    layer = nn.layer_norm(4)
    params, buffers = moved(layer, rng.key(0))
    params = tree.map(lambda leaf: leaf.float(), params)
    x = draw(3, 4).float()
    with torch.autocast("cpu"):
        out = layer.apply(params, buffers, x.bfloat16())[0]
    assert_close(out.float(), layer.apply(params, buffers, x)[0], rtol=0.05, atol=0.05)


# ---- refusals


def applied(layer, x):
    return lambda: layer.apply(layer.init(rng.key(0))[0], EMPTY, x)


BARE = nn.layer_norm(4, elementwise_affine=False)

REFUSED = [
    (lambda: nn.layer_norm(0), ValueError, "layer_norm: normalized_shape is 0"),
    (lambda: nn.layer_norm((3, 2.0)), TypeError, r"normalized_shape\[1\] is a float"),
    (lambda: nn.layer_norm(()), ValueError, "normalized_shape is empty"),
    (lambda: nn.layer_norm(4, -1.0), ValueError, "layer_norm: eps is -1.0, expected at least 0"),
    (lambda: nn.rms_norm(4, "1"), TypeError, "rms_norm: eps is a str"),
    (lambda: nn.rms_norm(4, torch.ones(1)), ValueError, r"eps is a tensor \[1\]"),
    (lambda: nn.rms_norm(4, torch.tensor(1)), TypeError, "eps is a tensor .* of torch.int64"),
    (lambda: nn.rms_norm(4, weight_init=3), TypeError, "rms_norm: weight_init is a int"),
    (lambda: nn.group_norm(3, 4), ValueError, "n_channels is 4, expected a multiple of n_groups"),
    (lambda: nn.group_norm(2, 4, spatial=-1), ValueError, "group_norm: spatial is -1"),
    (lambda: nn.instance_norm(4, spatial=0), ValueError, "instance_norm: spatial is 0"),
    (lambda: nn.layer_norm(4).init(torch.zeros(3)), TypeError, "layer_norm: key is torch.float32"),
    (applied(nn.layer_norm(4), [1.0]), TypeError, r"x is a list, expected a tensor \[\*batch, 4\]"),
    (
        applied(nn.layer_norm((3, 4)), torch.zeros(2, 4)),
        ValueError,
        r"layer_norm: x has shape \(2, 4\), expected \[\*batch, 3, 4\] \(from layer_norm\(\(3, 4\)",
    ),
    (applied(nn.rms_norm((3, 4)), torch.zeros(4)), ValueError, r"rms_norm: x has shape \(4,\)"),
    (applied(nn.layer_norm(4), torch.zeros(2, 4).double()), TypeError, "x has dtype torch.float64"),
    (applied(BARE, torch.zeros(2, 4).long()), TypeError, "x has dtype torch.int64, expected a f"),
    (
        lambda: BARE.apply(nn.layer_norm(4).init(rng.key(0))[0], EMPTY, torch.zeros(4)),
        ValueError,
        "layer_norm: params hold an unknown weight, bias; expected no entry",
    ),
    (
        applied(nn.group_norm(2, 4, spatial=1), torch.zeros(4)),
        ValueError,
        r"group_norm: x has shape \(4,\), expected \[\*batch, 4, L\]",
    ),
    (applied(nn.group_norm(4, 4), torch.zeros(3, 4)), ValueError, "one value in each group"),
    (applied(nn.instance_norm(4, spatial=1), torch.zeros(3, 4, 1)), ValueError, "one value in"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_wrong_use_is_refused(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_modules_are_of_the_same_names():
    for rows in MODULES.values():
        for layer, module in rows:
            ours, theirs = layer.init(rng.key(0))[0], of_module(module)[0]
            assert tree.paths(ours) == tree.paths(theirs)
