"""Heads of agents: dueling action values, and what parametrizes a normal policy.

The scale of a normal is positive, and a network's output is any number: `softplus_scale`,
`clamped_scale` and `tanh_scale` make the functions between the two.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..model import Model
from . import _check
from ._parts import Call, assembled
from .compose import Layer, sequential
from .initializers import Initializer, zeros
from .linear import linear
from .shapes import bias

Scale = Callable[[Tensor], Tensor]


def dueling_head(advantage: Layer, value: Layer, dim: int = -1) -> Model:
    """Action values from a value of the state and the advantages of actions.

        Q(s, a) = V(s) + A(s, a) - mean over a' of A(s, a')

    For distributions over values, dim is that of the actions:

    >>> import torch
    >>> from paramtree import nn, rng
    >>> advantage = nn.sequential(nn.noisy_linear(512, 4 * 51), nn.reshape(4, 51, preserve_dims=-1))
    >>> value = nn.sequential(nn.noisy_linear(512, 51), nn.reshape(1, 51, preserve_dims=-1))
    >>> head = dueling_head(advantage, value, dim=-2)
    >>> params, buffers = head.init(rng.key(0))
    >>> head.apply(params, buffers, torch.ones(32, 512))[0].shape
    torch.Size([32, 4, 51])

    Params and buffers: advantage and value, each where it has some.

    Args:
        advantage: layer that gives A, one number (or row of numbers) for each action along dim.
        value: layer that gives V, of size 1 along dim.
        dim: of the actions in what the two give.

    Returns:
        Model from their input to Q, of the shape of A.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: when applied, the two do not fit.

    Source: Wang et al. (2016), Dueling network architectures for deep reinforcement learning,
    equation 9; for distributions: Hessel et al. (2018), Rainbow, section "The integrated agent".
    """
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"dueling_head: dim is a {type(dim).__name__}, expected an int")
    _check.functions("dueling_head", advantage=advantage, value=value)
    layers = {"advantage": advantage, "value": value}
    parts = {
        name: layer if isinstance(layer, Model) else sequential(layer)
        for name, layer in layers.items()
    }

    def forward(call: Call, x: Any) -> Tensor:
        a, v = call("advantage", x), call("value", x)
        wanted = list(a.shape)
        if not -len(wanted) <= dim < len(wanted):
            raise ValueError(
                f"dueling_head: the advantage has shape {tuple(wanted)}, which lacks dim {dim}"
            )
        wanted[dim] = 1
        if list(v.shape) != wanted:
            raise ValueError(
                f"dueling_head: the value has shape {tuple(v.shape)}, expected {tuple(wanted)} "
                f"(from the advantage, of shape {tuple(a.shape)}, and dim={dim})"
            )
        return v + a - a.mean(dim, keepdim=True)

    return assembled("dueling_head", parts, forward)


def softplus_scale(at_zero: float | Tensor = 1.0, low: float | Tensor = 0.01) -> Scale:
    """Makes the function x -> low + log(1 + exp(x + c)), with c such that 0 gives `at_zero`.

    Args:
        at_zero: the scale at x = 0, above low.
        low: the least scale. (The defaults are those of TorchRL's NormalParamExtractor.)

    Returns:
        The function.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: low is below 0, or not below at_zero.
    """
    _check.real("softplus_scale", "low", low)
    _check.real("softplus_scale", "at_zero", at_zero)
    _require_order("softplus_scale", "low", low, "at_zero", at_zero)
    above = at_zero - low
    shift = above.expm1().log() if isinstance(above, Tensor) else math.log(math.expm1(above))

    def scale(x: Tensor) -> Tensor:
        return low + functional.softplus(x + shift)

    return scale


def clamped_scale(low: float | Tensor = -20.0, high: float | Tensor = 2.0) -> Scale:
    """Makes the function x -> exp(min(max(x, low), high)), without gradient beyond the bounds.

    Args:
        low: the least logarithm of a scale.
        high: the greatest.

    Returns:
        The function.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: low is not below high.

    Source: Haarnoja et al. (2018), Soft actor-critic, whose code has these bounds.
    """
    _check_bounds("clamped_scale", low, high)

    def scale(x: Tensor) -> Tensor:
        return _limited(x, low, high).exp()

    return scale


def tanh_scale(low: float | Tensor = -5.0, high: float | Tensor = 2.0) -> Scale:
    """Makes the function x -> exp(low + (high - low) (1 + tanh(x)) / 2).

    Args:
        low: what the logarithm of a scale stays above.
        high: what it stays below.

    Returns:
        The function.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: low is not below high.

    Source: Yarats et al. (2021), Improving sample efficiency in model-free reinforcement learning
    from images, whose code has this form.
    """
    _check_bounds("tanh_scale", low, high)

    def scale(x: Tensor) -> Tensor:
        return (low + (high - low) / 2 * (1 + x.tanh())).exp()

    return scale


def normal_head(
    n_in: int,
    n_out: int,
    *,
    to_scale: Scale | None = None,
    state_dependent: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    scale_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Mean and deviation of a normal policy: loc = W x + b, scale = to_scale(W' x + b').

    With state_dependent=False the scale is to_scale(b'), a parameter of its own, as is usual in
    PPO: `td_model(normal_head(64, 6, state_dependent=False, to_scale=torch.exp), "hidden",
    ["loc", "scale"])`.

    Params: a tree loc of weight [n_out, n_in] and bias [n_out]; and a tree scale of the same, or of
    bias alone.

    Args:
        n_in: inputs.
        n_out: components of an action.
        to_scale: function of any number to a positive one; default: `softplus_scale()`.
        state_dependent: whether the scale depends on x.
        weight_init: initializer of the weights; default for both: as in `linear`.
        bias_init: of the biases.
        scale_init: of the scale's bias; default: bias_init, or zeros where it is alone.
        dtype: of the params.

    Returns:
        Model from x float [*batch, n_in] to (loc, scale), each [*batch, n_out].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1.
    """
    sizes, inits = (n_in, n_out), (weight_init, bias_init, scale_init)
    return _normal("normal_head", sizes, to_scale, state_dependent, inits, dtype, None)


def squashed_normal_head(
    n_in: int,
    n_out: int,
    *,
    to_scale: Scale | None = None,
    state_dependent: bool = True,
    upscale: float | Tensor | None = None,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    scale_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Mean and deviation of a normal whose draws tanh brings between bounds, as in SAC.

        loc = W x + b, or upscale tanh((W x + b) / upscale),  scale = to_scale(W' x + b')

    The bounds are those of the distribution, in the space of actions:

    >>> from functools import partial
    >>> import torch
    >>> import losses
    >>> from paramtree import compose, nn, rng, td_model, tree
    >>> actor = compose(
    ...     torso=td_model(nn.mlp(3, 64, 64, final_activation=torch.relu), "observation", "hidden"),
    ...     head=td_model(nn.squashed_normal_head(64, 1), "hidden", ["loc", "scale"]))
    >>> params, buffers = actor.init(rng.key(0))
    >>> out = actor(params, buffers, tree.new({"observation": torch.ones(5, 3)}, (5,)))
    >>> dist = losses.tanh_normal(out["loc"], out["scale"], low=-2.0, high=2.0)
    >>> action, log_prob = dist.sample_with(rng.normal(rng.key(1), (5, 1)))
    >>> bool((action.abs() < 2).all()), log_prob.shape
    (True, torch.Size([5]))

    Params: as in `normal_head`.

    Args:
        n_in: inputs.
        n_out: components of an action.
        to_scale: as in `normal_head`; default: `clamped_scale()`.
        state_dependent: likewise.
        upscale: bound of loc, which keeps it from where tanh is flat (TorchRL's TanhNormal has 5),
            above 0, []; default: none.
        weight_init: as in `normal_head`.
        bias_init: likewise.
        scale_init: likewise.
        dtype: of the params.

    Returns:
        Model from x float [*batch, n_in] to (loc, scale), each [*batch, n_out], of the normal
        before it is squashed.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size is below 1, or upscale is not above 0.

    Source: Haarnoja et al. (2018), Soft actor-critic, appendix C.
    """
    layer = "squashed_normal_head"
    if upscale is not None:
        _check.real(layer, "upscale", upscale)
        if not isinstance(upscale, Tensor) and upscale == 0:
            raise ValueError(f"{layer}: upscale is {upscale}, expected a number above 0")
    scale = clamped_scale() if to_scale is None else to_scale
    sizes, inits = (n_in, n_out), (weight_init, bias_init, scale_init)
    return _normal(layer, sizes, scale, state_dependent, inits, dtype, upscale)


def _normal(
    layer: str,
    sizes: tuple[int, int],
    to_scale: Scale | None,
    state_dependent: bool,
    inits: tuple[Initializer | None, Initializer | None, Initializer | None],
    dtype: torch.dtype,
    upscale: float | Tensor | None,
) -> Model:
    (n_in, n_out), (weight_init, bias_init, scale_init) = sizes, inits
    _check.sizes(layer, n_in=n_in, n_out=n_out)
    names = ("weight_init", "bias_init", "scale_init")
    _check.functions(layer, to_scale=to_scale, **dict(zip(names, inits, strict=True)))
    positive = softplus_scale() if to_scale is None else to_scale
    parts = {"loc": linear(n_in, n_out, True, weight_init, bias_init, dtype=dtype)}
    if state_dependent:
        own = scale_init or bias_init
        parts["scale"] = linear(n_in, n_out, True, weight_init, own, dtype=dtype)
    else:
        parts["scale"] = bias(n_out, bias_init=scale_init or zeros, dtype=dtype)

    def forward(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
        loc = call("loc", x)
        raw = call("scale", x if state_dependent else torch.zeros_like(loc))
        if upscale is not None:
            loc = upscale * (loc / upscale).tanh()
        return loc, positive(raw)

    return assembled(layer, parts, forward)


def _check_bounds(fn: str, low: Any, high: Any) -> None:
    _check.real(fn, "low", low, -math.inf)
    _check.real(fn, "high", high, -math.inf)
    _require_order(fn, "low", low, "high", high)


def _require_order(fn: str, name: str, low: Any, other: str, high: Any) -> None:
    if not isinstance(low, Tensor) and not isinstance(high, Tensor) and not low < high:
        raise ValueError(f"{fn}: {name} is {low}, expected it below {other}, which is {high}")


def _limited(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """A number in bounds, of which each is a float or a tensor."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in (low, high))
        return torch.minimum(torch.maximum(x, low), high)
    return x.clamp(low, high)
