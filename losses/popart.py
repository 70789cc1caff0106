"""PopArt: a value head whose targets are normalized, and whose outputs stay what they were.

Several tasks share a network with one output a task. Task i's targets have a shift mu_i and a scale
sigma_i, tracked over time; the head learns (target - mu_i) / sigma_i, and what it says about
targets is sigma_i * output + mu_i. When the two move, the head's weights are moved against them
("preserving outputs precisely, while adaptively rescaling targets"):

    >>> import torch
    >>> weight, bias, x = torch.ones(2, 3), torch.zeros(2), torch.ones(3)
    >>> state, task = popart_init(2), torch.tensor([0, 0, 1])
    >>> new = popart_update(state, torch.tensor([1.0, 3.0, 5.0]), task)
    >>> moved, shifted = popart_rescale(weight, bias, state, new)
    >>> before = state["shift"] + state["scale"] * (weight @ x + bias)
    >>> torch.testing.assert_close(new["shift"] + new["scale"] * (moved @ x + shifted), before)

A state is a TensorDict with ``shift``, ``scale`` and ``variance``, each ``[n]``. It goes in and
comes out; nothing is detached, so hold it (``state.detach()``) where no gradient is to run through.
"""

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ._check import (
    check_flag,
    check_float,
    check_int,
    check_order,
    check_scalar,
    dtype,
    gather,
    is_integer,
    kind,
)
from ._numbers import root
from ._state import check_dtype, entries, new_state

_KEYS = ("shift", "scale", "variance")


def popart_init(
    n: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> TensorDictBase:
    """The state before the first update: shift 0, scale 1, variance 1.

    Args:
        n: number of outputs, one a task; at least 1.
        dtype: floating-point type, torch's default if None.
        device: where the state is to be.

    Returns:
        A td of batch size ``[]`` with ``shift``, ``scale`` and ``variance``, each ``[n]``.

    Raises:
        ValueError: ``n`` is below 1.
        TypeError: ``n`` is not an int, or the dtype is not floating-point.

    Source: van Hasselt et al. (2016), "Learning values across many orders of magnitude".
    """
    check_int("popart_init", "n", n, 1)
    check_dtype("popart_init", dtype)
    one = torch.ones(n, dtype=dtype, device=device)
    return _state(torch.zeros_like(one), one, one.clone())


def popart_update(
    state: TensorDictBase,
    targets: Tensor,
    indices: Tensor,
    step_size: float | Tensor = 3e-4,
    scale_lb: float | Tensor = 1e-4,
    scale_ub: float | Tensor = 1e6,
    *,
    mask: Tensor | None = None,
) -> TensorDictBase:
    """Adaptive rescaling: moves shift and scale towards the targets' mean and deviation.

        mu_i <- mu_i + step_size sum_t (G_t - mu_i)
        nu_i <- nu_i + step_size sum_t (G_t^2 - nu_i)
        sigma_i = sqrt(clip(nu_i - mu_i^2, scale_lb^2, scale_ub^2))

    with the sums over the targets of index i: n of them take a step of n times ``step_size``.
    rlax's ``art``, with two differences: the state holds the variance nu - mu^2 and not nu, which
    for targets far from 0 would cancel; and nothing is detached, so that the new state is a
    function of the step size and of the targets.

    Args:
        state: from ``popart_init`` or an earlier update.
        targets: what the outputs are to learn, unnormalized, ``[...]`` float.
        indices: which output each target is for, ``[...]`` of integers.
        step_size: in [0, 1]; float or 0-d tensor.
        scale_lb: smallest scale, at least 0; likewise.
        scale_ub: largest scale, not below ``scale_lb``; likewise.
        mask: targets that count, ``[...]`` bool; all if None.

    Returns:
        The new state.

    Raises:
        ValueError: a shape or an index is wrong, or the state lacks an entry.
        TypeError: a dtype is wrong.

    Source: van Hasselt et al. (2016), section 2.1; Hessel et al. (2019), "Multi-task deep
    reinforcement learning with PopArt", for several tasks and the defaults.
    """
    name = "popart_update"
    shift, _, variance = _entries(name, "state", state)
    indices = _check_indices(name, "targets", targets, indices, mask)
    step, low, high = (
        check_scalar(name, key, value, *bounds)
        for key, value, bounds in (
            ("step_size", step_size, (0.0, 1.0)),
            ("scale_lb", scale_lb, (0.0,)),
            ("scale_ub", scale_ub, (0.0,)),
        )
    )
    check_order(name, low, high, ("scale_lb", "scale_ub"))
    chosen = indices.unsqueeze(-1) == torch.arange(shift.shape[0], device=shift.device)
    if mask is not None:
        chosen = chosen & mask.unsqueeze(-1)
        targets = torch.where(mask, targets, 0.0)
    error = targets.to(shift.dtype) - _picked(name, shift, indices)

    def summed(x: Tensor) -> Tensor:  # [...] -> [n]
        return step * torch.where(chosen, x.unsqueeze(-1), 0.0).reshape(-1, *shift.shape).sum(0)

    moved = summed(error)
    weight = summed(torch.ones_like(error))
    variance = (1 - weight) * variance + summed(error.square()) - moved.square()
    scale = root(variance.clamp(min=low**2).clamp(max=high**2))
    return _state(shift + moved, scale, variance)


def popart_rescale(
    weight: Tensor, bias: Tensor, old: TensorDictBase, new: TensorDictBase
) -> tuple[Tensor, Tensor]:
    """A linear layer's parameters after its targets were rescaled: what it says is preserved.

        w_i <- w_i sigma_i / sigma_i',    b_i <- (sigma_i b_i + mu_i - mu_i') / sigma_i'

    so that sigma_i' output' + mu_i' = sigma_i output + mu_i for each input. Detaches nothing.

    Args:
        weight: ``[n, m]`` float, one row an output.
        bias: ``[n]`` float.
        old: the state that the parameters belong to.
        new: the state that they are to belong to.

    Returns:
        The new weight and bias.

    Raises:
        ValueError: a shape is wrong, or a state lacks an entry.
        TypeError: a dtype is wrong.

    Source: van Hasselt et al. (2016), proposition 1; rlax's ``pop``, whose weight is ``[m, n]``.
    """
    name = "popart_rescale"
    shift, scale, _ = _entries(name, "old", old)
    new_shift, new_scale, _ = _entries(name, "new", new)
    n = shift.shape[0]
    for key, x, fits, wanted in (
        ("weight", weight, lambda s: len(s) == 2 and s[0] == n, f"[{n}, m]"),
        ("bias", bias, lambda s: s == (n,), f"[{n}]"),
        ("new's shift", new_shift, lambda s: s == (n,), f"[{n}]"),
    ):
        if not fits(check_float(name, key, x).shape):
            raise ValueError(
                f"{name}: {key} has shape {tuple(x.shape)}, expected {wanted} (from old)"
            )
    return (
        weight * (scale / new_scale).unsqueeze(-1),
        (scale * bias + shift - new_shift) / new_scale,
    )


def popart_normalize(state: TensorDictBase, x: Tensor, indices: Tensor | None = None) -> Tensor:
    """Normalized values, (x - mu_i) / sigma_i. Detaches nothing.

    Args:
        state: from ``popart_init`` or ``popart_update``.
        x: unnormalized values, ``[...]`` float; or, without ``indices``, ``[..., n]``, one an
            output.
        indices: which output each value is of, ``[...]`` of integers.

    Returns:
        As ``x``.

    Raises:
        ValueError: a shape or an index is wrong, or the state lacks an entry.
        TypeError: a dtype is wrong.

    Source: van Hasselt et al. (2016), section 2.
    """
    shift, scale = _moments("popart_normalize", state, x, indices)
    return (x - shift) / scale


def popart_unnormalize(state: TensorDictBase, x: Tensor, indices: Tensor | None = None) -> Tensor:
    """Unnormalized values, sigma_i x + mu_i: inverse of ``popart_normalize``. Detaches nothing.

    Args:
        state: from ``popart_init`` or ``popart_update``.
        x: normalized values, ``[...]`` float; or, without ``indices``, a head's outputs ``[...,
            n]``, one a task.
        indices: which output each value is of, ``[...]`` of integers.

    Returns:
        As ``x``.

    Raises:
        ValueError: a shape or an index is wrong, or the state lacks an entry.
        TypeError: a dtype is wrong.

    Source: van Hasselt et al. (2016), section 2.
    """
    shift, scale = _moments("popart_unnormalize", state, x, indices)
    return scale * x + shift


def _state(shift: Tensor, scale: Tensor, variance: Tensor) -> TensorDictBase:
    return new_state(**dict(zip(_KEYS, (shift, scale, variance), strict=True)))


def _entries(function: str, name: str, state: Any) -> list[Tensor]:
    """Shift, scale and variance, each ``[n]``."""
    found = entries(function, state, _KEYS, "popart_init", name)
    shape = found[0].shape
    for key, value in zip(_KEYS, found, strict=True):
        if value.dim() != 1 or value.shape != shape:
            wanted = f"[{shape[0]}] (from shift)" if len(shape) == 1 else "[n]"
            raise ValueError(
                f"{function}: {name}'s {key} has shape {tuple(value.shape)}, expected {wanted}"
            )
    return found


def _moments(
    function: str, state: TensorDictBase, x: Tensor, indices: Tensor | None
) -> tuple[Tensor, Tensor]:
    shift, scale, _ = _entries(function, "state", state)
    if indices is not None:
        indices = _check_indices(function, "x", x, indices)
        return _picked(function, shift, indices), _picked(function, scale, indices)
    n = shift.shape[0]
    if not check_float(function, "x", x).dim() or x.shape[-1] != n:
        raise ValueError(
            f"{function}: x has shape {tuple(x.shape)}, expected [..., {n}] (from state), or give "
            "indices"
        )
    return shift, scale


def _check_indices(function: str, name: str, x: Any, indices: Any, mask: Any = None) -> Tensor:
    """The indices as int64, 0 where they are masked."""
    shape = check_float(function, name, x).shape
    if not isinstance(indices, Tensor):
        raise TypeError(f"{function}: indices is {kind(indices)}, expected a tensor")
    if not is_integer(indices):
        raise TypeError(f"{function}: indices has dtype {dtype(indices)}, expected integers")
    if mask is not None:
        check_flag(function, "mask", mask)
    for key, value in (("indices", indices), ("mask", mask)):
        if value is not None and value.shape != shape:
            raise ValueError(
                f"{function}: {key} has shape {tuple(value.shape)}, expected {list(shape)} "
                f"(from {name})"
            )
    return indices.long() if mask is None else torch.where(mask, indices.long(), 0)


def _picked(function: str, x: Tensor, indices: Tensor) -> Tensor:
    """``x[indices]``."""
    return gather(function, "indices", x.expand(*indices.shape, -1), indices, "state")
