"""Where a step is in a sequence, told to attention: by rotation, by waves, by learned vectors."""

import math
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..model import Model
from . import _check, initializers
from .initializers import Initializer
from .linear import embedding


def rotary(
    x: Tensor,
    positions: Tensor | None = None,
    base: float | Tensor = 10_000.0,
    *,
    interleaved: bool = False,
) -> Tensor:
    """Rotates pairs of features by angles that grow with the position.

        y_i = x_i cos(a_i) - x_j sin(a_i),  y_j = x_j cos(a_i) + x_i sin(a_i)
        a_i = position base^(-2i/n),  i = 0, ..., n/2 - 1

    The product of a query and a key that are rotated so depends on their positions by the
    difference alone. The pairs (i, j) are (i, i + n/2), the halves of the vector, as in GPT-NeoX,
    Llama and equinox; `interleaved` makes them (2i, 2i + 1), as in the paper.

    Args:
        x: float [*batch, T, n], n even.
        positions: int or float, broadcast to [*batch, T]; default: 0, ..., T - 1.
        base: above 0, [].
        interleaved: whether the pairs are neighbors.

    Returns:
        [*batch, T, n]. Angles are computed in float32 at least.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a shape does not fit, or base is not above 0.

    Source: Su et al. (2021), RoFormer: enhanced transformer with rotary position embedding, section
    3.2.2.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"rotary: x is {got}, expected a float tensor [*batch, T, n]")
    if x.dim() < 2 or x.shape[-1] < 2 or x.shape[-1] % 2:
        got = tuple(x.shape)
        raise ValueError(f"rotary: x has shape {got}, expected [*batch, T, n] with n even")
    check_base("rotary", "base", base)
    if positions is None:
        positions = torch.arange(x.shape[-2], device=x.device)
    else:
        _check_positions("rotary", positions, x)
    angles = _angles(positions, x.shape[-1], base, torch.promote_types(x.dtype, torch.float32))
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    if interleaved:
        left, right = x[..., ::2], x[..., 1::2]
        rotated = (left * cos - right * sin, right * cos + left * sin)
        return torch.stack(rotated, -1).flatten(-2)
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def sinusoidal(
    positions: Tensor,
    n: int,
    base: float | Tensor = 10_000.0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Waves of geometrically falling frequencies at positions.

        y_2i = sin(position base^(-2i/n)),  y_2i+1 = cos(position base^(-2i/n))

    Args:
        positions: int or float [*any].
        n: features, even.
        base: above 0, [].
        dtype: of the result; computed in float32 at least.

    Returns:
        [*any, n], to be added to an embedding of the steps.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: n is not even, or base is not above 0.

    Source: Vaswani et al. (2017), Attention is all you need, section 3.5.
    """
    _check.sizes("sinusoidal", n=n)
    if n % 2:
        raise ValueError(f"sinusoidal: n is {n}, expected an even number")
    check_base("sinusoidal", "base", base)
    if not isinstance(positions, Tensor):
        got = type(positions).__name__
        raise TypeError(f"sinusoidal: positions is a {got}, expected a tensor")
    angles = _angles(positions, n, base, torch.promote_types(dtype, torch.float32))
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2).to(dtype)


def position_embedding(
    length: int,
    n: int,
    weight_init: Initializer | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Adds a learned vector for each position: y_t = x_t + weight[position_t].

    Params: weight [length, n].

    Args:
        length: how many positions there are.
        n: features.
        weight_init: initializer of weight; default: normal of standard deviation 0.02.
        dtype: of the params.

    Returns:
        Model from x float [*batch, T, n], whose positions are 0, ..., T - 1; or from (x, positions)
        with positions int64, broadcast to [*batch, T], values in [0, length); to [*batch, T, n].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1, or, when applied, a shape does not fit or a position is out
            of range (where it can be seen at no cost: on the CPU, outside of compiled code).

    Source: Gehring et al. (2017), Convolutional sequence to sequence learning, section 3.1; the
    standard deviation: Radford et al. (2018), Improving language understanding by generative
    pre-training, section 4.1.
    """
    layer, made = "position_embedding", f"position_embedding({length}, {n})"
    _check.sizes(layer, length=length, n=n)
    _check.functions(layer, weight_init=weight_init)
    shapes: dict[str, tuple[int, ...]] = {"weight": (length, n)}
    vectors = embedding(length, n, weight_init or initializers.normal(0.02), dtype=dtype)

    def apply(params: TensorDict, buffers: TensorDict, inputs: Any) -> tuple[Tensor, TensorDict]:
        (weight,) = _check.parameters(layer, made, params, shapes)
        given = inputs if isinstance(inputs, tuple) else (inputs, None)
        if len(given) != 2:
            raise ValueError(
                f"{layer}: the input is a tuple of {len(given)}, expected x or (x, positions)"
            )
        x, positions = given
        _check.floats(layer, made, x, n, weight)
        if x.dim() < 2:
            raise ValueError(f"{layer}: x has shape {tuple(x.shape)}, expected [*batch, T, {n}]")
        if positions is None:
            if x.shape[-2] > length:
                raise ValueError(
                    f"{layer}: x has shape {tuple(x.shape)}, expected at most {length} steps (from "
                    f"{made})"
                )
            return x + weight[: x.shape[-2]], buffers
        added, _ = vectors.apply(params, buffers, positions)
        _check_positions(layer, positions, x)
        return x + added, buffers

    return Model(vectors.init, apply)


def check_base(fn: str, name: str, base: Any) -> None:
    """Refuses what is not a number above 0, or a 0-d tensor."""
    _check.real(fn, name, base)
    if not isinstance(base, Tensor) and base == 0:
        raise ValueError(f"{fn}: {name} is {base}, expected a number above 0")


def _angles(positions: Tensor, n: int, base: float | Tensor, dtype: torch.dtype) -> Tensor:
    """Angles [*positions, n / 2]."""
    fraction = torch.arange(0, n, 2, device=positions.device, dtype=dtype) / n
    log = base.to(dtype).log() if isinstance(base, Tensor) else math.log(base)
    return positions.to(dtype).unsqueeze(-1) * (-fraction * log).exp()


def _check_positions(fn: str, positions: Any, x: Tensor) -> None:
    """Refuses what is not a tensor that broadcasts to the steps of x."""
    if not isinstance(positions, Tensor):
        got = type(positions).__name__
        raise TypeError(f"{fn}: positions is a {got}, expected a tensor [*batch, T]")
    given, wanted = positions.shape, x.shape[:-1]
    sizes = zip(reversed(given), reversed(wanted), strict=False)
    if len(given) > len(wanted) or any([a not in (1, b) for a, b in sizes]):
        raise ValueError(
            f"{fn}: positions has shape {tuple(given)}, expected one that broadcasts to "
            f"{tuple(wanted)} (from x)"
        )
