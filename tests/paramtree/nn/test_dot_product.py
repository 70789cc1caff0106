"""Attention to so many keys that the fast kernels serve where there are gradients too."""

import pytest
import torch

from paramtree import grad, nn, rng, tree
from tests.paramtree.nn.battery import DOUBLE, EMPTY, close, draw, moved, scalar
from tests.paramtree.nn.test_attention import bools

LONG = 256  # steps


def long_masks():
    keys = bools(2, LONG)
    keys[:, 0] = True
    return {"none": (None, None), "mask": (bools(LONG, LONG), None), "keys": (None, keys)}


@pytest.mark.parametrize("name", ["none", "mask", "keys"])
def test_long_sequences_take_another_way_to_the_same_derivatives(name):
    lean, whole = (
        nn.multi_head_attention(4, 2, need_weights=need, dtype=DOUBLE) for need in (False, True)
    )
    params, _ = moved(lean, rng.key(0))
    x = draw(2, LONG, 4)
    inputs = (x, None, None, *long_masks()[name])

    def value(layer, params, x):
        out = layer(params, EMPTY, (x, *inputs[1:]))
        return scalar(out if layer is lean else out[0])

    def slope(layer, params, x):
        return grad(lambda *given: value(layer, *given), (0, 1))(params, x)

    def second(layer, params, x):
        def square(params, x):
            return sum(leaf.square().sum() for leaf in tree.leaves(slope(layer, params, x)))

        return grad(square, (0, 1))(params, x)

    for function in (value, slope, second):
        ours, theirs = (function(layer, params, x) for layer in (lean, whole))
        close(tree.leaves(ours), tree.leaves(theirs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("padded", [True, False])
def test_long_sequences_vmapped_equal_a_loop(padded):
    layer, n = nn.multi_head_attention(2, 1, dtype=DOUBLE), 2
    params, _ = moved(layer, rng.key(0))
    x, mask = draw(n, 1, LONG, 2), bools(n, LONG, LONG)
    keys = bools(n, 1, LONG, seed=1)

    def fn(x, mask, keys):
        return scalar(layer(params, EMPTY, (x, None, None, mask, keys if padded else None)))

    first = grad(fn)
    second = grad(lambda x, *masks: first(x, *masks).square().sum())
    for function in (fn, first, second):
        for dims in [(0, 0, 0), (0, None, 0), (None, 0, None), (0, None, None)]:
            given = [x if d == 0 else x[0] for x, d in zip((x, mask, keys), dims, strict=True)]
            out = torch.func.vmap(function, dims)(*given)
            for i in range(n):
                row = [x[i] if d == 0 else x for x, d in zip(given, dims, strict=True)]
                close(out[i], function(*row), rtol=1e-9, atol=1e-9)
