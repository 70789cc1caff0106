"""Parameters of other libraries' recurrent layers as those of ours, and back.

Others' come as nested mappings of arrays, numpy's or torch's. What is given back are trees of
tensors, which share memory with nothing that was given.

    ours, torch   rows of weight_ih, weight_hh in blocks i, f, g, o (LSTM) or r, z, n (GRU)
    haiku         columns of one w [n_in + H, 4H] in blocks i, g, f, o, and σ(f + 1)
    flax          one kernel [n_in, H] or [H, H] for each gate, and one bias for what is summed

Haiku's GRU has no counterpart: its reset gate acts on h before the product, ours after it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_FLAT = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_l(\d+)(_reverse)?")


def lstm_from_haiku(linear: Mapping[str, Any] | TensorDict) -> TensorDict:
    """Params of `lstm` from those of haiku's LSTM.

    The 1 that haiku adds to the forget gate goes into bias_ih, and bias_hh is zero.

    Args:
        linear: w [n_in + H, 4H] and b [4H]; haiku has them under ".../lstm/linear".

    Returns:
        The params.

    Raises:
        TypeError: a value is no array of floats.
        ValueError: names or shapes are others.
    """
    fn = "lstm_from_haiku"
    w, b = _arrays(fn, "linear", linear, {"w": 2, "b": 1})
    size = b.shape[0] // 4
    if b.shape[0] % 4 or not size or w.shape[1] != 4 * size or w.shape[0] <= size:
        raise ValueError(
            f"{fn}: w has shape {tuple(w.shape)} and b {tuple(b.shape)}, expected [n_in + H, 4H] "
            "and [4H]"
        )
    rows, bias = _reordered(w.mT, 0, [0, 2, 1, 3]), _reordered(b, 0, [0, 2, 1, 3])
    weight_ih, weight_hh = rows[:, :-size].clone(), rows[:, -size:].clone()
    bias_ih = bias + _one_for_forget(bias)
    return tree.new(_named(weight_ih, weight_hh, bias_ih, torch.zeros_like(bias)))


def lstm_to_haiku(params: TensorDict) -> TensorDict:
    """Params of haiku's LSTM from those of `lstm`; the inverse of `lstm_from_haiku`.

    Args:
        params: of one layer and direction.

    Returns:
        w [n_in + H, 4H] and b [4H], for haiku's ".../lstm/linear".

    Raises:
        TypeError: a value is no tensor of floats.
        ValueError: names or shapes are others.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = _ours("lstm_to_haiku", params, 4)
    bias = bias_ih + bias_hh - _one_for_forget(bias_ih)
    w = _reordered(torch.cat((weight_ih, weight_hh), 1).mT, 1, [0, 2, 1, 3])
    b = _reordered(bias, 0, [0, 2, 1, 3])
    return tree.new({"w": w, "b": b})


def lstm_from_flax(cell: Mapping[str, Any] | TensorDict) -> TensorDict:
    """Params of `lstm` from those of flax's LSTMCell or OptimizedLSTMCell; bias_ih is zero.

    Args:
        cell: ii, if, ig, io, each of kernel [n_in, H], and hi, hf, hg, ho, each of kernel [H, H]
            and bias [H].

    Returns:
        The params.

    Raises:
        TypeError: a value is no array of floats.
        ValueError: names or shapes are others.
    """
    fn, gates = "lstm_from_flax", "ifgo"
    into = [_arrays(fn, f"i{g}", _level(fn, cell, f"i{g}"), {"kernel": 2}) for g in gates]
    back = [
        _arrays(fn, f"h{g}", _level(fn, cell, f"h{g}"), {"kernel": 2, "bias": 1}) for g in gates
    ]
    _require_gates(fn, [kernel for (kernel,) in into], [part[0] for part in back])
    weight_ih = torch.cat([kernel.mT for (kernel,) in into])
    weight_hh = torch.cat([kernel.mT for kernel, _ in back])
    bias = torch.cat([bias for _, bias in back])
    return tree.new(_named(weight_ih, weight_hh, torch.zeros_like(bias), bias))


def lstm_to_flax(params: TensorDict) -> TensorDict:
    """Params of flax's LSTMCell from those of `lstm`.

    Args:
        params: of one layer and direction.

    Returns:
        A tree as in `lstm_from_flax`.

    Raises:
        TypeError: a value is no tensor of floats.
        ValueError: names or shapes are others.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = _ours("lstm_to_flax", params, 4)
    made = {}
    columns = (weight_ih.chunk(4), weight_hh.chunk(4), (bias_ih + bias_hh).chunk(4))
    for gate, into, back, bias in zip("ifgo", *columns, strict=True):
        made[f"i{gate}"] = tree.new({"kernel": into.mT.clone()})
        made[f"h{gate}"] = tree.new({"kernel": back.mT.clone(), "bias": bias.clone()})
    return tree.new(made)


def gru_from_flax(cell: Mapping[str, Any] | TensorDict) -> TensorDict:
    """Params of `gru` from those of flax's GRUCell; bias_hh is zero but in its last block.

    Args:
        cell: ir, iz, in, each of kernel [n_in, H] and bias [H]; hr, hz of kernel [H, H]; and hn of
            kernel [H, H] and bias [H].

    Returns:
        The params.

    Raises:
        TypeError: a value is no array of floats.
        ValueError: names or shapes are others.
    """
    fn, gates, both = "gru_from_flax", "rzn", {"kernel": 2, "bias": 1}
    into = [_arrays(fn, f"i{g}", _level(fn, cell, f"i{g}"), both) for g in gates]
    back = [
        _arrays(fn, f"h{g}", _level(fn, cell, f"h{g}"), both if g == "n" else {"kernel": 2})
        for g in gates
    ]
    _require_gates(fn, [kernel for kernel, _ in into], [part[0] for part in back])
    weight_ih = torch.cat([kernel.mT for kernel, _ in into])
    weight_hh = torch.cat([part[0].mT for part in back])
    bias_n = back[2][1]
    bias_hh = torch.cat((bias_n.new_zeros(2 * len(bias_n)), bias_n))
    return tree.new(_named(weight_ih, weight_hh, torch.cat([bias for _, bias in into]), bias_hh))


def gru_to_flax(params: TensorDict) -> TensorDict:
    """Params of flax's GRUCell from those of `gru`.

    Args:
        params: of one layer and direction.

    Returns:
        A tree as in `gru_from_flax`.

    Raises:
        TypeError: a value is no tensor of floats.
        ValueError: names or shapes are others.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = _ours("gru_to_flax", params, 3)
    made = {}
    columns = (weight_ih.chunk(3), weight_hh.chunk(3), bias_ih.chunk(3), bias_hh.chunk(3))
    for gate, into, back, bias, shift in zip("rzn", *columns, strict=True):
        kernel = back.mT.clone()
        last = gate == "n"
        bias = bias.clone() if last else bias + shift
        made[f"i{gate}"] = tree.new({"kernel": into.mT.clone(), "bias": bias})
        own = {"kernel": kernel, "bias": shift.clone()} if last else {"kernel": kernel}
        made[f"h{gate}"] = tree.new(own)
    return tree.new(made)


def recurrent_from_torch(params: Mapping[str, Any] | TensorDict) -> TensorDict:
    """Params of `lstm`, `gru` or `rnn` from those of torch.nn's, all layers and directions.

    Args:
        params: weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, and likewise with l1, l2, ...
            and with _reverse: a module's `state_dict()`, or a tree of it.

    Returns:
        The params: for one layer and direction those of a cell, else nested by layers "0", "1",
        ..., and in them by "forward" and "backward".

    Raises:
        TypeError: a value is no array of floats.
        ValueError: a name is unknown or missing.
    """
    fn = "recurrent_from_torch"
    found = _level(fn, {"params": params}, "params")
    cells: dict[tuple[int, bool], dict[str, Tensor]] = {}
    for name, value in found.items():
        match = _FLAT.fullmatch(str(name))
        if match is None:
            raise ValueError(f"{fn}: params hold an unknown {name}, expected such as weight_ih_l0")
        leaf, layer, backward = match.groups()
        dims = 2 if leaf.startswith("weight") else 1
        cell = cells.setdefault((int(layer), backward is not None), {})
        (cell[leaf],) = _arrays(fn, "params", {str(name): value}, {str(name): dims})
    n_layers = 1 + max([layer for layer, _ in cells], default=0)
    both = any([backward for _, backward in cells])
    layers = {}
    for i in range(n_layers):
        ways = {}
        for backward in (False, True) if both else (False,):
            cell, ending = cells.get((i, backward), {}), f"_l{i}" + "_reverse" * backward
            lacks = [f"{name}{ending}" for name in _NAMES if name not in cell]
            if lacks:
                raise ValueError(f"{fn}: params lack {', '.join(lacks)}")
            ways["backward" if backward else "forward"] = tree.new(
                {name: cell[name] for name in _NAMES}
            )
        layers[str(i)] = tree.new(ways) if both else ways["forward"]
    return tree.new(layers) if n_layers > 1 else layers["0"]


def recurrent_to_torch(params: TensorDict) -> TensorDict:
    """Params of torch.nn.LSTM, GRU or RNN from those of `lstm`, `gru` or `rnn`.

    Args:
        params: of any number of layers, of one or both directions.

    Returns:
        A tree with the names of the module's `state_dict()`.

    Raises:
        TypeError: params is no tree, or a value is no tensor of floats.
        ValueError: names are others.
    """
    fn = "recurrent_to_torch"
    tree.require_tree(fn, "params", params)
    entries = tree.entries(params)
    layers = entries if "0" in entries else {"0": params}
    made = {}
    for layer, part in layers.items():
        ways = _level(fn, layers, layer)
        ways = ways if "forward" in ways else {"forward": part}
        for way in ways:
            cell = _level(fn, ways, way)
            ending = f"_l{layer}" + "_reverse" * (way == "backward")
            dims = {name: 2 if name.startswith("weight") else 1 for name in _NAMES}
            values = _arrays(fn, way, cell, dims)
            made |= {f"{name}{ending}": x for name, x in zip(_NAMES, values, strict=True)}
    return tree.new(made)


def _named(*values: Tensor) -> dict[str, Tensor]:
    return dict(zip(_NAMES, values, strict=True))


def _one_for_forget(bias: Tensor) -> Tensor:
    """1 in the block of the forget gate, in our order, and 0 elsewhere."""
    block = torch.zeros_like(bias[: len(bias) // 4])
    return torch.cat((block, block + 1.0, block, block))


def _reordered(x: Tensor, dim: int, order: list[int]) -> Tensor:
    """Four blocks along a dim in another order."""
    blocks = x.chunk(4, dim)
    return torch.cat([blocks[i] for i in order], dim)


def _level(fn: str, given: Any, name: str) -> dict[str, Any]:
    """One entry of a mapping or a tree, which is one itself, as a dictionary."""
    entries = _entries(fn, "the params", given)
    if name not in entries:
        raise ValueError(f"{fn}: the params lack {name}; they hold {', '.join(entries)}")
    return _entries(fn, name, entries[name])


def _entries(fn: str, name: str, given: Any) -> dict[str, Any]:
    found = tree.as_tree(given) if not isinstance(given, Mapping) else None
    if found is not None:
        return tree.entries(found)
    if not isinstance(given, Mapping):
        raise TypeError(f"{fn}: {name} is a {type(given).__name__}, expected names and arrays")
    return dict(given)


def _arrays(fn: str, where: str, given: Any, dims: dict[str, int]) -> list[Tensor]:
    """Arrays by name as tensors of their own, each of so many dims."""
    entries, made = _entries(fn, where, given), []
    if entries.keys() != dims.keys():
        got, wanted = ", ".join(entries) or "nothing", ", ".join(dims)
        raise ValueError(f"{fn}: {where} holds {got}, expected {wanted}")
    for name, n in dims.items():
        value = entries[name]
        tensor = value.clone() if isinstance(value, Tensor) else _tensor(fn, name, value)
        if not tensor.is_floating_point():
            raise TypeError(f"{fn}: {name} has dtype {tensor.dtype}, expected floats")
        if tensor.dim() != n:
            shape = tuple(tensor.shape)
            raise ValueError(f"{fn}: {name} of {where} has shape {shape}, expected {n} dims")
        made.append(tensor)
    return made


def _tensor(fn: str, name: str, value: Any) -> Tensor:
    try:
        return torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        got = type(value).__name__
        raise TypeError(f"{fn}: {name} is a {got}, expected an array of floats") from error


def _ours(fn: str, params: Any, gates: int) -> tuple[Tensor, ...]:
    """Params of one of our cells."""
    dims = {name: 2 if name.startswith("weight") else 1 for name in _NAMES}
    weight_ih, weight_hh, bias_ih, bias_hh = _arrays(fn, "params", params, dims)
    size, rows = weight_hh.shape[1], (weight_ih.shape[0], len(bias_ih), len(bias_hh))
    if weight_hh.shape[0] != gates * size or set(rows) != {gates * size}:
        shapes = ", ".join([str(tuple(x.shape)) for x in (weight_ih, weight_hh, bias_ih, bias_hh)])
        raise ValueError(
            f"{fn}: params have shapes {shapes}, expected [{gates}H, n_in], [{gates}H, H], "
            f"[{gates}H], [{gates}H]"
        )
    return weight_ih, weight_hh, bias_ih, bias_hh


def _require_gates(fn: str, into: list[Tensor], back: list[Tensor]) -> None:
    """Refuses kernels that differ in shape from gate to gate."""
    size = back[0].shape[1]
    wanted = ((into[0].shape[0], size), (size, size))
    for kernels, shape in zip((into, back), wanted, strict=True):
        for kernel in kernels:
            if kernel.shape != shape:
                raise ValueError(
                    f"{fn}: a kernel has shape {tuple(kernel.shape)}, expected {shape} (from the "
                    "others)"
                )
