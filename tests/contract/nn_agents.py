"""Rows of noisy layers, heads, ensembles, normalizers, cells over time, and converted params."""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import Model, nn, rng, tree
from tests.contract.case import Case, draw, flags, number
from tests.contract.nn_attention import hyper_case


def scale_case(name: str, make: Callable[[Any, Any], Any], low: float, high: float) -> Case:
    """A function of raw numbers, differentiated in them and in its two bounds."""

    def call(x: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        return make(*bounds.unbind(-1))(x)

    def args() -> tuple[torch.Tensor, ...]:
        return draw("x", 5, low=-3.0, high=3.0), torch.tensor([low, high], dtype=torch.float64)

    return Case(f"nn.{name}", call, args)


def normalizer_case(name: str, make: Callable[[Any], Model], x: Callable[[], Any]) -> Case:
    """Output and buffers, differentiated in buffers, input and a number."""

    def call(buffers: TensorDict, x: Any, hyper: torch.Tensor) -> Any:
        return make(hyper[0]).apply(tree.new({}), buffers, x)

    def args() -> tuple[Any, ...]:
        buffers = make(number()[0]).init(rng.key(0))[1]
        return tree.map(lambda leaf: leaf + 0.5, buffers), x(), number()

    return Case(f"nn.{name}", call, args)


def blend(params: TensorDict, buffers: TensorDict, inputs: Any) -> Any:
    x, h = inputs
    h = torch.lerp(x, h, GATE(params, tree.new({}), x).sigmoid())
    return (h, h), buffers


def trajectory() -> TensorDict:
    entries = {"x": draw("x", 2, 4, 3), "h": draw("h", 2, 4, 3), "is_init": flags("r", 2, 4)}
    return tree.new(entries, (2, 4))


def modelled(params: TensorDict, td: TensorDict) -> Any:
    """What the two ways of a model write."""
    learn, act = (nn.recurrent_model(nn.gru(3, 3), "x", "y", "h", sequence=s) for s in (1, 0))
    return [model(params, tree.new({}), td)["y"] for model in (learn, act)]


def float_params(layer: Model) -> TensorDict:
    return tree.map(lambda leaf: leaf.double(), layer.init(rng.key(0))[0])


def converted(params: TensorDict, cells: TensorDict) -> Any:
    """There and back again, with a change on the way."""
    flat = tree.map(torch.sin, nn.recurrent_to_torch(cells))
    return (
        nn.lstm_from_haiku(tree.map(torch.sin, nn.lstm_to_haiku(params))),
        nn.lstm_from_flax(tree.map(torch.sin, nn.lstm_to_flax(params))),
        nn.recurrent_from_torch(flat),
        nn.gru_from_flax(tree.map(torch.sin, nn.gru_to_flax(cells["0"]))),
    )


GATE = nn.linear(3, 3)

ROWS = [
    hyper_case("dropout", lambda h: nn.dropout(h), lambda: draw("x", 4, 3)),
    hyper_case(
        "noisy_linear",
        lambda h: nn.noisy_linear(3, 2, sigma_init=h),
        lambda: draw("x", 4, 3),
    ),
    hyper_case(
        "ensemble",
        lambda h: nn.ensemble(nn.sequential(nn.linear(3, 2), nn.dropout(h)), 2),
        lambda: draw("x", 4, 3),
    ),
    hyper_case(
        "dueling_head",
        lambda h: nn.dueling_head(nn.mlp(3, 4, 2, activation=torch.tanh), nn.linear(3, 1)),
        lambda: draw("x", 4, 3),
    ),
    hyper_case("normal_head", lambda h: nn.normal_head(3, 2), lambda: draw("x", 4, 3)),
    hyper_case(
        "squashed_normal_head",
        lambda h: nn.squashed_normal_head(3, 2, upscale=h, to_scale=nn.tanh_scale(-h, h)),
        lambda: draw("x", 4, 3),
    ),
    scale_case("softplus_scale", nn.softplus_scale, 0.7, 0.1),
    scale_case("clamped_scale", nn.clamped_scale, -1.1, 1.3),
    scale_case("tanh_scale", nn.tanh_scale, -1.1, 1.3),
    normalizer_case(
        "running_normalizer",
        lambda h: nn.running_normalizer(3, eps=h, clip=2 * h),
        lambda: (draw("x", 2, 4, 3), flags("m", 2, 4, p=0.7)),
    ),
    normalizer_case(
        "reward_normalizer",
        lambda h: nn.reward_normalizer(h, eps=h, clip=2 * h),
        lambda: (draw("r", 4, 2), flags("e", 4, 2), draw("h", 2)),
    ),
    hyper_case("rnn", lambda h: nn.rnn(3, 4, 2), lambda: (draw("x", 5, 2, 3), flags("r", 5, 2))),
    hyper_case(
        "scan",
        lambda h: nn.scan(Model(GATE.init, blend)),
        lambda: (draw("x", 4, 2, 3), flags("r", 4, 2), draw("h", 2, 3)),
    ),
    Case("nn.recurrent_model", modelled, lambda: (float_params(nn.gru(3, 3)), trajectory())),
    Case(
        "nn.lstm_from_haiku",
        converted,
        lambda: (float_params(nn.lstm(3, 2)), float_params(nn.gru(3, 2, 2))),
        covers=(
            "nn.lstm_to_haiku",
            "nn.lstm_from_flax",
            "nn.lstm_to_flax",
            "nn.gru_from_flax",
            "nn.gru_to_flax",
            "nn.recurrent_from_torch",
            "nn.recurrent_to_torch",
        ),
    ),
]
