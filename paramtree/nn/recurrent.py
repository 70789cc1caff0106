"""Recurrent layers, unrolled over time: LSTM, GRU and the plain one in torch's parametrization.

Time comes first. The input is x [T, *batch, n_in] and the output [T, *batch, H]; a tuple
(x, reset, h[, c]) also gives the carry, and then the output is (out, h[, c]). A reset makes the
carry zero before its step is processed. Reversed in time, "before" and "final" mean in the order of
processing: such a layer begins at step T - 1, its final carry is that after step 0, and its resets
are the last steps of episodes (``done``), where those of others are the first (``is_init``). In a
layer of both directions a reset is the first step of an episode to both.
"""

import math
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ..model import Model
from . import _check, initializers
from ._parts import Call, assembled
from .cells import GRU, LSTM, RNN
from .initializers import Initializer, make_params
from .noise import dropout as dropout_layer
from .unroll import Cell, unroll

_CARRIES = ("h", "c")


def lstm(
    n_in: int,
    n_hidden: int,
    n_layers: int = 1,
    *,
    bidirectional: bool = False,
    reverse: bool = False,
    dropout: float | Tensor = 0.0,
    train: bool = True,
    weight_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Long short-term memory over time.

        i, f, g, o = W_ih x_t + b_ih + W_hh h_(t-1) + b_hh, in blocks of n_hidden rows
        c_t = σ(f) c_(t-1) + σ(i) tanh(g),  h_t = σ(o) tanh(c_t)

    Params: weight_ih [4H, n_in], weight_hh [4H, H], bias_ih [4H], bias_hh [4H], as in
    torch.nn.LSTMCell; with both directions, a tree of these for each, "forward" and "backward";
    with several layers, a tree of that for each, "0", "1", ....
    Buffers: keys of dropout_0, dropout_1, ..., where there is dropout between layers.

    Args:
        n_in: inputs at a step.
        n_hidden: H, outputs at a step and direction.
        n_layers: how many layers, each on the outputs of the one before.
        bidirectional: whether a second cell reads the steps from the last to the first; outputs and
            carries are then the two concatenated, [..., 2H].
        reverse: whether the only cell does so; its resets are then the last steps of episodes.
        dropout: rate at which what a layer gives the next one is set to zero.
        train: whether there is dropout.
        weight_init: initializer of weight_ih; default for all, as in torch: uniform on
            [-H^-1/2, H^-1/2).
        recurrent_init: of weight_hh.
        bias_init: of both biases.
        dtype: of the params.

    Returns:
        Model whose input is x float [T, *batch, n_in], T >= 1, and gives out [T, *batch, H]; or a
        tuple (x, reset), (x, reset, h) or (x, reset, h, c), with reset bool [T, *batch] or None and
        h, c float [*batch, H] or zero, and gives (out, h, c) with the final carry. The carries of
        several layers are concatenated, [*batch, n_layers H].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1, or the directions contradict one another.

    Source: Hochreiter & Schmidhuber (1997), Long short-term memory; Gers, Schmidhuber, Cummins
    (2000), Learning to forget, section 3.
    """
    inits = (weight_init, recurrent_init, bias_init)
    ways, drops = (bidirectional, reverse), (dropout, train)
    return _recurrent("lstm", LSTM, (n_in, n_hidden, n_layers), ways, drops, inits, dtype)


def gru(
    n_in: int,
    n_hidden: int,
    n_layers: int = 1,
    *,
    bidirectional: bool = False,
    reverse: bool = False,
    dropout: float | Tensor = 0.0,
    train: bool = True,
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
    torch.nn.GRUCell; with both directions, a tree of these for each, "forward" and "backward";
    with several layers, a tree of that for each, "0", "1", ....
    Buffers: keys of dropout_0, dropout_1, ..., where there is dropout between layers.

    Args:
        n_in: inputs at a step.
        n_hidden: H, outputs at a step and direction.
        n_layers: how many layers, each on the outputs of the one before.
        bidirectional: whether a second cell reads the steps from the last to the first; outputs and
            carries are then the two concatenated, [..., 2H].
        reverse: whether the only cell does so; its resets are then the last steps of episodes.
        dropout: rate at which what a layer gives the next one is set to zero.
        train: whether there is dropout.
        weight_init: initializer of weight_ih; default for all, as in torch: uniform on
            [-H^-1/2, H^-1/2).
        recurrent_init: of weight_hh.
        bias_init: of both biases.
        dtype: of the params.

    Returns:
        Model whose input is x float [T, *batch, n_in], T >= 1, and gives out [T, *batch, H]; or a
        tuple (x, reset) or (x, reset, h), with reset bool [T, *batch] or None and h float
        [*batch, H] or zero, and gives (out, h) with the final carry. The carries of several layers
        are concatenated, [*batch, n_layers H].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1, or the directions contradict one another.

    Source: Cho et al. (2014), Learning phrase representations using RNN encoder-decoder, section
    2.3, with the reset gate after the product, as cuDNN has it.
    """
    inits = (weight_init, recurrent_init, bias_init)
    ways, drops = (bidirectional, reverse), (dropout, train)
    return _recurrent("gru", GRU, (n_in, n_hidden, n_layers), ways, drops, inits, dtype)


def rnn(
    n_in: int,
    n_hidden: int,
    n_layers: int = 1,
    *,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    reverse: bool = False,
    dropout: float | Tensor = 0.0,
    train: bool = True,
    weight_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Plain recurrent layer over time.

        h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)

    Params: weight_ih [H, n_in], weight_hh [H, H], bias_ih [H], bias_hh [H], as in torch.nn.RNNCell;
    with directions and layers as in `gru`.
    Buffers: as in `gru`.

    Args:
        n_in: inputs at a step.
        n_hidden: H, outputs at a step and direction.
        n_layers: as in `gru`.
        nonlinearity: "tanh", or "relu" in its place.
        bidirectional: as in `gru`.
        reverse: likewise.
        dropout: likewise.
        train: likewise.
        weight_init: likewise.
        recurrent_init: likewise.
        bias_init: likewise.
        dtype: of the params.

    Returns:
        Model as in `gru`.

    Raises:
        TypeError: as in `gru`.
        ValueError: as in `gru`, or the nonlinearity is another.

    Source: Elman (1990), Finding structure in time.
    """
    if nonlinearity not in RNN:
        raise ValueError(f"rnn: nonlinearity is {nonlinearity!r}, expected one of {', '.join(RNN)}")
    inits = (weight_init, recurrent_init, bias_init)
    ways, drops = (bidirectional, reverse), (dropout, train)
    cell = RNN[nonlinearity]
    return _recurrent("rnn", cell, (n_in, n_hidden, n_layers), ways, drops, inits, dtype)


def _recurrent(
    layer: str,
    cell: Cell,
    sizes: tuple[int, int, int],
    ways: tuple[bool, bool],
    drops: tuple[float | Tensor, bool],
    inits: tuple[Initializer | None, ...],
    dtype: torch.dtype,
) -> Model:
    (n_in, n_hidden, n_layers), (bidirectional, reverse), (rate, train) = sizes, ways, drops
    _check.sizes(layer, n_in=n_in, n_hidden=n_hidden, n_layers=n_layers)
    _check.real(layer, "dropout", rate, 0.0, 1.0)
    thins = isinstance(rate, Tensor) or rate != 0
    if n_layers == 1:
        if thins:
            raise ValueError(f"{layer}: dropout is {rate}, expected 0 for one layer")
        return _layer(layer, cell, n_in, n_hidden, bidirectional, reverse, inits, dtype)
    width = n_hidden * (1 + bidirectional)
    parts = {
        str(i): _layer(
            layer, cell, width if i else n_in, n_hidden, bidirectional, reverse, inits, dtype
        )
        for i in range(n_layers)
    }
    if thins:
        parts |= {f"dropout_{i}": dropout_layer(rate, train=train) for i in range(n_layers - 1)}
    made = f"{layer}({n_in}, {n_hidden}, {n_layers})"

    def forward(call: Call, inputs: Any) -> Any:
        x, reset, *carry = _check.inputs(layer, inputs, "x", "reset", *_CARRIES[: cell.carries])
        given: list[list[Any]] = []
        for name, value in zip(_CARRIES, carry, strict=False):
            if isinstance(value, Tensor) and isinstance(x, Tensor):
                wanted = (*x.shape[1:-1], n_layers * width)
                _check.shape(layer, name, value, wanted, f"*batch of x, and {made}")
                given.append([*value.split(width, -1)])
            else:
                given.append([value] * n_layers)
        after = []
        for i, own in enumerate(zip(*given, strict=True)):
            x, *last = call(str(i), (x, reset, *own))
            after.append(last)
            if f"dropout_{i}" in parts:
                x = call(f"dropout_{i}", x)
        if isinstance(inputs, Tensor):
            return x
        return x, *[torch.cat(column, -1) for column in zip(*after, strict=True)]

    return assembled(layer, parts, forward)


def _layer(
    layer: str,
    cell: Cell,
    n_in: int,
    n_hidden: int,
    bidirectional: bool,
    reverse: bool,
    inits: tuple[Initializer | None, ...],
    dtype: torch.dtype,
) -> Model:
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
        return make_params(layer, key, shapes, makers, dtype)

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
            starts = _ends(reset) if bidirectional and backwards else reset
            results.append(_run(cell, x, starts, own, start, backwards))
        out, *last = [_joined(list(parts)) for parts in zip(*results, strict=True)]
        out = out.reshape(length, *batch, width)
        if isinstance(inputs, Tensor):
            return out, buffers
        return (out, *[c.reshape(*batch, width) for c in last]), buffers

    return Model(init, apply)


def _ends(reset: Tensor | None) -> Tensor | None:
    """The last steps of episodes [1, T, N], where a backward cell starts, from the first ones."""
    if reset is None:
        return None
    return torch.cat((reset[:, 1:], torch.zeros_like(reset[:, :1])), 1)


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
    names = _CARRIES[: cell.carries]
    x, reset, *given = _check.inputs(layer, inputs, "x", "reset", *names)
    dtype = weights[0][0].dtype
    _check.floats(layer, made, x, n_in, weights[0][0], "weight_ih")
    if x.dim() < 2 or x.shape[0] < 1:
        got = tuple(x.shape)
        raise ValueError(f"{layer}: x has shape {got}, expected [T, *batch, {n_in}] with T >= 1")
    if reset is not None:
        if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
            got = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
            raise TypeError(f"{layer}: reset is {got}, expected a bool tensor or None")
        _check.shape(layer, "reset", reset, tuple(x.shape[:-1]), "[T, *batch] of x")
    wanted, carry = (*x.shape[1:-1], width), []
    for name, value in zip(names, given, strict=True):
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
