"""Initializers: functions of a key, a shape and a dtype that make a parameter.

All but `zeros` are factories: `orthogonal(gain=2**0.5)(key, (64, 4))`. Weights have torch's layout,
[out, in, *receptive field], from which fan_in = in * field and fan_out = out * field.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ..model import require_key

Initializer = Callable[[Tensor, Sequence[int], torch.dtype], Tensor]

_TRUNCATED_STD = 0.87962566103423978  # of a standard normal between -2 and 2


def zeros(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Makes zeros.

    Args:
        key: int64 [2], not used but for its device.
        shape: of the parameter.
        dtype: of the parameter.

    Returns:
        `shape`.
    """
    return torch.zeros(tuple(shape), dtype=dtype, device=key.device)


def constant(value: float | Tensor) -> Initializer:
    """Makes parameters of one value.

    Args:
        value: a float, or a tensor that broadcasts to the parameter.

    Returns:
        The initializer.
    """

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return zeros(key, shape, dtype) + value

    return init


def uniform(bound: float | Tensor) -> Initializer:
    """Draws from the uniform distribution on [-bound, bound).

    Args:
        bound: at least 0.

    Returns:
        The initializer.
    """

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return rng.uniform(key, tuple(shape), -bound, bound, dtype=dtype)

    return init


def normal(std: float | Tensor = 1.0) -> Initializer:
    """Draws from the normal distribution of mean 0.

    Args:
        std: at least 0.

    Returns:
        The initializer.
    """

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return rng.normal(key, tuple(shape), 0.0, std, dtype=dtype)

    return init


def truncated_normal(std: float | Tensor = 1.0) -> Initializer:
    """Draws from the normal distribution of mean 0 cut off at two of its standard deviations.

    Args:
        std: of the normal before it is cut; what is drawn has 0.8796 of it.

    Returns:
        The initializer.
    """

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return rng.truncated_normal(key, tuple(shape), std=std, dtype=dtype)

    return init


def variance_scaling(
    scale: float | Tensor = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal"
) -> Initializer:
    """Draws with variance scale / n, where n is the number of inputs, outputs or their mean.

    The defaults are LeCun's normal; He's is scale=2, Glorot's mode="fan_avg". In the words of
    torch.nn.init, `kaiming_*_` is scale = gain^2 and mode "fan_in" or "fan_out", `xavier_*_` is
    scale = gain^2 and mode "fan_avg", each with its distribution, "uniform" or "normal".

    Args:
        scale: at least 0.
        mode: "fan_in", "fan_out" or "fan_avg", what n is.
        distribution: "uniform", "normal" or "truncated_normal", the last one cut at two standard
            deviations and stretched so that its variance is right.

    Returns:
        The initializer; it refuses shapes of fewer than two dims, which have no fans.

    Raises:
        ValueError: an unknown mode or distribution.

    Source: He, Zhang, Ren, Sun (2015), Delving deep into rectifiers, section 2.2; Glorot & Bengio
    (2010), Understanding the difficulty of training deep feedforward neural networks, section 4.2.
    """
    fans = ("fan_in", "fan_out", "fan_avg")
    if mode not in fans:
        raise ValueError(f"variance_scaling: mode is {mode!r}, expected one of {', '.join(fans)}")
    kinds = ("uniform", "normal", "truncated_normal")
    if distribution not in kinds:
        known = ", ".join(kinds)
        raise ValueError(
            f"variance_scaling: distribution is {distribution!r}, expected one of {known}"
        )

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        if len(shape) < 2:
            got = tuple(shape)
            raise ValueError(f"variance_scaling: shape is {got}, expected [out, in, *field]")
        field = math.prod(shape[2:])
        fan_in, fan_out = shape[1] * field, shape[0] * field
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        std = (scale / max(fan, 1)) ** 0.5
        if distribution == "uniform":
            return uniform(3.0**0.5 * std)(key, shape, dtype)
        if distribution == "normal":
            return normal(std)(key, shape, dtype)
        return truncated_normal(std / _TRUNCATED_STD)(key, shape, dtype)

    return init


def orthogonal(gain: float | Tensor = 1.0) -> Initializer:
    """Draws a matrix with orthonormal rows or columns, whichever are fewer, uniformly, times gain.

    Q R = A for a standard normal A, with the signs of Q's columns such that R's diagonal is
    positive. Dims after the first count as one.

    Args:
        gain: the singular values.

    Returns:
        The initializer; it refuses shapes of fewer than two dims.

    Source: Saxe, McClelland, Ganguli (2014), Exact solutions to the nonlinear dynamics of learning
    in deep linear neural networks, section 3; Mezzadri (2007), How to generate random matrices from
    the classical compact groups, section 5.
    """

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        if len(shape) < 2:
            raise ValueError(f"orthogonal: shape is {tuple(shape)}, expected at least two dims")
        rows, columns = shape[0], math.prod(shape[1:])
        tall = (max(rows, columns), min(rows, columns))
        work = torch.promote_types(dtype, torch.float32)  # there is no QR of 16-bit floats
        q, r = torch.linalg.qr(rng.normal(key, tall, dtype=work))
        q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
        matrix = q if rows >= columns else q.mT
        return (gain * matrix.reshape(tuple(shape))).to(dtype).contiguous()

    return init


def identity(gain: float | Tensor = 1.0) -> Initializer:
    """Makes the map that leaves its input as it is, times gain, as far as there are outputs for it.

    Of a shape [out, in, *field] that is gain at [i, i] in the middle of the field, and else 0; a
    convolution with "same" padding then gives its input.

    Args:
        gain: what the input is multiplied by.

    Returns:
        The initializer; it refuses shapes of fewer than two dims.
    """

    def init(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        if len(shape) < 2:
            raise ValueError(f"identity: shape is {tuple(shape)}, expected at least two dims")
        out = torch.eye(shape[0], shape[1], dtype=dtype, device=key.device)
        for n in shape[2:]:
            middle = torch.arange(n, device=key.device) == (n - 1) // 2
            out = out.unsqueeze(-1) * middle
        return gain * out

    return init


def make_params(
    layer: str,
    key: Tensor,
    shapes: Mapping[str, tuple[int, ...]],
    makers: Mapping[str, Initializer],
    dtype: torch.dtype,
) -> TensorDict:
    """Makes a layer's parameters, each from a key of its own name.

    Args:
        layer: its name.
        key: int64 [2].
        shapes: of the parameters.
        makers: an initializer for each.
        dtype: of the parameters.

    Returns:
        The tree.

    Raises:
        TypeError: the key is of another kind.
        ValueError: the key has another shape.
    """
    require_key(layer, key)
    named = shapes.items()
    return tree.new({n: makers[n](rng.fold_in(key, n), shape, dtype) for n, shape in named})
