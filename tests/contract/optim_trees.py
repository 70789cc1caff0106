"""Rows of what optimizers are written with: arithmetic on trees, and the Gauss-Newton product."""

from typing import Any

import torch
from tensordict import TensorDict

from paramtree import autodiff, rng, tree
from tests.contract.case import Case, draw, params


def other() -> TensorDict:
    """The same names, each level's in another order."""
    policy = tree.new({"b": draw("other b", 2), "w": draw("other w", 2, 3)}, (2,))
    return tree.new({"policy": policy, "meta": tree.new({"w": draw("other m", 3)})})


def model(params: TensorDict) -> Any:
    hidden = torch.tanh(params["policy", "w"] @ params["meta", "w"] + params["policy", "b"])
    return tree.new({"hidden": hidden, "index": torch.arange(2)})


def loss(out: TensorDict) -> torch.Tensor:
    return out["hidden"].exp().sum() * out["hidden"][0]


ROWS = [
    Case("tree.add", tree.add, lambda: (params(), other())),
    Case("tree.sub", tree.sub, lambda: (params(), other())),
    Case("tree.scale", tree.scale, lambda: (params(), draw("factor"))),
    Case("tree.zeros_like", tree.zeros_like, lambda: (params(),), smooth=0),
    Case("tree.allclose", tree.allclose, lambda: (params(), other()), smooth=0),
    Case("tree.random_like", tree.random_like, lambda: (rng.key(3), params()), smooth=0),
    Case(
        "autodiff.gnvp",
        lambda p, v: autodiff.gnvp(model, loss, p, v),
        lambda: (params(), other()),
    ),
]
