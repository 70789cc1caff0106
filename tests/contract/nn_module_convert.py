"""Rows of the ways from a ``torch.nn.Module`` and back."""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from paramtree import from_module, nn_module, rng, to_module, tree
from tests.contract.case import Case, draw


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """A module whose parameters are drawn from a key."""
    with torch.random.fork_rng():
        module = make().double()
    model, _, buffers = from_module(module)
    return to_module(module, model.init(rng.key(0))[0], buffers)


MIXED = built(
    lambda: nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 2)
    )
)
LSTM = built(lambda: nn.LSTM(3, 2, bidirectional=True))
ENCODER = built(lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation="gelu"))


def row(name: str, module: nn.Module, x: Callable[[], Tensor], **options: Any) -> Case:
    """Output and counts of a model that draws; torch's running statistics carry no gradient."""
    model, params, buffers = from_module(module, key=rng.key(1))

    def call(p: TensorDict, x: Tensor) -> Any:
        out, after = model.apply(p, buffers, x)
        return out, [x for x in tree.leaves(after) if not x.is_floating_point()]

    return Case(name, call, lambda: (tree.map(torch.clone, params), x()), **options)


def returned(params: TensorDict) -> TensorDict:
    module = to_module(MIXED, params)
    assert not nn_module.tied(module)
    return from_module(module)[1]


ROWS = [
    row("nn_module.from_module", MIXED, lambda: draw("x", 5, 3)),
    row("nn_module.from_module of a recurrent module", LSTM, lambda: draw("x", 4, 2, 3)),
    row("nn_module.from_module of attention", ENCODER, lambda: draw("x", 2, 3, 4)),
    Case(
        "nn_module.to_module",
        returned,
        lambda: (from_module(MIXED)[1],),
        smooth=0,  # a module's parameters are leaves
        vmapped="a module holds one set of parameters",
        compiled="a module is made, not computed",
        covers=("nn_module.tied",),
    ),
]
