"""Layers of one weight: an affine map, an embedding, and a table over states.

`embedding` and `table` read rows as `weight[index]`. Under vmap over stacked weights that is, with
its gradient, the fastest of torch's four ways on the CPU, or close to it, for all widths.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from .. import tree
from ..model import Model
from . import _check, initializers
from .initializers import Initializer, make_params


def linear(
    n_in: int,
    n_out: int,
    bias: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Affine map: y = W x + b.

    Params: weight [n_out, n_in] and, with bias, bias [n_out].

    Args:
        n_in: inputs.
        n_out: outputs.
        bias: whether there is a b.
        weight_init: initializer of weight; default for both, as in torch: uniform on
            [-n_in^-1/2, n_in^-1/2).
        bias_init: of bias.
        dtype: of the params.

    Returns:
        Model from x float [*batch, n_in] to [*batch, n_out].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1.
    """
    _check.sizes("linear", n_in=n_in, n_out=n_out)
    _check.functions("linear", weight_init=weight_init, bias_init=bias_init)
    made, default = f"linear({n_in}, {n_out})", initializers.uniform(n_in**-0.5)
    shapes: dict[str, tuple[int, ...]] = {"weight": (n_out, n_in)}
    makers = {"weight": weight_init or default}
    if bias:
        shapes["bias"], makers["bias"] = (n_out,), bias_init or default

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make_params("linear", key, shapes, makers, dtype), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, x: Tensor) -> tuple[Tensor, TensorDict]:
        weight, *rest = _check.parameters("linear", made, params, shapes)
        _check.floats("linear", made, x, n_in, weight)
        if rest and x.dim() > 2 and torch.compiler.is_compiling():
            # with the bias inside, torch compiles once more for each batch size
            return functional.linear(x, weight) + rest[0], buffers
        return functional.linear(x, weight, *rest), buffers

    return Model(init, apply)


def embedding(
    num: int,
    dim: int,
    weight_init: Initializer | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Vectors by index: y = weight[index].

    Params: weight [num, dim].

    Args:
        num: how many vectors.
        dim: their length.
        weight_init: initializer of weight; default, as in torch: standard normal.
        dtype: of the params.

    Returns:
        Model from index int64 [*batch], values in [0, num), to [*batch, dim].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1, or, when applied, an index is out of range (where it can be
            seen at no cost: on the CPU, outside of compiled code).
    """
    _check.sizes("embedding", num=num, dim=dim)
    _check.functions("embedding", weight_init=weight_init)
    made, shapes = f"embedding({num}, {dim})", {"weight": (num, dim)}
    makers = {"weight": weight_init or initializers.normal()}

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make_params("embedding", key, shapes, makers, dtype), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, index: Tensor) -> tuple[Tensor, TensorDict]:
        (weight,) = _check.parameters("embedding", made, params, shapes)
        _check_index("embedding", made, index, num)
        return weight[index], buffers

    return Model(init, apply)


def table(
    n_states: int,
    n_out: int,
    time_scale: float | Tensor = 1e-3,
    weight_init: Initializer | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Linear map of a state's one-hot vector and the time, without the one-hot vector.

        y = weight[index] + time_scale time weight[n_states]

    Params: weight [n_states + 1, n_out].

    Args:
        n_states: how many states.
        n_out: outputs.
        time_scale: what the time is multiplied by.
        weight_init: initializer of weight; default: normal of variance 1 / n_states, LeCun's for an
            input of that size (the variance of flax's default, not cut off).
        dtype: of the params.

    Returns:
        Model from (index, time) to [*batch, n_out], with index int64 [*batch], values in
        [0, n_states), and time float or int [*batch]; or from index alone, as at time 0.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1, or, when applied, shapes differ or an index is out of range
            (where it can be seen at no cost: on the CPU, outside of compiled code).

    Source of the observation: Jackson et al. (2023), Discovering general reinforcement learning
    algorithms with adversarial environment design, where a tabular world is a one-hot vector with
    the time appended.
    """
    _check.sizes("table", n_states=n_states, n_out=n_out)
    _check.functions("table", weight_init=weight_init)
    made, shapes = f"table({n_states}, {n_out})", {"weight": (n_states + 1, n_out)}
    makers = {"weight": weight_init or initializers.normal(n_states**-0.5)}

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make_params("table", key, shapes, makers, dtype), tree.new({})

    def apply(params: TensorDict, buffers: TensorDict, inputs: Any) -> tuple[Tensor, TensorDict]:
        (weight,) = _check.parameters("table", made, params, shapes)
        if isinstance(inputs, tuple) and len(inputs) != 2:
            raise ValueError(
                f"table: the input is a tuple of {len(inputs)}, expected (index, time) or an index"
            )
        index, time = inputs if isinstance(inputs, tuple) else (inputs, None)
        _check_index("table", made, index, n_states)
        out = weight[index]
        if time is None:
            return out, buffers
        if not isinstance(time, Tensor):
            raise TypeError(f"table: time is a {type(time).__name__}, expected a tensor [*batch]")
        _check.shape("table", "time", time, tuple(index.shape), "index")
        scaled = (time_scale * time.to(weight.dtype)).unsqueeze(-1)
        return out + scaled * weight[n_states], buffers

    return Model(init, apply)


def _check_index(layer: str, made: str, index: Any, size: int) -> None:
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"{layer}: index is {got}, expected an int64 tensor [*batch]")
    seen = _check.values(index)
    if seen is not None and seen.numel() > 0:
        low, high = (int(bound) for bound in seen.aminmax())
        if low < 0 or high >= size:
            wrong = low if low < 0 else high
            raise ValueError(
                f"{layer}: index holds {wrong}, expected it in [0, {size}) (from {made})"
            )
