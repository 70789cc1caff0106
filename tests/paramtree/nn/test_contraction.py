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
    check_vmapped,
    close,
    draw,
)
from tests.paramtree.nn.flax_cases import CASES


@pytest.mark.parametrize("n_in", [3, (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("n_out", [4, (4, 2), [4, 2, 1]], ids=str)
@pytest.mark.parametrize("batch", [(), (5,), (5, 2), (0,)], ids=str)
def test_linear_general_is_a_tensordot(n_in, n_out, batch):
    inner, outer = (tuple(n) if not isinstance(n, int) else (n,) for n in (n_in, n_out))
    layer = nn.linear_general(n_in, n_out, dtype=DOUBLE)
    params, buffers = layer.init(rng.key(0))
    assert params["weight"].shape == (*outer, *inner) and params["bias"].shape == outer
    x, n = draw(*batch, *inner), len(inner)
    weight = params["weight"].permute(*range(len(outer), len(outer) + n), *range(len(outer)))
    out, after = layer.apply(params, buffers, x)
    assert after is buffers
    close(out, torch.tensordot(x, weight, n) + params["bias"])
    bare = tree.new({"weight": params["weight"]})
    close(nn.linear_general(n_in, n_out, bias=False).apply(bare, EMPTY, x)[0], out - params["bias"])


def test_linear_general_of_one_axis_is_linear():
    params, buffers = nn.linear(3, 4).init(rng.key(0))
    x = draw(5, 3).float()
    general = nn.linear_general(3, 4)
    assert tree.allclose(general.init(rng.key(0))[0], params)
    close(general.apply(params, buffers, x)[0], nn.linear(3, 4).apply(params, buffers, x)[0])


def flax_of(case, layer, weight_of, kernel_of):
    leaves = [weight_of(case["in/kernel"]), case["in/bias"], case["in/x"]]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    out = layer.apply(tree.new({"weight": leaves[0], "bias": leaves[1]}), EMPTY, leaves[2])[0]
    close(out, case["out"])
    w, b, x = torch.autograd.grad((out * case["w"]).sum(), leaves)
    close(kernel_of(w), case["grad/kernel"])
    close(b, case["grad/bias"])
    close(x, case["grad/x"])


def test_linear_general_equals_flax():
    layer = nn.linear_general((3, 2), (2, 4))
    move = lambda k: k.permute(2, 3, 0, 1)  # noqa: E731 (its own inverse)
    flax_of(CASES["dense_general"][0], layer, move, move)


def test_einsum_equals_flax():
    layer = nn.einsum("...td,dhk->...thk", (3, 2, 4), (2, 4))
    flax_of(CASES["einsum"][0], layer, lambda k: k, lambda k: k)


@pytest.mark.parametrize(
    "equation, size, shape",
    [
        ("bi, oi -> bo", (4, 3), (5, 3)),
        ("...i,io->...o", (3, 4), (5, 2, 3)),
        ("...i,io->...o", (3, 4), (3,)),
        ("b...i,oi->b...o", (4, 3), (5, 2, 3)),
        ("thd,hdm->thm", (2, 3, 4), (5, 2, 3)),
        ("thd,hdm->tm", (2, 3, 4), (5, 2, 3)),
        ("...,d->...d", (4,), (5, 2)),
        ("ij,ij->ij", (2, 3), (2, 3)),
    ],
)
def test_einsum_equals_torch(equation, size, shape):
    layer = nn.einsum(equation, size, dtype=DOUBLE)
    params, buffers = layer.init(rng.key(0))
    x = draw(*shape)
    out, after = layer.apply(params, buffers, x)
    close(out, torch.einsum(equation, x, params["weight"]))
    assert after is buffers and tree.paths(params) == [("weight",)]


def test_initial_weights_are_scaled_by_what_is_summed():
    for layer, n in (
        (nn.linear_general((10, 20), (30, 4)), 200),
        (nn.einsum("tio,iojk->tjk", (10, 20, 30, 4), (30, 4)), 200),
        (nn.einsum("ghi,hio->gho", (10, 20, 60), (10, 60)), 20),
    ):
        for leaf in tree.leaves(layer.init(rng.key(0))[0]):
            bound = n**-0.5
            assert 0.9 * bound < leaf.abs().max() < bound
            assert abs(leaf.mean()) < 5 * bound / math.sqrt(3 * leaf.numel())


def test_initializers_see_a_matrix():
    seen = []

    def make(key, shape, dtype):
        seen.append(tuple(shape))
        return nn.orthogonal()(key, shape, dtype)

    params, _ = nn.linear_general((2, 3), (4, 5), weight_init=make, dtype=DOUBLE).init(rng.key(0))
    assert seen == [(20, 6)]
    matrix = params["weight"].reshape(20, 6)
    close(matrix.mT @ matrix, torch.eye(6, dtype=DOUBLE))


LAYERS = {
    "linear_general": (nn.linear_general((2, 2), (3, 1), dtype=DOUBLE), draw(2, 2, 2)),
    "einsum": (nn.einsum("...td,dhk->...htk", (2, 2, 3), (2, 1, 3), dtype=DOUBLE), draw(2, 2, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name):
    check_derivatives(*LAYERS[name])


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_parameters_under_vmap_equal_a_loop(name):
    check_vmapped(*LAYERS[name])


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_equals_eager(name):
    check_compiled(*LAYERS[name])


def test_dtypes_and_devices():
    check_kinds(lambda dtype: nn.linear_general((2, 2), 3, dtype=dtype), draw(2, 2, 2))
    check_kinds(lambda dtype: nn.einsum("ti,io->to", (2, 3), (3,), dtype=dtype), draw(2, 2))


# ---- refusals


def applied(layer, x):
    return lambda: layer.apply(layer.init(rng.key(0))[0], EMPTY, x)


LAYER = nn.einsum("...td,dk->...tk", (3, 4))

REFUSED = [
    (lambda: nn.linear_general((), 3), ValueError, "linear_general: n_in is empty"),
    (lambda: nn.linear_general(3, (2, 0)), ValueError, r"linear_general: n_out\[1\] is 0"),
    (lambda: nn.linear_general(3, 2, True, 1), TypeError, "weight_init is a int"),
    (
        applied(nn.linear_general((2, 3), 4), torch.zeros(3, 2)),
        ValueError,
        r"x has shape \(3, 2\), expected \[\*batch, 2, 3\] \(from linear_general\(\(2, 3\), 4\), w",
    ),
    (
        applied(nn.linear_general(3, 4), torch.zeros(3).half()),
        TypeError,
        "x has dtype torch.float16",
    ),
    (lambda: nn.einsum(3, (2,)), TypeError, "einsum: equation is a int"),
    (lambda: nn.einsum("ti,io", (2, 3)), ValueError, 'equation is .ti,io., expected "x,w->y"'),
    (lambda: nn.einsum("ti->t", (2, 3)), ValueError, "equation is 'ti->t'"),
    (lambda: nn.einsum("ti,ii->t", (2, 2)), ValueError, "each once in w"),
    (lambda: nn.einsum("ti,...i->t", (2, 2)), ValueError, '"..." in x and y alone'),
    (lambda: nn.einsum("ti,io->tz", (2, 2)), ValueError, "neither x nor w has 'z'"),
    (
        lambda: nn.einsum("ti,io->to", (2, 3, 4)),
        ValueError,
        r"weight_shape is \(2, 3, 4\), exp.* 2",
    ),
    (
        applied(LAYER, torch.zeros(5, 2)),
        ValueError,
        r"x has shape \(5, 2\), expected '...td' with d",
    ),
    (applied(LAYER, torch.zeros(3)), ValueError, r"x has shape \(3,\)"),
    (applied(LAYER, 1.0), TypeError, "einsum: x is a float"),
    (applied(LAYER, torch.zeros(2, 3).double()), TypeError, "einsum: x has dtype torch.float64"),
    (
        applied(nn.einsum("ti,io->to", (3, 4), (5,)), torch.zeros(2, 3)),
        ValueError,
        r"bias has shape \(5,\), expected one that broadcasts.*\(2, 4\)",
    ),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_wrong_use_is_refused(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()
