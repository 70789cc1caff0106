"""Layers that draw random numbers. What they draw from is a buffer: `buffers["key"]`.

`init` makes the key, `apply` draws from it and gives the next one back, so that the same buffers
give the same noise, and those that come back fresh noise. Who keeps the old buffers keeps the
noise: for a whole episode, or for the two networks of a target. With train=False nothing is drawn
and the buffers stay as they are; params and buffers have the same names either way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from .. import rng, tree
from ..model import Model, require_key
from . import _check, initializers
from .initializers import Initializer, make_params


def dropout(
    rate: float | Tensor = 0.5, *, broadcast_dims: Sequence[int] = (), train: bool = True
) -> Model:
    """Sets features to zero at random, and makes the others larger by as much as is lost.

        y = x m / (1 - rate),  m ~ Bernoulli(1 - rate)

    At rate 1 all is zero, and so are the gradients. The gradient of a rate that is a tensor is that
    of y with m held fixed.

    Buffers: key [2].

    Args:
        rate: probability of zero, in [0, 1], [].
        broadcast_dims: dims of x along which one draw is shared, such as -2 for time in
            [*batch, T, n].
        train: whether this is training; else y = x.

    Returns:
        Model from x float to the same shape.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the rate is out of range, or, when applied, x lacks a dim.

    Source: Srivastava et al. (2014), Dropout: a simple way to prevent neural networks from
    overfitting, sections 4 and 10.
    """
    _check.real("dropout", "rate", rate, 0.0, 1.0)
    if not isinstance(broadcast_dims, Sequence) or not all(
        [isinstance(dim, int) for dim in broadcast_dims]
    ):
        raise TypeError(f"dropout: broadcast_dims is {broadcast_dims!r}, expected a tuple of ints")
    still = not train or (not isinstance(rate, Tensor) and rate == 0)

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return tree.new({}), _keyed("dropout", key)

    def apply(params: TensorDict, buffers: TensorDict, x: Any) -> tuple[Tensor, TensorDict]:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"dropout: x is {got}, expected a float tensor")
        if still:
            return x, buffers
        key, buffers = _drawn("dropout", buffers)
        return _dropped(x, rate, key, broadcast_dims), buffers

    return Model(init, apply)


def noisy_linear(
    n_in: int,
    n_out: int,
    bias: bool = True,
    *,
    factorized: bool = True,
    sigma_init: float | Tensor | None = None,
    train: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Affine map whose weights are normal, with learned means and deviations.

        y = (weight_mu + weight_sigma ε_w) x + bias_mu + bias_sigma ε_b

    Factorized noise has ε_w = f(u) f(v)ᵀ and ε_b = f(u), with f(z) = sgn(z) |z|^(1/2) and u, v
    standard normal, one number for each output and input; else every ε is standard normal. One ε
    serves the whole batch.

    Params: weight_mu and weight_sigma [n_out, n_in], and with bias bias_mu and bias_sigma [n_out].
    Buffers: key [2].

    Args:
        n_in: inputs.
        n_out: outputs.
        bias: whether there is a bias.
        factorized: which noise.
        sigma_init: at the start all deviations are sigma_init / n_in^(1/2), or sigma_init where
            noise isn't factorized; default: 0.5, or 0.017.
        train: whether there is noise; else y = weight_mu x + bias_mu.
        weight_init: initializer of weight_mu; default for both: uniform on [-a, a) with
            a = n_in^-1/2, or (3 / n_in)^1/2 where noise isn't factorized.
        bias_init: of bias_mu.
        dtype: of the params.

    Returns:
        Model from x float [*batch, n_in] to [*batch, n_out].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1, or sigma_init below 0.

    Source: Fortunato et al. (2018), Noisy networks for exploration, sections 3 and 3.2. (TorchRL
    and codes of Rainbow begin with sigma_init / n_out^(1/2) for the bias.)
    """
    layer, made = "noisy_linear", f"noisy_linear({n_in}, {n_out})"
    _check.sizes(layer, n_in=n_in, n_out=n_out)
    _check.functions(layer, weight_init=weight_init, bias_init=bias_init)
    sigma = (0.5 if factorized else 0.017) if sigma_init is None else sigma_init
    _check.real(layer, "sigma_init", sigma)
    deviation = initializers.constant(sigma * n_in**-0.5 if factorized else sigma)
    mean = initializers.uniform((1.0 if factorized else 3.0) ** 0.5 * n_in**-0.5)
    shapes: dict[str, tuple[int, ...]] = {"weight_mu": (n_out, n_in), "weight_sigma": (n_out, n_in)}
    makers = {"weight_mu": weight_init or mean, "weight_sigma": deviation}
    if bias:
        shapes |= {"bias_mu": (n_out,), "bias_sigma": (n_out,)}
        makers |= {"bias_mu": bias_init or mean, "bias_sigma": deviation}

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return make_params(layer, key, shapes, makers, dtype), _keyed(layer, key)

    def apply(params: TensorDict, buffers: TensorDict, x: Tensor) -> tuple[Tensor, TensorDict]:
        weight, weight_sigma, *rest = _check.parameters(layer, made, params, shapes)
        _check.floats(layer, made, x, n_in, weight, "weight_mu")
        shift = rest[0] if rest else None
        if not train:
            return functional.linear(x, weight, shift), buffers
        key, buffers = _drawn(layer, buffers)
        if factorized:
            factors = rng.normal(key, (n_out + n_in,), dtype=weight.dtype)
            factors = factors.sign() * factors.abs().sqrt()
            out, into = factors.split([n_out, n_in])
            noise = out.unsqueeze(-1) * into
        else:
            normals = rng.normal(key, (n_out, n_in + 1), dtype=weight.dtype)
            noise, out = normals[:, :-1], normals[:, -1]
        weight = torch.addcmul(weight, weight_sigma, noise)
        shift = torch.addcmul(rest[0], rest[1], out) if rest else None
        return functional.linear(x, weight, shift), buffers

    return Model(init, apply)


def _dropped(x: Tensor, rate: float | Tensor, key: Tensor, shared: Sequence[int]) -> Tensor:
    shape = list(x.shape)
    for dim in shared:
        if not -x.dim() <= dim < x.dim():
            raise ValueError(
                f"dropout: x has shape {tuple(x.shape)}, which lacks dim {dim} (from "
                "broadcast_dims)"
            )
        shape[dim] = 1
    keep = 1 - rate
    kept = rng.bernoulli(key, keep, tuple(shape))
    if isinstance(keep, Tensor):
        scale = torch.where(keep > 0, keep, 1.0).reciprocal().to(x.dtype)
    else:
        scale = 1 / keep if keep > 0 else 1.0
    return torch.where(kept, x * scale, 0.0)


def _keyed(layer: str, key: Tensor) -> TensorDict:
    """Buffers of a layer that draws, from the key that its parameters come from."""
    require_key(layer, key)
    return tree.new({"key": rng.fold_in(key, "key")})


def _drawn(layer: str, buffers: Any) -> tuple[Tensor, TensorDict]:
    """The key to draw from now, and the buffers with the next one."""
    key = _check.level(layer, "buffers", buffers, ("key",))["key"]
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        got = key.dtype if isinstance(key, Tensor) else type(key).__name__
        raise TypeError(f"{layer}: buffers.key is {got}, expected an int64 tensor [2]")
    if key.shape != (2,):
        hint = "; map over stacked buffers with vmap" if key.dim() > 1 else ""
        raise ValueError(f"{layer}: buffers.key has shape {tuple(key.shape)}, expected [2]{hint}")
    now, after = rng.split(key)
    return now, tree.rebuild(buffers, {"key": after})
