"""Recurrent layers, unrolled over time: LSTM and GRU in torch's parametrization.

Time comes first. The input is x [T, *batch, n_in] and the output [T, *batch, H]; a tuple
(x, reset, h[, c]) also gives the carry, and then the output is (out, h[, c]). A reset makes the
carry zero before its step is processed. Reversed in time, "before" and "final" mean in the order of
processing: such a layer begins at step T - 1 and its final carry is that after step 0.
"""

import math
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ..model import Model
from . import _check, initializers
from .cells import GRU, LSTM
from .initializers import Initializer
from .unroll import Cell, unroll


def lstm(
    n_in: int,
    n_hidden: int,
    *,
    bidirectional: bool = False,
    reverse: bool = False,
    weight_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Long short-term memory over time.

        i, f, g, o = W_ih x_t + b_ih + W_hh h_(t-1) + b_hh, in blocks of n_hidden rows
        c_t = σ(f) c_(t-1) + σ(i) tanh(g),  h_t = σ(o) tanh(c_t)

    Params: weight_ih [4H, n_in], weight_hh [4H, H], bias_ih [4H], bias_hh [4H], as in
    torch.nn.LSTMCell; with both directions, a tree of these for each, "forward" and "backward".

    Args:
        n_in: inputs at a step.
        n_hidden: H, outputs at a step and direction.
        bidirectional: whether a second cell reads the steps from the last to the first; outputs and
            carries are then the two concatenated, [..., 2H].
        reverse: whether the only cell does so.
        weight_init: initializer of weight_ih; default for all, as in torch: uniform on
            [-H^-1/2, H^-1/2).
        recurrent_init: of weight_hh.
        bias_init: of both biases.
        dtype: of the params.

    Returns:
        Model whose input is x float [T, *batch, n_in], T >= 1, and gives out [T, *batch, H]; or a
        tuple (x, reset), (x, reset, h) or (x, reset, h, c), with reset bool [T, *batch] or None and
        h, c float [*batch, H] or zero, and gives (out, h, c) with the final carry.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1, or the directions contradict one another.

    Source: Hochreiter & Schmidhuber (1997), Long short-term memory; Gers, Schmidhuber, Cummins
    (2000), Learning to forget, section 3.
    """
    inits = (weight_init, recurrent_init, bias_init)
    return _recurrent("lstm", LSTM, n_in, n_hidden, bidirectional, reverse, inits, dtype)


def gru(
    n_in: int,
    n_hidden: int,
    *,
    bidirectional: bool = False,
    reverse: bool = False,
    weight_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Gated recurrent unit over time.

        r, z = σ(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh), the first two blocks of n_hidden rows
        n = tanh(W_in x_t + b_in + r (W_hn h_(t-1) + b_hn)), the third
        h_t = (1 - z) n + z h_(t-1)

    Params: weight_ih [3H, n_in], weight_hh [3H, H], bias_ih [3H], bias_hh [3H], as in
    torch.nn.GRUCell; with both directions, a tree of these for each, "forward" and "backward".

    Args:
        n_in: inputs at a step.
        n_hidden: H, outputs at a step and direction.
        bidirectional: whether a second cell reads the steps from the last to the first; outputs and
            carries are then the two concatenated, [..., 2H].
        reverse: whether the only cell does so.
        weight_init: initializer of weight_ih; default for all, as in torch: uniform on
            [-H^-1/2, H^-1/2).
        recurrent_init: of weight_hh.
        bias_init: of both biases.
        dtype: of the params.

    Returns:
        Model whose input is x float [T, *batch, n_in], T >= 1, and gives out [T, *batch, H]; or a
        tuple (x, reset) or (x, reset, h), with reset bool [T, *batch] or None and h float
        [*batch, H] or zero, and gives (out, h) with the final carry.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1, or the directions contradict one another.

    Source: Cho et al. (2014), Learning phrase representations using RNN encoder-decoder, section
    2.3, with the reset gate after the product, as cuDNN has it.
    """
    inits = (weight_init, recurrent_init, bias_init)
    return _recurrent("gru", GRU, n_in, n_hidden, bidirectional, reverse, inits, dtype)


def _recurrent(
    layer: str,
    cell: Cell,
    n_in: int,
    n_hidden: int,
    bidirectional: bool,
    reverse: bool,
    inits: tuple[Initializer | None, ...],
    dtype: torch.dtype,
) -> Model:
    _check.sizes(layer, n_in=n_in, n_hidden=n_hidden)
    kinds = ("weight_init", "recurrent_init", "bias_init")
    _check.functions(layer, **dict(zip(kinds, inits, strict=True)))
    if bidirectional and reverse:
        raise ValueError(
            f"{layer}: reverse is given with bidirectional, expected one of them alone"
        )
    made, rows = f"{layer}({n_in}, {n_hidden})", cell.gates * n_hidden
    shapes = {
        "weight_ih": (rows, n_in),
        "weight_hh": (rows, n_hidden),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
    }
    directions = {"forward": False, "backward": True} if bidirectional else {}
    default = initializers.uniform(n_hidden**-0.5)
    weight, recurrent, bias = (init or default for init in inits)
    makers = dict(zip(shapes, (weight, recurrent, bias, bias), strict=True))

    def init_one(key: Tensor) -> TensorDict:
        named = shapes.items()
        return tree.new({n: makers[n](rng.fold_in(key, n), shape, dtype) for n, shape in named})

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        if not bidirectional:
            return init_one(key), tree.new({})
        return tree.new({n: init_one(rng.fold_in(key, n)) for n in directions}), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, inputs: Any) -> tuple[Any, TensorDict]:
        if bidirectional:
            parts = _check.level(layer, "params", params, directions)
            cells = [(parts[name], backwards) for name, backwards in directions.items()]
        else:
            cells = [(params, reverse)]
        weights = [_check.parameters(layer, made, part, shapes) for part, _ in cells]
        width = len(cells) * n_hidden
        x, reset, carry = _inputs(layer, made, cell, inputs, n_in, width, weights)
        (length, *batch), count = x.shape[:-1], math.prod(x.shape[1:-1])
        x = x.reshape(1, length, count, n_in)
        reset = None if reset is None else reset.reshape(1, length, count)
        halves = [c.reshape(1, count, width).split(n_hidden, -1) for c in carry]
        results: list[tuple[Tensor, ...]] = []
        for own, (_, backwards), start in zip(
            weights, cells, zip(*halves, strict=True), strict=True
        ):
            results.append(_run(cell, x, reset, own, start, backwards))
        out, *last = [_joined(list(parts)) for parts in zip(*results, strict=True)]
        out = out.reshape(length, *batch, width)
        if isinstance(inputs, Tensor):
            return out, buffers
        return (out, *[c.reshape(*batch, width) for c in last]), buffers

    return Model(init, apply)


def _joined(parts: list[Tensor]) -> Tensor:
    """The results of the directions side by side."""
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def _run(
    cell: Cell,
    x: Tensor,
    reset: Tensor | None,
    weights: list[Tensor],
    carry: tuple[Tensor, ...],
    reverse: bool,
) -> tuple[Tensor, ...]:
    """The output and all final carries of one direction."""
    out, *last = unroll(cell, x, reset, [w.unsqueeze(0) for w in weights], carry, reverse)
    return out, out[:, 0 if reverse else -1], *last


def _inputs(
    layer: str,
    made: str,
    cell: Cell,
    inputs: Any,
    n_in: int,
    width: int,
    weights: list[list[Tensor]],
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Input, reset and whole carry, after a look at each."""
    names = ("x", "reset", "h", "c")[: 2 + cell.carries]
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if not 1 <= len(given) <= len(names):
        wanted = ", ".join(names)
        raise ValueError(
            f"{layer}: the input is a tuple of {len(given)}, expected ({wanted}) or less"
        )
    x: Any = given[0]
    reset = given[1] if len(given) > 1 else None
    dtype = weights[0][0].dtype
    _check.floats(layer, made, x, n_in, dtype)
    if x.dim() < 2 or x.shape[0] < 1:
        got = tuple(x.shape)
        raise ValueError(f"{layer}: x has shape {got}, expected [T, *batch, {n_in}] with T >= 1")
    if reset is not None:
        if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
            got = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
            raise TypeError(f"{layer}: reset is {got}, expected a bool tensor or None")
        _check.shape(layer, "reset", reset, tuple(x.shape[:-1]), "[T, *batch] of x")
    wanted, carry = (*x.shape[1:-1], width), []
    for i, name in enumerate(names[2:], 2):
        value = given[i] if len(given) > i else None
        if value is None:
            value = x.new_zeros(wanted)
        elif not isinstance(value, Tensor):
            got = type(value).__name__
            raise TypeError(f"{layer}: {name} is a {got}, expected a tensor or None")
        else:
            _check.shape(layer, name, value, wanted, f"*batch of x, and {made}")
            _check.same_dtype(layer, name, value, dtype)
        carry.append(value.to(dtype))
    return x.to(dtype), reset, carry
