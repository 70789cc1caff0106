"""RNN, GRU and LSTM of torch.nn step by step, where torch's fused functions won't do.

Those have no rule for vmap, and draw the dropout between layers from the global generator. Names,
shapes, order of gates and packed sequences are torch's.

    RNN:   h' = act(W_ih x + b_ih + W_hh h + b_hh)
    GRU:   r, z = σ(...);  n = tanh(W_in x + b_in + r (W_hn h + b_hn));  h' = n + z (h - n)
    LSTM:  i, f, o = σ(...), g = tanh(...);  c' = f c + i g;  h' = W_hr (o tanh c')
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

State = tuple[Tensor, ...]


class Call(NamedTuple):
    """Arguments of a fused function. ``sizes`` are the rows of each step of a packed sequence."""

    mode: str
    x: Tensor
    state: State
    weights: Sequence[Tensor]
    biased: bool
    layers: int
    dropout: float
    train: bool
    both: bool
    batch_first: bool
    sizes: Tensor | None

    @classmethod
    def of(cls, mode: str, args: Sequence[Any]) -> "Call":
        """Reads the arguments of ``torch.lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``."""
        sizes = None
        if isinstance(args[3], (list, tuple)):  # noqa: UP038 (compiled code knows this form)
            x, sizes, *args = args
            args = (x, *args, False)
        x, state, weights, biased, layers, dropout, train, both, batch_first = args
        state = tuple(state) if mode == "lstm" else (state,)
        numbers = (weights, biased, layers, dropout, train, both, batch_first)
        return cls(mode, x, state, *numbers, sizes)


def run(call: Call, dropped: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Output and last state of all layers.

    Args:
        call: the arguments.
        dropped: dropout between layers.

    Returns:
        ``(out, h)``, and c for LSTM.
    """
    x = call.x.transpose(0, 1) if call.batch_first else call.x
    sizes = None if call.sizes is None else call.sizes.tolist()
    directions = 2 if call.both else 1
    each = len(call.weights) // (call.layers * directions)
    last: list[State] = []
    for layer in range(call.layers):
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            weights = call.weights[at * each : (at + 1) * each]
            start = tuple([part[at] for part in call.state])
            out, state = _direction(call, x, start, weights, sizes, direction == 1)
            outputs.append(out)
            last.append(state)
        x = torch.cat(outputs, -1) if call.both else outputs[0]
        if layer < call.layers - 1:
            x = dropped(x)
    states = [torch.stack(parts) for parts in zip(*last, strict=True)]
    return x.transpose(0, 1) if call.batch_first else x, *states


def _direction(
    call: Call,
    x: Tensor,
    start: State,
    weights: Sequence[Tensor],
    sizes: list[int] | None,
    reverse: bool,
) -> tuple[Tensor, State]:
    """One layer over all steps, in one direction."""
    biases = tuple(weights[2:4]) if call.biased else (None, None)
    projection = weights[-1] if len(weights) % 2 else None
    gates = linear(x, weights[0], biases[0])
    rows = gates.unbind(0) if sizes is None else gates.split(sizes)
    steps = range(len(rows))[::-1] if reverse else range(len(rows))
    state = start if sizes is None else tuple([part[: rows[steps[0]].shape[0]] for part in start])
    outputs: list[Any] = [None] * len(rows)
    ended: list[State] = []
    for step in steps:
        n, held = rows[step].shape[0], state[0].shape[0]
        if n < held:  # sequences that end here keep their state
            ended.append(tuple([part[n:] for part in state]))
            state = tuple([part[:n] for part in state])
        elif n > held:  # going backward they begin here
            pairs = zip(state, start, strict=True)
            state = tuple([torch.cat([part, first[held:n]]) for part, first in pairs])
        hidden = linear(state[0], weights[1], biases[1])
        state = _CELLS[call.mode](rows[step], hidden, state)
        if projection is not None:
            state = linear(state[0], projection), *state[1:]
        outputs[step] = state[0]
    for rest in reversed(ended):
        state = tuple([torch.cat(pair) for pair in zip(state, rest, strict=True)])
    return torch.stack(outputs) if sizes is None else torch.cat(outputs), state


def step(mode: str, x: Tensor, state: State, weights: Sequence[Any]) -> State:
    """One step of one layer.

    Args:
        mode: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        x: the input.
        state: h, and c for LSTM.
        weights: W_ih, W_hh, b_ih and b_hh; the biases may be None.

    Returns:
        The state after it.
    """
    hidden = linear(state[0], weights[1], weights[3])
    return _CELLS[mode](linear(x, weights[0], weights[2]), hidden, state)


def _lstm(x: Tensor, hidden: Tensor, state: State) -> State:
    i, f, g, o = (x + hidden).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, hidden: Tensor, state: State) -> State:
    (r, z, n), (r_h, z_h, n_h) = x.chunk(3, -1), hidden.chunk(3, -1)
    n = (n + (r + r_h).sigmoid() * n_h).tanh()
    return (n + (z + z_h).sigmoid() * (state[0] - n),)


_CELLS: dict[str, Callable[[Tensor, Tensor, State], State]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": lambda x, hidden, state: ((x + hidden).tanh(),),
    "rnn_relu": lambda x, hidden, state: ((x + hidden).relu(),),
}
