"""Normalization by everything seen so far: observations, and rewards by the returns they add to.

Count, mean and variance are buffers, merged with those of a batch (Chan et al.):

    d = mean_b - mean,  n = count + n_b,  mean' = mean + d n_b / n
    var' = (var count + var_b n_b + d² count n_b / n) / n

They are held in float64, in which 2^53 steps can be counted, and have derivatives with respect to
all that they come from. A training loop that differentiates by `backward()` through what is
normalized cuts them with `paramtree.detach(buffers)`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree
from ..model import Model, require_key
from . import _check

_NAMES = ("count", "mean", "var")


def running_normalizer(
    shape: int | Sequence[int],
    *,
    eps: float | Tensor = 1e-8,
    clip: float | Tensor | None = None,
    prior_count: float | Tensor = 1e-4,
    train: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Model:
    """Normalizes by the mean and variance of all that came before, this batch included.

        y = (x - mean') / sqrt(var' + eps), clipped

    Buffers: count [], mean and var, of the shape; at the start prior_count, 0 and 1.

    Args:
        shape: of one observation, an int for a vector.
        eps: added to the variance.
        clip: bound of |y|; default: none. (Baselines often have 5 or 10.)
        prior_count: how many observations the start counts for, above 0.
        train: whether statistics are updated, and then used; else those of the buffers are used.
        dtype: of the buffers.

    Returns:
        Model from x float [*batch, *shape] to the same shape and dtype; or from (x, mask), with
        mask bool [*batch], True for what counts in the statistics. All batch axes are alike.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size or a number is out of range.

    Source: Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance, equation 2.1.
    The numbers are those of Gymnasium's NormalizeObservation and its RunningMeanStd.
    """
    layer, made = "running_normalizer", f"running_normalizer({shape})"
    size = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    _check.sizes(layer, **{f"shape[{i}]": one for i, one in enumerate(size)})
    _check_numbers(layer, eps, clip, prior_count)

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        require_key(layer, key)
        return tree.new({}), _start(size, prior_count, key.device, dtype)

    def apply(params: TensorDict, buffers: TensorDict, inputs: Any) -> tuple[Tensor, TensorDict]:
        state = _read(layer, made, buffers, size)
        x, mask = _check.inputs(layer, inputs, "x", "mask")
        _check_floats(layer, "x", x)
        lead = x.dim() - len(size)
        if lead < 0 or x.shape[lead:] != size:
            wanted = f"[*batch, {', '.join(map(str, size))}]"
            raise ValueError(
                f"{layer}: x has shape {tuple(x.shape)}, expected {wanted} (from {made})"
            )
        if mask is not None:
            _check_flags(layer, "mask", mask)
            _check.shape(layer, "mask", mask, tuple(x.shape[:lead]), "*batch of x")
        wide = x.to(state["mean"].dtype)
        if train:
            state = _merged(state, wide, mask, lead)
            buffers = tree.rebuild(buffers, state)
        out = (wide - state["mean"]) * torch.rsqrt(state["var"] + eps)
        return _clipped(out, clip).to(x.dtype), buffers

    return Model(init, apply)


def reward_normalizer(
    gamma: float | Tensor = 0.99,
    *,
    eps: float | Tensor = 1e-8,
    clip: float | Tensor | None = None,
    prior_count: float | Tensor = 1e-4,
    train: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Model:
    """Divides rewards by the deviation of the discounted sums of those before them.

        h_t = gamma h_(t-1) + r_t, from 0 where an episode starts,  y_t = r_t / sqrt(var'(h) + eps)

    It's a recurrent layer, with time first: `recurrent_model(reward_normalizer(), ("next",
    "reward"), ("next", "reward"), "return", sequence=True)` normalizes those of a trajectory. The
    statistics take in all steps that are given, and then all are divided by the same number.

    Buffers: as in `running_normalizer`, of shape [].

    Args:
        gamma: discount, in [0, 1].
        eps: added to the variance.
        clip: bound of |y|; default: none.
        prior_count: as in `running_normalizer`.
        train: likewise.
        dtype: of the buffers.

    Returns:
        Model whose input is r float [T, *batch], T >= 1, and gives y [T, *batch]; or a tuple
        (r, reset) or (r, reset, h), with reset bool [T, *batch] or None, True at the first step of
        an episode, and h float [*batch] or zero, and gives (y, h) with the final sum.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a number is out of range; or, when applied, shapes differ.

    Source: Engstrom et al. (2020), Implementation matters in deep policy gradients, section 3. Step
    by step the numbers are those of Stable-Baselines3's VecNormalize.
    """
    layer, made = "reward_normalizer", "reward_normalizer()"
    _check.real(layer, "gamma", gamma, 0.0, 1.0)
    _check_numbers(layer, eps, clip, prior_count)

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        require_key(layer, key)
        return tree.new({}), _start((), prior_count, key.device, dtype)

    def apply(params: TensorDict, buffers: TensorDict, inputs: Any) -> tuple[Any, TensorDict]:
        state = _read(layer, made, buffers, ())
        x, reset, h = _check.inputs(layer, inputs, "r", "reset", "h")
        _check_floats(layer, "r", x)
        if x.dim() < 1 or x.shape[0] < 1:
            raise ValueError(f"{layer}: r has shape {tuple(x.shape)}, expected [T, *batch], T >= 1")
        if reset is not None:
            _check_flags(layer, "reset", reset)
            _check.shape(layer, "reset", reset, tuple(x.shape), "r")
        if h is None:
            h = x.new_zeros(x.shape[1:])
        _check_floats(layer, "h", h)
        _check.shape(layer, "h", h, tuple(x.shape[1:]), "*batch of r")
        if train:
            sums = []
            for t, reward in enumerate(x):
                h = h if reset is None else torch.where(reset[t], 0.0, h)
                h = gamma * h + reward
                sums.append(h)
            wide = torch.stack(sums).to(state["mean"].dtype)
            state = _merged(state, wide, None, wide.dim())
            buffers = tree.rebuild(buffers, state)
        out = x.to(state["var"].dtype) * torch.rsqrt(state["var"] + eps)
        out = _clipped(out, clip).to(x.dtype)
        return (out, h) if isinstance(inputs, tuple) else out, buffers

    return Model(init, apply)


def _start(
    size: tuple[int, ...], prior_count: float | Tensor, device: torch.device, dtype: torch.dtype
) -> TensorDict:
    mean = torch.zeros(size, device=device, dtype=dtype)
    count = torch.zeros((), device=device, dtype=dtype) + prior_count
    return tree.new({"count": count, "mean": mean, "var": mean + 1.0})


def _read(layer: str, made: str, buffers: Any, size: tuple[int, ...]) -> dict[str, Tensor]:
    """The statistics by name, after a look at each."""
    state = _check.level(layer, "buffers", buffers, _NAMES)
    for name in _NAMES:
        _check_floats(layer, f"buffers.{name}", state[name])
        wanted = () if name == "count" else size
        _check.shape(layer, f"buffers.{name}", state[name], wanted, made)
    return state


def _merged(
    state: dict[str, Tensor], x: Tensor, mask: Tensor | None, lead: int
) -> dict[str, Tensor]:
    """The statistics of all that came before and of x [*batch, *shape], with `lead` batch axes."""
    dims = tuple(range(lead))
    if 0 in x.shape[:lead]:
        return state
    count, mean, var = (state[name] for name in _NAMES)
    if mask is None:
        more: Any = math.prod(x.shape[:lead])
        own = x.mean(dims) if dims else x
        spread = (x - own).square()
        spread = spread.mean(dims) if dims else spread
    else:
        wide = mask.reshape(mask.shape + (1,) * (x.dim() - lead))
        more = mask.sum().to(x.dtype)
        share = wide / more.clamp(min=1.0)
        own = (torch.where(wide, x, 0.0) * share).sum(dims)
        spread = (torch.where(wide, x - own, 0.0).square() * share).sum(dims)
    total, shift = count + more, own - mean
    kept, new = count / total, more / total
    after = var * kept + spread * new + shift.square() * (kept * new)
    return {"count": total, "mean": mean + shift * new, "var": after}


def _clipped(x: Tensor, clip: float | Tensor | None) -> Tensor:
    bound: Any = clip
    return x if clip is None else x.clamp(-bound, bound)


def _check_numbers(layer: str, eps: Any, clip: Any, prior_count: Any) -> None:
    _check.real(layer, "eps", eps)
    if clip is not None:
        _check.real(layer, "clip", clip)
    _check.real(layer, "prior_count", prior_count)
    if not isinstance(prior_count, Tensor) and prior_count == 0:
        raise ValueError(f"{layer}: prior_count is 0, expected a number above 0")


def _check_floats(layer: str, name: str, x: Any) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{layer}: {name} is {got}, expected a float tensor")


def _check_flags(layer: str, name: str, x: Any) -> None:
    if not isinstance(x, Tensor) or x.dtype != torch.bool:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{layer}: {name} is {got}, expected a bool tensor or None")
