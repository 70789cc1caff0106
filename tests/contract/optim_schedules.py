"""Rows of the schedules in ``optim``: curves, ends and corners included."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import optim, tree
from tests.contract.case import Case, numbers


def curve(
    name: str, make: Callable[..., Any], hyper: Mapping[str, float], inductor: bool = False
) -> Case:
    """Values at all counts of a schedule, which is made of its real hyper-parameters."""

    def call(hyper: TensorDict, count: torch.Tensor) -> torch.Tensor:
        return make(**tree.entries(hyper))(count)

    args = (numbers(hyper), torch.arange(13))
    return Case(f"optim.{name}", call, lambda: args, inductor=inductor)


def restarts(init: Any, peak: Any, end: Any, exponent: Any) -> Any:
    first = {"init": init, "peak": peak, "warmup_steps": 2, "decay_steps": 6, "end": end}
    second = {"init": init, "peak": end, "warmup_steps": 0, "decay_steps": 4}
    return optim.sgdr([{**first, "exponent": exponent}, second])


def joined(start: Any, peak: Any, rate: Any) -> Any:
    parts = [optim.linear(start, peak, 4), optim.exponential_decay(peak, 2, rate)]
    return optim.join(parts, [4])


ROWS = [
    curve(
        "polynomial",
        lambda start, end, power: optim.polynomial(start, end, power, 6, 2),
        {"start": 0.3, "end": 0.1, "power": 1.7},
    ),
    curve(
        "piecewise_constant",
        lambda init, a, b: optim.piecewise_constant(init, {3: a, 8: b}),
        {"init": 0.3, "a": 0.5, "b": 1.5},
    ),
    curve(
        "exponential_decay",
        lambda init, rate, end: optim.exponential_decay(init, 2, rate, 1, end=end),
        {"init": 0.3, "rate": 0.7, "end": 0.1},
    ),
    curve(
        "cosine_decay",
        lambda init, alpha, exponent: optim.cosine_decay(init, 8, alpha, exponent),
        {"init": 0.3, "alpha": 0.2, "exponent": 1.3},
    ),
    curve(
        "warmup_cosine_decay",
        lambda init, peak, end, exponent: optim.warmup_cosine_decay(
            init, peak, 3, 9, end, exponent
        ),
        {"init": 0.1, "peak": 0.7, "end": 0.05, "exponent": 1.3},
        inductor=True,
    ),
    curve("join", joined, {"start": 0.1, "peak": 0.6, "rate": 0.7}),
    curve(
        "linear_onecycle",
        lambda peak, div, final: optim.linear_onecycle(10, peak, 0.3, 0.8, div, final),
        {"peak": 0.8, "div": 4.0, "final": 10.0},
    ),
    curve(
        "cosine_onecycle",
        lambda peak, div, final: optim.cosine_onecycle(10, peak, 0.3, div, final),
        {"peak": 0.8, "div": 4.0, "final": 10.0},
    ),
    curve("sgdr", restarts, {"init": 0.1, "peak": 0.7, "end": 0.05, "exponent": 1.3}),
    curve(
        "cyclic",
        lambda base, peak, gamma: optim.cyclic(base, peak, 3, 2, "exp_range", gamma),
        {"base": 0.1, "peak": 0.7, "gamma": 0.9},
    ),
]
