"""Rows of attention, transformers and positions, with their real numbers as tensors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import Model, nn, rng, tree
from tests.contract.case import Case, draw, flags, number


def hyper_case(name: str, make: Callable[[torch.Tensor], Model], x: Callable[[], Any]) -> Case:
    """Output and buffers, differentiated in params, input and a number."""

    def call(params: TensorDict, buffers: TensorDict, x: Any, hyper: torch.Tensor) -> Any:
        return make(hyper[0]).apply(params, buffers, x)

    def args() -> tuple[Any, ...]:
        params, buffers = make(number()[0]).init(rng.key(0))
        return tree.map(lambda leaf: leaf.double() + 0.1, params), buffers, x(), number()

    return Case(f"nn.{name}", call, args)


def sequence() -> tuple[Any, ...]:
    """Steps, resets, and the cache of one layer of two heads that sees three steps."""
    entries = {"key": draw("k", 2, 2, 3, 2), "value": draw("v", 2, 2, 3, 2)}
    cache = tree.new({**entries, "position": torch.tensor([1, 5])}, (2,))
    return draw("x", 2, 3, 4), flags("r", 2, 3), cache


def stacked() -> tuple[Any, ...]:
    """The same with a cache of one layer by its name."""
    x, reset, cache = sequence()
    return x, reset, tree.new({"0": cache}, (2,))


def masked() -> tuple[Any, ...]:
    """Queries, keys, values and both masks; the second key is one for no one."""
    keys = torch.tensor([[True, False, True], [False, False, False]])
    return draw("q", 2, 2, 4), draw("k", 2, 3, 4), None, draw("m", 2, 3), keys


ROWS = [
    hyper_case(
        "multi_head_attention",
        lambda h: nn.multi_head_attention(4, 2, rotary_base=1 + 9 * h),
        masked,
    ),
    hyper_case(
        "causal_attention", lambda h: nn.causal_attention(4, 2, 3, rotary_base=1 + 9 * h), sequence
    ),
    hyper_case(
        "transformer_encoder_layer",
        lambda h: nn.transformer_encoder_layer(
            4, 2, 3, activation=torch.tanh, norm=partial(nn.rms_norm, eps=h)
        ),
        lambda: draw("x", 2, 3, 4),
    ),
    hyper_case(
        "transformer_decoder_layer",
        lambda h: nn.transformer_decoder_layer(
            4, 2, 3, activation=torch.tanh, rotary_base=1 + 9 * h
        ),
        lambda: (draw("x", 2, 3, 4), draw("m", 2, 2, 4)),
    ),
    hyper_case(
        "transformer_stack",
        lambda h: nn.transformer_stack(
            nn.transformer_encoder_layer(4, 2, 3, activation=torch.tanh, rotary_base=1 + 9 * h),
            1,
            nn.layer_norm(4, h),
        ),
        lambda: (3 * draw("steps", 2, 3, 4), flags("m", 3, 3, p=0.8)),
    ),
    hyper_case(
        "causal_transformer",
        lambda h: nn.causal_transformer(
            1, 4, 2, 3, 3, activation=torch.tanh, rotary_base=1 + 9 * h
        ),
        stacked,
    ),
    Case(
        "nn.rotary",
        lambda x, base: nn.rotary(x, torch.tensor([3, 0, 7]), base[0]),
        lambda: (draw("x", 2, 3, 4), 9 * number()),
    ),
    Case(
        "nn.sinusoidal",
        lambda t, base: nn.sinusoidal(t, 4, base[0], dtype=torch.float64),
        lambda: (draw("t", 3), 9 * number()),
    ),
    hyper_case(
        "position_embedding",
        lambda h: nn.position_embedding(5, 4),
        lambda: (draw("x", 2, 3, 4), torch.tensor([4, 0, 1])),
    ),
]
