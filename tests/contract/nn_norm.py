"""Rows of normalizing layers, with their numbers as tensors, and buffers in and out."""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import Model, nn, rng, tree
from tests.contract.case import Case, draw, number


def norm_case(name: str, make: Callable[[torch.Tensor], Model], *size: int) -> Case:
    """Output and buffers, differentiated in params, buffers, input and a number."""

    def call(params: TensorDict, buffers: TensorDict, x: Any, hyper: torch.Tensor) -> Any:
        return make(hyper[0]).apply(params, buffers, x)

    def args() -> tuple[Any, ...]:
        params, buffers = make(number()[0]).init(rng.key(0))
        return moved(params), moved(buffers), draw("x", *size), number()

    return Case(f"nn.{name}", call, args)


def moved(given: TensorDict) -> TensorDict:
    """The tree in float64, away from ones and zeros."""

    def away(path: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
        return x + 0.3 + draw(path[-1], *x.shape, low=0.0) if x.is_floating_point() else x

    return tree.map_with_path(away, given)


ROWS = [
    norm_case("layer_norm", lambda eps: nn.layer_norm((3, 2), eps), 4, 3, 2),
    norm_case("rms_norm", lambda eps: nn.rms_norm((3, 2), eps), 4, 3, 2),
    norm_case("group_norm", lambda eps: nn.group_norm(2, 4, eps, spatial=1), 2, 4, 3),
    norm_case("instance_norm", lambda eps: nn.instance_norm(2, eps, spatial=1), 2, 2, 3),
    norm_case("batch_norm", lambda h: nn.batch_norm(2, h, h, spatial=1), 2, 2, 3),
    # in what goes through the moments of its own batch a correction has no derivative
    norm_case("batch_renorm", lambda h: nn.batch_renorm(2, h, h, warmup_steps=1), 4, 2),
]
