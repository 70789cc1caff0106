"""Normalization by the moments of a batch; its running statistics are buffers, in and out.

    mu, v       mean of each channel over the batch and the dims after the channels, and mean square
                distance from it
    m, s^2      running_mean, running_var: m' = m + momentum (mu - m), and s^2 likewise with
                v n / (n - 1), for n values a channel

Training uses mu and v and gives new buffers; with train=False the layer uses m and s^2 and gives
its buffers back. The running statistics have derivatives with respect to all that they come from,
momentum included. A training loop that differentiates by `backward()`, not by `paramtree.grad`,
cuts them with `paramtree.detach(buffers)`, or they keep the graphs of all batches before.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from .. import tree
from ..model import Model
from . import _check, _window
from .initializers import Initializer
from .norm import affine_params

_NAMES = ("running_mean", "running_var", "num_batches_tracked")

# (mu, v, buffers) to r and d, of the normalized batch times r plus d
Correction = Callable[[Tensor, Tensor, dict[str, Tensor]], tuple[Tensor, Tensor]]


def batch_norm(
    n_channels: int,
    eps: float | Tensor = 1e-5,
    momentum: float | Tensor | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
    *,
    spatial: int = 0,
    train: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Normalizes each channel over a batch.

        y = (x - mu) / sqrt(v + eps) weight + bias in training, else with m and s^2

    Params, with affine: weight [C], bias [C].
    Buffers, with track_running_stats: running_mean [C] and running_var [C], in float32 at least,
    and num_batches_tracked, int64 [].

    Args:
        n_channels: C.
        eps: added to the variance.
        momentum: how much of a new batch is taken into the running statistics, in [0, 1]; None for
            all batches alike, 1 / num_batches_tracked.
        affine: whether there are weight and bias.
        track_running_stats: whether there are running statistics; without, train makes no
            difference.
        spatial: how many dims follow the channels: 0 for vectors, 2 for images.
        train: whether this is training; params and buffers are the same either way.
        weight_init: initializer of weight; default: ones.
        bias_init: of bias; default: zeros.
        dtype: of the params.

    Returns:
        Model from x float [*batch, C, *spatial] to the same shape; or from (x, mask), with mask
        bool [*batch, *spatial], True for what counts in the moments. A batch of which nothing
        counts leaves the running statistics as they were.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a size or a number is out of range, or, when applied in training, there are
            fewer than two values a channel.

    Source: Ioffe & Szegedy (2015), Batch normalization, algorithms 1 and 2.
    """
    made = f"batch_norm({n_channels}, spatial={spatial})"
    names = ("weight", "bias") if affine else ()
    inits = (weight_init, bias_init)
    rest = (momentum, names, track_running_stats, spatial, train, inits, dtype)
    return _batch_norm("batch_norm", made, n_channels, eps, *rest, None)


def batch_renorm(
    n_channels: int,
    eps: float | Tensor = 1e-5,
    momentum: float | Tensor = 0.01,
    max_r: float | Tensor = 3.0,
    max_d: float | Tensor = 5.0,
    warmup_steps: int = 10_000,
    smooth: bool = False,
    *,
    spatial: int = 0,
    train: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Batch norm that corrects, in training too, by the running statistics.

        r = clip(sqrt(v + eps) / sqrt(s^2 + eps), 1 / max_r, max_r)
        d = clip((mu - m) / sqrt(s^2 + eps), -max_d, max_d)
        y = ((x - mu) / sqrt(v + eps) r + d) weight + bias in training

    As in the paper, mu and v are constants in r and d (a full stop: no derivative of any order goes
    through them there).

    Params: weight [C], bias [C].
    Buffers: as in `batch_norm`.

    Args:
        n_channels: C.
        eps: added to variances.
        momentum: as in `batch_norm`.
        max_r: at least 1.
        max_d: at least 0.
        warmup_steps: for how many batches r and d are 1 and 0, as in `batch_norm`.
        smooth: whether r and d come in linearly over the warm-up, not at its end.
        spatial: as in `batch_norm`.
        train: likewise.
        weight_init: likewise.
        bias_init: likewise.
        dtype: of the params.

    Returns:
        Model as in `batch_norm`.

    Raises:
        TypeError: as in `batch_norm`.
        ValueError: as in `batch_norm`.

    Source: Ioffe (2017), Batch renormalization, algorithm 1; with CrossQ's warm-up: Bhatt et al.
    (2024), CrossQ: batch normalization in deep reinforcement learning, appendix A.
    """
    layer, made = "batch_renorm", f"batch_renorm({n_channels}, spatial={spatial})"
    _check.real(layer, "momentum", momentum, 0.0, 1.0)
    _check.real(layer, "max_r", max_r, 1.0)
    _check.real(layer, "max_d", max_d)
    _window.per_dim(layer, "warmup_steps", warmup_steps, 1, 0)

    def correction(mean: Tensor, var: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        wide = (n_channels, *[1] * spatial)
        known, seen = state["running_mean"].view(wide), state["num_batches_tracked"]
        scale = torch.rsqrt(state["running_var"].view(wide) + eps)
        r = _clipped(torch.sqrt(var.detach() + eps) * scale, 1 / max_r, max_r)
        d = _clipped((mean.detach() - known) * scale, -max_d, max_d)
        share = seen.to(r.dtype) / warmup_steps if smooth and warmup_steps else seen >= warmup_steps
        share = share.to(r.dtype).clamp(max=1.0)
        return 1.0 + (r - 1.0) * share, d * share

    inits = (weight_init, bias_init)
    rest = (momentum, ("weight", "bias"), True, spatial, train, inits, dtype)
    return _batch_norm(layer, made, n_channels, eps, *rest, correction)


def _batch_norm(
    layer: str,
    made: str,
    n_channels: int,
    eps: float | Tensor,
    momentum: float | Tensor | None,
    names: tuple[str, ...],
    tracks: bool,
    spatial: int,
    train: bool,
    inits: tuple[Initializer | None, Initializer | None],
    dtype: torch.dtype,
    correction: Correction | None,
) -> Model:
    _check.sizes(layer, n_channels=n_channels)
    _check.real(layer, "eps", eps)
    if momentum is not None:
        _check.real(layer, "momentum", momentum, 0.0, 1.0)
    _window.per_dim(layer, "spatial", spatial, 1, 0)
    make, read = affine_params(layer, made, (n_channels,), names, inits, dtype)
    wide = (n_channels, *[1] * spatial)

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        params, kind = make(key), torch.promote_types(dtype, torch.float32)
        if not tracks:
            return params, tree.new({})
        zeros = torch.zeros(n_channels, dtype=kind, device=key.device)
        count = torch.zeros((), dtype=torch.int64, device=key.device)
        return params, tree.new(dict(zip(_NAMES, (zeros, zeros + 1.0, count), strict=True)))

    def apply(params: TensorDict, buffers: TensorDict, inputs: Any) -> tuple[Tensor, TensorDict]:
        weight, bias = read(params)
        x, mask = _inputs(layer, made, inputs, n_channels, spatial, weight)
        kind, work = x.dtype, torch.promote_types(x.dtype, torch.float32)
        x, state = x.to(work), _read(layer, made, buffers, n_channels if tracks else 0, work)
        weight, bias = (None if p is None else p.to(work) for p in (weight, bias))
        if tracks and not train:
            out = x - state["running_mean"].view(wide)
            scale = torch.rsqrt(state["running_var"].view(wide) + eps)
        else:
            out, mean, var, count = _moments(layer, made, x, mask, spatial)
            if tracks:
                buffers = _tracked(buffers, state, momentum, mean, var, count)
            if mask is None and correction is None and not isinstance(eps, Tensor):
                x, batch = _window.fold(x, spatial + 1)  # one operation, with one for its gradient
                out = functional.batch_norm(x, None, None, weight, bias, True, eps=eps)
                return _window.unfold(out, batch).to(kind), buffers
            scale = torch.rsqrt(var + eps)
            if correction is not None:
                r, d = correction(mean, var, state)
                out, scale = out * (scale * r) + d, torch.ones_like(r)
        out = out * (scale if weight is None else scale * weight.view(wide))
        return (out if bias is None else out + bias.view(wide)).to(kind), buffers

    return Model(init, apply)


def _clipped(x: Tensor, low: Any, high: Any) -> Tensor:
    """A tensor between two numbers, or two tensors."""
    return torch.clamp(x, low, high)


def _inputs(
    layer: str, made: str, inputs: Any, n_channels: int, spatial: int, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """x, and the mask [*batch, 1, *spatial] if there is one."""
    given = inputs if isinstance(inputs, tuple) else (inputs, None)
    if len(given) != 2:
        raise ValueError(f"{layer}: the input is a tuple of {len(given)}, expected x or (x, mask)")
    x, mask = given
    _window.channels(layer, made, x, n_channels, spatial, weight)
    if mask is None:
        return x, None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{layer}: mask is {got}, expected a bool tensor or None")
    at = x.dim() - 1 - spatial
    wanted = (*x.shape[:at], *x.shape[at + 1 :])
    _check.shape(layer, "mask", mask, wanted, "x without its channels")
    return x, mask.unsqueeze(at)


def _read(
    layer: str, made: str, buffers: Any, n_channels: int, work: torch.dtype
) -> dict[str, Tensor]:
    """The buffers by name, floats in the dtype to compute in; none for no channels."""
    names = _NAMES if n_channels else ()
    state = _check.level(layer, "buffers", buffers, names)
    for name in names:
        value, counts = state[name], name == _NAMES[2]
        wanted = () if counts else (n_channels,)
        if not isinstance(value, Tensor) or value.shape != wanted:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{layer}: buffers.{name} is {got}, expected a tensor {wanted} (from {made})"
            )
        if counts != (value.dtype == torch.int64) or not (counts or value.is_floating_point()):
            kind = "int64" if counts else "a float dtype"
            raise TypeError(f"{layer}: buffers.{name} has dtype {value.dtype}, expected {kind}")
        state[name] = value if counts else value.to(work)
    return state


def _moments(
    layer: str, made: str, x: Tensor, mask: Tensor | None, spatial: int
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Centered x, mean and variance that broadcast with it, and how many values each is of."""
    channel = x.dim() - 1 - spatial
    dims = tuple([dim for dim in range(x.dim()) if dim != channel])
    n = math.prod([x.shape[dim] for dim in dims])
    if n < 2:
        raise ValueError(
            f"{layer}: x has shape {tuple(x.shape)}, {n} values for each channel, expected at "
            f"least two in training (from {made})"
        )
    if mask is None:
        mean = x.mean(dims, keepdim=True)
        out = x - mean
        return out, mean, out.square().mean(dims, keepdim=True), n
    count = mask.sum().to(x.dtype)
    share = mask / count.clamp(min=1.0)
    mean = (torch.where(mask, x, 0.0) * share).sum(dims, keepdim=True)
    out = x - mean
    return out, mean, (torch.where(mask, out, 0.0).square() * share).sum(dims, keepdim=True), count


def _tracked(
    buffers: TensorDict,
    state: dict[str, Tensor],
    momentum: float | Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Any,
) -> TensorDict:
    """The buffers after a batch."""
    tracked = state["num_batches_tracked"] + 1
    if momentum is None:
        momentum = 1.0 / tracked.to(mean.dtype)
    if isinstance(momentum, Tensor):
        momentum = momentum.to(mean.dtype)
    if isinstance(count, Tensor):
        momentum = momentum * (count > 0).to(mean.dtype)
        var = var * (count / (count - 1).clamp(min=1.0))
    else:
        var = var * (count / (count - 1))
    old = tree.entries(buffers)
    made = {"num_batches_tracked": tracked}
    for name, new in (("running_mean", mean), ("running_var", var)):
        moved = torch.lerp(state[name], new.reshape(-1), momentum)
        made[name] = moved.to(old[name].dtype)
    return tree.rebuild(buffers, {name: made[name] for name in old})
