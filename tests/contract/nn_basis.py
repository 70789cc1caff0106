"""Rows of the affine, recurrent and composed layers, and of the initializers."""

from collections.abc import Callable
from functools import partial

import torch

from paramtree import nn, rng
from tests.contract.case import Case, D, draw, flags, layer_case


def initializer_case(name: str, init: Callable[..., torch.Tensor]) -> Case:
    fn = partial(_initialized, init)
    return Case(f"nn.{name}", fn, lambda: (rng.key(3),), smooth=0)


def _initialized(init: Callable[..., torch.Tensor], key: torch.Tensor) -> torch.Tensor:
    return init(key, (4, 3), D)


ROWS = [
    layer_case("linear", nn.linear(3, 2), lambda: draw("x", 4, 3), inductor=True),
    layer_case(
        "mlp", nn.mlp(3, 5, 2, activation=torch.tanh), lambda: draw("x", 4, 3), inductor=True
    ),
    layer_case("sequential", nn.sequential(nn.linear(3, 2), torch.tanh), lambda: draw("x", 4, 3)),
    layer_case("embedding", nn.embedding(5, 2), lambda: torch.tensor([1, 4, 0])),
    layer_case("table", nn.table(5, 2), lambda: (torch.tensor([1, 4, 0]), torch.tensor([0, 3, 9]))),
    layer_case("lstm", nn.lstm(3, 4), lambda: (draw("x", 5, 2, 3), flags("r", 5, 2))),
    layer_case("gru", nn.gru(3, 4, reverse=True), lambda: (draw("x", 5, 2, 3), flags("r", 5, 2))),
    *[
        initializer_case(name, init)
        for name, init in {
            "constant": nn.constant(0.5),
            "normal": nn.normal(),
            "orthogonal": nn.orthogonal(),
            "truncated_normal": nn.truncated_normal(),
            "uniform": nn.uniform(0.5),
            "variance_scaling": nn.variance_scaling(),
            "zeros": nn.zeros,
        }.items()
    ],
]
