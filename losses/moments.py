"""Running moments and ranges of returns, advantages and errors, to bring them to one scale.

States are TensorDicts that go in and come out; nothing is detached, so that what is normalized is a
function of the decay and of the data.

* ``ema_moments_*``: mean and variance, exponentially averaged and without the bias of the start.
* ``return_scale*``: how far apart the 5th and the 95th percentile lie, exponentially averaged.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ._check import check_flag, check_float, check_int, check_order, check_scalar, kind
from ._numbers import root
from ._state import check_dtype, entries, new_state

_MOMENTS = (("mean", "variance", "weight"), "ema_moments_init")
_RANGE = (("low", "high"), "return_scale_init")


def ema_moments_init(
    shape: Sequence[int] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TensorDictBase:
    """The state before the first update: mean, variance and weight 0.

    Args:
        shape: what is to have moments of its own: () for one mean over all numbers, ``[D]`` for
            one a component.
        dtype: floating-point type, torch's default if None.
        device: where the state is to be.

    Returns:
        A td of batch size ``[]`` with ``mean`` and ``variance`` ``[*shape]`` and ``weight`` ``[]``,
        the sum of all weights so far: 1 - decay^n after n updates.

    Raises:
        ValueError: a size is negative.
        TypeError: the shape holds no ints, or the dtype is not floating-point.

    Source: rlax, ``create_ema``.
    """
    name = "ema_moments_init"
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(f"{name}: shape is {kind(shape)}, expected a sequence of ints")
    for i, size in enumerate(shape):
        check_int(name, f"shape[{i}]", size, 0)
    check_dtype(name, dtype)
    zeros = torch.zeros(tuple(shape), dtype=dtype, device=device)
    weight = torch.zeros((), dtype=dtype, device=device)
    return new_state(mean=zeros, variance=zeros.clone(), weight=weight)


def ema_moments_update(
    state: TensorDictBase,
    x: Tensor,
    decay: float | Tensor = 0.99,
    *,
    mask: Tensor | None = None,
) -> TensorDictBase:
    """Exponential averages of x and of x^2, as debiased mean and variance.

        mu <- decay mu + (1 - decay) mean(x),    nu <- decay nu + (1 - decay) mean(x^2)
        w <- decay w + (1 - decay),    mean = mu / w,    variance = nu / w - mean^2

    rlax's ``create_ema``, and ``MovingAverage`` of the authors of DiscoRL: their state is mu, nu
    and ``decay_product`` = 1 - w. This one holds mean and variance themselves, updated around the
    mean, which is the same in exact arithmetic and cancels no digits where the mean is large. The
    first update gives the moments of x, whatever the decay (below 1).

    Args:
        state: from ``ema_moments_init`` or an earlier update.
        x: ``[*batch, *shape]`` float, for the state's shape; averaged over the batch.
        decay: in [0, 1]: 0.99 in DiscoRL, 0.999 in rlax, 0.99999 in MAPPO; float or 0-d tensor.
        mask: what of the batch counts, ``[*batch]`` bool; all if None. If nothing does, the state
            stays as it is.

    Returns:
        The new state, of the old one's dtype.

    Raises:
        ValueError: a shape or the decay is wrong, or the state lacks an entry.
        TypeError: a dtype is wrong.

    Source: Kingma & Ba (2015), section 3, for the debiasing; Yu et al. (2022), "The surprising
    effectiveness of PPO in cooperative multi-agent games", for values.
    """
    name = "ema_moments_update"
    mean, variance, total = entries(name, state, *_MOMENTS)
    shape = mean.shape
    batch = check_float(name, "x", x).shape[: x.dim() - len(shape)]
    if x.shape != (*batch, *shape) or 0 in batch:
        raise ValueError(
            f"{name}: x has shape {tuple(x.shape)}, expected "
            f"[{', '.join(['*batch', *map(str, shape)])}] (from state), and at least one number"
        )
    decay = _like(mean, check_scalar(name, "decay", decay, 0.0, 1.0))
    kept = None
    if mask is not None:
        kept = _check_mask(name, mask, batch).reshape(-1, *(1,) * len(shape))
    flat = x.to(mean.dtype).reshape(-1, *shape)
    flat = flat if kept is None else torch.where(kept, flat, 0.0)
    center = _mean(flat, kept)
    spread = _mean((flat - center).square(), kept)
    new_total = decay * total + (1 - decay)
    share = (1 - decay) / new_total.clamp(min=torch.finfo(total.dtype).tiny)
    if kept is not None:
        some = kept.any()
        share, new_total = torch.where(some, share, 0.0), torch.where(some, new_total, total)
    moved = center - mean
    return new_state(
        mean=mean + share * moved,
        variance=(1 - share) * (variance + share * moved.square()) + share * spread,
        weight=new_total,
    )


def ema_moments_normalize(
    state: TensorDictBase,
    x: Tensor,
    *,
    eps: float | Tensor = 1e-6,
    root_eps: float | Tensor = 1e-12,
    center: bool = True,
) -> Tensor:
    """Numbers brought to mean 0 and deviation 1: (x - mean) / (sqrt(variance + root_eps) + eps).

    Before the first update variance is 0, and the quotient large. Detaches nothing.

    Args:
        state: from ``ema_moments_update``.
        x: ``[*batch, *shape]`` float, for the state's shape.
        eps: what is added to the deviation, at least 0; float or 0-d tensor.
        root_eps: what is added to the variance, at least 0; likewise. With 0, the root's derivative
            at variance 0 is taken as 0.
        center: whether the mean is subtracted: for advantages it is, for temporal differences not.

    Returns:
        ``[*batch, *shape]``. For MAPPO's values take ``eps=0, root_eps=1e-5``; TorchRL's
        ``PopArtValueNorm`` takes the larger of variance and 1e-5, and not their sum.

    Raises:
        ValueError: a shape is wrong, or the state lacks an entry.
        TypeError: a dtype is wrong.

    Source: Oh et al. (2025), "Discovering state-of-the-art reinforcement learning algorithms",
    methods; Yu et al. (2022).
    """
    mean, deviation = _scale("ema_moments_normalize", state, x, eps, root_eps)
    return (x - mean if center else x) / deviation


def ema_moments_unnormalize(
    state: TensorDictBase,
    x: Tensor,
    *,
    eps: float | Tensor = 1e-6,
    root_eps: float | Tensor = 1e-12,
    center: bool = True,
) -> Tensor:
    """Inverse of ``ema_moments_normalize``: x (sqrt(variance + root_eps) + eps) + mean.

    Args:
        state: from ``ema_moments_update``.
        x: ``[*batch, *shape]`` float, for the state's shape.
        eps: as in ``ema_moments_normalize``.
        root_eps: likewise.
        center: likewise.

    Returns:
        ``[*batch, *shape]``.

    Raises:
        ValueError: a shape is wrong, or the state lacks an entry.
        TypeError: a dtype is wrong.

    Source: Yu et al. (2022).
    """
    mean, deviation = _scale("ema_moments_unnormalize", state, x, eps, root_eps)
    return x * deviation + mean if center else x * deviation


def return_scale_init(
    dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> TensorDictBase:
    """The state before the first update: both percentiles 0.

    Args:
        dtype: floating-point type, torch's default if None.
        device: where the state is to be.

    Returns:
        A td of batch size ``[]`` with ``low`` and ``high``, 0-d.

    Raises:
        TypeError: the dtype is not floating-point.

    Source: Hafner et al. (2023), "Mastering diverse domains through world models".
    """
    check_dtype("return_scale_init", dtype)
    zero = torch.zeros((), dtype=dtype, device=device)
    return new_state(low=zero, high=zero.clone())


def return_scale_update(
    state: TensorDictBase,
    returns: Tensor,
    decay: float | Tensor = 0.99,
    *,
    low_quantile: float | Tensor = 0.05,
    high_quantile: float | Tensor = 0.95,
    mask: Tensor | None = None,
) -> TensorDictBase:
    """Exponential averages of a low and a high percentile of the returns.

        low <- decay low + (1 - decay) quantile(returns, low_quantile),    high likewise

    A quantile is linear between the two returns that it falls between, and carries gradient to
    them. The averages start at 0 and are not debiased, as in TorchRL.

    Args:
        state: from ``return_scale_init`` or an earlier update.
        returns: ``[*batch]`` float, any shape; a NaN counts as the largest.
        decay: in [0, 1]; float or 0-d tensor.
        low_quantile: in [0, 1], not above ``high_quantile``; likewise.
        high_quantile: in [0, 1]; likewise.
        mask: returns that count, ``[*batch]`` bool; all if None. If none does, the state stays as
            it is.

    Returns:
        The new state, of the old one's dtype.

    Raises:
        ValueError: a shape or a number is wrong, or the state lacks an entry.
        TypeError: a dtype is wrong.

    Source: Hafner et al. (2023), equation 7.
    """
    name = "return_scale_update"
    old = entries(name, state, *_RANGE)
    shape = check_float(name, "returns", returns).shape
    if 0 in shape:
        raise ValueError(f"{name}: returns has shape {tuple(shape)}, expected at least one number")
    decay = _like(old[0], check_scalar(name, "decay", decay, 0.0, 1.0))
    quantiles = (
        check_scalar(name, "low_quantile", low_quantile, 0.0, 1.0),
        check_scalar(name, "high_quantile", high_quantile, 0.0, 1.0),
    )
    check_order(name, *quantiles, ("low_quantile", "high_quantile"))
    kept = None if mask is None else _check_mask(name, mask, shape).reshape(-1)
    ranked, count = _ranked(returns.to(old[0].dtype).reshape(-1), kept)
    found = [_quantile(ranked, count, q) for q in quantiles]
    new = [decay * before + (1 - decay) * now for before, now in zip(old, found, strict=True)]
    if kept is not None:
        new = [torch.where(count > 0, *pair) for pair in zip(new, old, strict=True)]
    return new_state(low=new[0], high=new[1])


def return_scale(state: TensorDictBase, limit: float | Tensor = 1.0) -> Tensor:
    """What to divide returns or advantages by: max(limit, high - low).

    Args:
        state: from ``return_scale_update``.
        limit: smallest scale, at least 0, so that small returns are not blown up; float or 0-d
            tensor.

    Returns:
        0-d.

    Raises:
        ValueError: the limit is negative, or the state lacks an entry.
        TypeError: a dtype is wrong.

    Source: Hafner et al. (2023), equation 7.
    """
    low, high = entries("return_scale", state, *_RANGE)
    return (high - low).clamp(min=_like(low, check_scalar("return_scale", "limit", limit, 0.0)))


# ---- private


def _scale(
    function: str,
    state: TensorDictBase,
    x: Tensor,
    eps: float | Tensor,
    root_eps: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and deviation, each ``[*shape]``."""
    mean, variance, _ = entries(function, state, *_MOMENTS)
    size = len(mean.shape)
    if check_float(function, "x", x).shape[x.dim() - size :] != mean.shape or x.dim() < size:
        raise ValueError(
            f"{function}: x has shape {tuple(x.shape)}, expected "
            f"[{', '.join(['*batch', *map(str, mean.shape)])}] (from state)"
        )
    eps = check_scalar(function, "eps", eps, 0.0)
    return mean, root(variance + check_scalar(function, "root_eps", root_eps, 0.0)) + eps


def _like(x: Tensor, value: Any) -> Any:
    """A number in the dtype of ``x``: 0-d as the state may be, it would bring its own."""
    return value.to(x.dtype) if isinstance(value, Tensor) else value


def _check_mask(function: str, mask: Any, batch: Sequence[int]) -> Tensor:
    if check_flag(function, "mask", mask).shape != torch.Size(batch):
        raise ValueError(
            f"{function}: mask has shape {tuple(mask.shape)}, expected {list(batch)} (from x)"
        )
    return mask


def _mean(x: Tensor, kept: Tensor | None) -> Tensor:
    """Mean over the first axis of the rows that are kept; 0 of none."""
    if kept is None:
        return x.mean(0)
    return torch.where(kept, x, 0.0).sum(0) / kept.sum().clamp(min=1)


def _ranked(x: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """``x`` ``[n]`` in order, and how many it holds: first those kept, then zeros."""
    if kept is None:
        return x.sort().values, torch.tensor(x.shape[0], device=x.device)
    ranked, count = torch.where(kept, x, torch.inf).sort().values, kept.sum()
    return torch.where(torch.arange(x.shape[0], device=x.device) < count, ranked, 0.0), count


def _quantile(ranked: Tensor, count: Tensor, q: float | Tensor) -> Tensor:
    """Quantile of the first ``count`` numbers: between two of them, linear."""
    last = (count - 1).clamp(min=0)
    fine = torch.float32 if ranked.device.type == "mps" else torch.float64  # each rank counts
    place = (q.to(fine) if isinstance(q, Tensor) else q) * last.to(fine)
    below = place.detach().floor().long().clamp(min=0).minimum(last)
    share = (place - below).to(ranked.dtype)
    low, high = (
        ranked.gather(0, i.unsqueeze(0)).squeeze(0) for i in (below, (below + 1).minimum(last))
    )
    return low + share * (high - low)
