"""Rows of layers that change shapes, of contractions, and of the initializer that changes none."""

import torch

from paramtree import nn, rng
from tests.contract.case import Case, D, draw, layer_case

ROWS = [
    Case("nn.flatten", lambda x: nn.flatten()(x), lambda: (draw("x", 2, 3, 2),)),
    Case("nn.reshape", lambda x: nn.reshape(2, -1)(x), lambda: (draw("x", 2, 3, 2),)),
    layer_case("bias", nn.bias(3, 1), lambda: draw("x", 2, 3, 2)),
    layer_case("batch_apply", nn.batch_apply(nn.linear(3, 2)), lambda: draw("x", 2, 2, 3)),
    layer_case(
        "residual",
        nn.residual(nn.sequential(nn.linear(3, 2), torch.tanh), nn.linear(3, 2), 0.7),
        lambda: draw("x", 4, 3),
    ),
    layer_case("linear_general", nn.linear_general((3, 2), (2, 4)), lambda: draw("x", 4, 3, 2)),
    layer_case(
        "einsum", nn.einsum("...td,dhk->...htk", (3, 2, 4), (4,)), lambda: draw("x", 2, 5, 3)
    ),
    Case("nn.identity", lambda key: nn.identity()(key, (4, 3, 2), D), lambda: (rng.key(3),), 0),
]
