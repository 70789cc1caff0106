"""What is drawn from a key: words, floats of several distributions, indices, permutations.

All begin with the 32-bit words of the key's blocks. One word makes a float32 uniform or half of a
float32 normal; whatever needs more bits takes two words a value.

For a batched key [*batch, 2], `shape` is the full shape of the result and starts with dims that
*batch expands to; each key draws its own slice, equal to what that key alone would draw. Parameters
are floats, or tensors that broadcast to `shape`, and get their gradients.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .keys import blocks, check_key
from .philox import is_readable

_UNIT_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def bits(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Draws 32-bit words: element j of a key's slice is word j % 4 of its block j // 4.

    Args:
        key: int64 [*batch, 2].
        shape: full shape of the result.

    Returns:
        int64 `shape`, uniform on 0, ..., 2^32 - 1.

    Raises:
        TypeError: key or shape is of another kind.
        ValueError: shape does not start with what *batch expands to.
    """
    return _words(key, _check_shape("bits", key, shape))


def uniform(
    key: Tensor,
    shape: Sequence[int],
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draws from the uniform distribution on [low, high): low + (high - low) u.

    u is a multiple of 2^-53 for float64, 2^-24 for float32, 2^-11 and 2^-8 for the 16-bit floats.

    Args:
        key: int64 [*batch, 2].
        shape: full shape of the result.
        low: the lower end, a float or a tensor that broadcasts to `shape`.
        high: the upper end, likewise.
        dtype: a floating dtype.

    Returns:
        `shape`, in [low, high) after rounding too (low where high equals it).

    Raises:
        TypeError: an argument is of another kind, or dtype is not a floating one.
        ValueError: a shape does not fit, or low is above high.
    """
    shape = _check_shape("uniform", key, shape)
    low = _parameter("uniform", "low", low, shape, dtype)
    high = _parameter("uniform", "high", high, shape, dtype)
    unit = _unit(key, shape, dtype)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        value = low + (high - low) * unit
    elif not low <= high:
        raise ValueError(f"uniform: low is {low}, expected at most high, which is {high}")
    elif (low, high) == (0.0, 1.0):
        return unit
    else:
        value = unit.mul_(high - low).add_(low)
    return torch.where(value < high, value, low)  # rounding may have made it high


def normal(
    key: Tensor,
    shape: Sequence[int],
    mean: float | Tensor = 0.0,
    std: float | Tensor = 1.0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draws from the normal distribution: mean + std z, with z by Box and Muller's transform.

        z_2i, z_2i+1 = sqrt(-2 log u) (cos 2πv, sin 2πv),  u in (0, 1], v in [0, 1)

    It is computed in float64, from u and v of 53 bits for float64 (|z| < 8.6) and of 32 for the
    other dtypes (|z| < 6.7).

    Args:
        key: int64 [*batch, 2].
        shape: full shape of the result.
        mean: a float or a tensor that broadcasts to `shape`.
        std: at least 0, likewise.
        dtype: a floating dtype.

    Returns:
        `shape`.

    Raises:
        TypeError: an argument is of another kind, or dtype is not a floating one.
        ValueError: a shape does not fit, or std is below 0.

    Source: Box & Muller (1958), A note on the generation of random normal deviates.
    """
    shape = _check_shape("normal", key, shape)
    mean = _parameter("normal", "mean", mean, shape, dtype)
    std = _scale("normal", std, shape, dtype)
    batch = key.dim() - 1
    count = math.prod(shape[batch:])
    if dtype == torch.float64:
        even, odd = blocks(key, shape[:batch], -(-count // 2))
        radius, angle = (_join(even, odd) >> 10).unsqueeze(-1).unbind(0)  # each [*batch, blocks, 1]
        unit = 2.0**-53
    else:
        even, odd = blocks(key, shape[:batch], -(-count // 4))
        radius, angle = even.movedim(0, -1), odd.movedim(0, -1)  # each [*batch, blocks, 2]
        unit = 2.0**-32
    radius = (radius + 1).to(torch.float64).mul_(unit).log_().mul_(-2.0).sqrt_()
    angle = angle.to(torch.float64).mul_(2.0 * math.pi * unit)
    z = torch.stack((radius * angle.cos(), radius * angle.sin()), -1).to(dtype)
    return _affine(_take(z, batch, shape), mean, std)


def truncated_normal(
    key: Tensor,
    shape: Sequence[int],
    low: float | Tensor = -2.0,
    high: float | Tensor = 2.0,
    mean: float | Tensor = 0.0,
    std: float | Tensor = 1.0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draws mean + std z, with z standard normal given that low <= z <= high.

    By the inverse of the normal distribution function Φ, in float64:

        z = Φ⁻¹(Φ(low) + u (Φ(high) - Φ(low))),  mirrored where low + high > 0

    since only in its lower tail Φ keeps its relative precision.

    Args:
        key: int64 [*batch, 2].
        shape: full shape of the result.
        low: lower bound of z, so in units of std from mean; a float or a tensor that broadcasts to
            `shape`.
        high: upper bound of z, likewise.
        mean: a float or a tensor that broadcasts to `shape`.
        std: at least 0, likewise.
        dtype: a floating dtype.

    Returns:
        `shape`.

    Raises:
        TypeError: an argument is of another kind, or dtype is not a floating one.
        ValueError: a shape does not fit, low is not below high, or std is below 0.
    """
    name, double = "truncated_normal", torch.float64
    shape = _check_shape(name, key, shape)
    mean = _parameter(name, "mean", mean, shape, dtype)
    std = _scale(name, std, shape, dtype)
    low = _parameter(name, "low", low, shape, double)
    high = _parameter(name, "high", high, shape, double)
    if isinstance(low, float) and isinstance(high, float) and not low < high:
        raise ValueError(f"{name}: low is {low}, expected less than high, which is {high}")
    low = torch.as_tensor(low, dtype=double, device=key.device)
    high = torch.as_tensor(high, dtype=double, device=key.device)
    mirrored = low + high > 0
    below = _below(torch.where(mirrored, -high, low))
    above = _below(torch.where(mirrored, -low, high))
    z = torch.special.ndtri(below + _unit(key, shape, double) * (above - below))
    z = torch.clamp(torch.where(mirrored, -z, z), low, high)
    return _affine(z.to(dtype), mean, std)


def bernoulli(key: Tensor, p: float | Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Draws True with probability p, to within 2^-32; never for p = 0, always for p = 1.

    Args:
        key: int64 [*batch, 2].
        p: a probability, or a tensor of them that broadcasts to `shape`.
        shape: full shape of the result; default: p's own, or *batch for a float.

    Returns:
        bool `shape`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a shape does not fit, or p is outside of [0, 1].
    """
    check_key("bernoulli", key)
    if shape is None:
        shape = p.shape if isinstance(p, Tensor) else key.shape[:-1]
    shape = _check_shape("bernoulli", key, shape)
    p = _parameter("bernoulli", "p", p, shape, torch.float64)
    if isinstance(p, Tensor):
        inside = not is_readable(p) or bool(((p >= 0) & (p <= 1)).all())
    else:
        inside = 0.0 <= p <= 1.0
    if not inside:
        got = f"is {p}" if isinstance(p, float) else "holds a value outside of [0, 1]"
        raise ValueError(f"bernoulli: p {got}, expected probabilities in [0, 1]")
    return _words(key, shape).to(torch.float64).mul_(2.0**-32) < p


def categorical(key: Tensor, logits: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Draws index k with probability softmax(logits)[k]; never one of probability 0 (logit -inf).

    By the inverse of the distribution function, in float64, from one uniform of 52 bits.

    Args:
        key: int64 [*batch, 2].
        logits: float [*any, K], log-probabilities up to a constant; *any broadcasts to `shape`.
        shape: full shape of the result; default: *any.

    Returns:
        int64 `shape`, values in [0, K).

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a shape does not fit, or a row of logits is no distribution.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"categorical: logits is {got}, expected a floating tensor [*any, K]")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        got = tuple(logits.shape)
        raise ValueError(f"categorical: logits has shape {got}, expected [*any, K] with K >= 1")
    shape = _check_shape("categorical", key, logits.shape[:-1] if shape is None else shape)
    _check_expands("categorical", "logits (less its last dim)", logits.shape[:-1], shape)
    probability = torch.softmax(logits.detach().to(torch.float64), -1)
    if is_readable(probability) and bool(probability.isnan().any()):
        raise ValueError(
            "categorical: logits has a row with NaN, with +inf or with -inf alone, expected finite "
            "entries or -inf, and at least one finite in each row"
        )
    drawable = probability > 0
    cumulative = torch.where(drawable, probability.cumsum(-1), 0.0)
    # 52 bits and not 53: the product with the total must stay below the total after rounding.
    unit = (_long_words(key, shape) >> 11).to(torch.float64).mul_(2.0**-52)
    threshold = (unit * cumulative.amax(-1)).unsqueeze(-1)  # [*shape, 1]
    return (drawable & (cumulative > threshold)).to(torch.uint8).argmax(-1)  # the first one


def randint(key: Tensor, shape: Sequence[int], low: int | Tensor, high: int | Tensor) -> Tensor:
    """Draws integers uniformly from [low, high): low + (w mod (high - low)), w of 63 random bits.

    A remainder favors some values over others, by a factor of 1 + (high - low) / 2^63 at most: less
    than 1 + 2^-30 for every range allowed.

    Args:
        key: int64 [*batch, 2].
        shape: full shape of the result.
        low: the smallest, an int or an int64 tensor that broadcasts to `shape`.
        high: above the largest, likewise, with 1 <= high - low <= 2^32.

    Returns:
        int64 `shape`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a shape does not fit, or high - low is out of range.
    """
    shape = _check_shape("randint", key, shape)
    for name, bound in (("low", low), ("high", high)):
        if isinstance(bound, Tensor) and bound.dtype == torch.int64:
            _check_expands("randint", name, bound.shape, shape)
        elif isinstance(bound, Tensor) or not isinstance(bound, int):
            got = bound.dtype if isinstance(bound, Tensor) else type(bound).__name__
            raise TypeError(f"randint: {name} is {got}, expected an int or an int64 tensor")
    size = high - low
    if isinstance(size, Tensor):
        inside = not is_readable(size) or bool(((size >= 1) & (size <= 2**32)).all())
    else:
        inside = 1 <= size <= 2**32
    if not inside:
        got = f"is {size}" if isinstance(size, int) else "holds a value outside of it"
        raise ValueError(f"randint: high - low {got}, expected it in [1, 2**32]")
    return _long_words(key, shape) % size + low


def permutation(key: Tensor, n: int) -> Tensor:
    """Draws a permutation of 0, ..., n - 1: the order of n words of 63 bits, equal ones in turn.

    Args:
        key: int64 [*batch, 2].
        n: how many, at least 0.

    Returns:
        int64 [*batch, n].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: n is below 0.
    """
    check_key("permutation", key)
    if not isinstance(n, int):
        raise TypeError(f"permutation: n is a {type(n).__name__}, expected an int")
    if n < 0:
        raise ValueError(f"permutation: n is {n}, expected at least 0")
    words = _long_words(key, (*key.shape[:-1], n))
    return torch.sort(words, dim=-1, stable=True).indices


def _words(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One word of 32 bits a value, int64 `shape`."""
    batch = key.dim() - 1
    even, odd = blocks(key, shape[:batch], -(-math.prod(shape[batch:]) // 4))
    return _take(torch.stack((even[0], odd[0], even[1], odd[1]), -1), batch, shape)


def _long_words(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """63 bits of two words a value, int64 `shape`."""
    batch = key.dim() - 1
    even, odd = blocks(key, shape[:batch], -(-math.prod(shape[batch:]) // 2))
    return _take(_join(even, odd).movedim(0, -1), batch, shape)


def _join(even: Tensor, odd: Tensor) -> Tensor:
    """63 bits of each pair of words, the even one on top."""
    return even << 31 | odd >> 1


def _take(values: Tensor, batch: int, shape: tuple[int, ...]) -> Tensor:
    """As many of each key's values [*batch, ...] as the shape holds, in that shape."""
    return values.flatten(batch)[..., : math.prod(shape[batch:])].reshape(shape)


def _unit(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uniforms on [0, 1) of as many bits as the dtype holds exactly; the caller's own."""
    size = _UNIT_BITS[dtype]
    words = _long_words(key, shape) >> 63 - size if size > 32 else _words(key, shape) >> 32 - size
    return words.to(dtype).mul_(2.0**-size)


def _affine(z: Tensor, mean: float | Tensor, std: float | Tensor) -> Tensor:
    """Mean + std z, less the work that the standard ones need not."""
    z = z if isinstance(std, float) and std == 1.0 else z * std
    return z if isinstance(mean, float) and mean == 0.0 else z + mean


def _below(z: Tensor) -> Tensor:
    """Φ, with its relative precision kept in the lower tail (torch.special.ndtr loses it)."""
    return 0.5 * torch.erfc(-(0.5**0.5) * z)


def _check_shape(function: str, key: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple, after a look at it and at the key."""
    check_key(function, key)
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"{function}: shape is {shape!r}, expected a tuple of ints, such as (3, 4)")
    shape, batch = tuple(shape), tuple(key.shape[:-1])
    if any(size < 0 for size in shape):
        raise ValueError(f"{function}: shape is {shape}, expected sizes of at least 0")
    if len(shape) < len(batch) or any(b not in (1, s) for b, s in zip(batch, shape, strict=False)):
        raise ValueError(
            f"{function}: shape is {shape}, expected it to start with {batch}, the batch of key "
            f"(of shape {tuple(key.shape)}), or with what that expands to"
        )
    return shape


def _check_expands(function: str, name: str, got: Sequence[int], shape: tuple[int, ...]) -> None:
    sizes = zip(reversed(got), reversed(shape), strict=False)
    if len(got) > len(shape) or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(
            f"{function}: {name} has shape {tuple(got)}, expected one that broadcasts to {shape}, "
            "the shape of the result"
        )


def _parameter(
    function: str, name: str, value: float | Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> float | Tensor:
    """A distribution's parameter: a float, or a tensor of the dtype that broadcasts to `shape`."""
    if dtype not in _UNIT_BITS:
        known = ", ".join(str(known) for known in _UNIT_BITS)
        raise TypeError(f"{function}: dtype is {dtype}, expected one of {known}")
    if isinstance(value, Tensor):
        _check_expands(function, name, value.shape, shape)
        return value.to(dtype)
    if not isinstance(value, (int, float)):
        got = type(value).__name__
        raise TypeError(f"{function}: {name} is a {got}, expected a float or a tensor")
    return float(value)


def _scale(
    function: str, std: float | Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> float | Tensor:
    std = _parameter(function, "std", std, shape, dtype)
    if isinstance(std, float) and not std >= 0.0:
        raise ValueError(f"{function}: std is {std}, expected at least 0")
    return std
