"""Distances between a number and what it should be, and what a gradient may be on its way back.

They take tensors of any one shape, ``[T, *batch]`` or other, work elementwise and detach nothing.
Each is a ``distance`` for the reducers that regress a value.
"""

from typing import Any

import torch
from torch import Tensor

from ._check import (
    check_alike,
    check_divisor,
    check_float,
    check_hyper,
)
from ._numbers import bounded


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error (prediction - target)^2, without a factor of 1/2.

    Args:
        prediction: ``[...]`` float.
        target: ``[...]`` float, of the same shape. Carries gradient as the prediction does.

    Returns:
        ``[...]``, one number per element.

    Raises:
        ValueError: the shapes differ.
        TypeError: an argument is not floating-point.

    Source: Hastie et al. (2009), "The elements of statistical learning", section 10.6.
    """
    check_alike("squared_error", {"prediction": prediction, "target": target})
    return (prediction - target).square()


def half_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Half of the squared error, (prediction - target)^2 / 2, whose derivative has no factor.

    Args:
        prediction: ``[...]`` float.
        target: ``[...]`` float, of the same shape. Carries gradient as the prediction does.

    Returns:
        ``[...]``, one number per element.

    Raises:
        ValueError: the shapes differ.
        TypeError: an argument is not floating-point.

    Source: Haarnoja et al. (2018), "Soft actor-critic algorithms and applications", equation 5.
    """
    check_alike("half_squared_error", {"prediction": prediction, "target": target})
    return 0.5 * (prediction - target).square()


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute error |prediction - target|, whose derivative is taken as 0 where it is 0.

    Args:
        prediction: ``[...]`` float.
        target: ``[...]`` float, of the same shape. Carries gradient as the prediction does.

    Returns:
        ``[...]``, one number per element.

    Raises:
        ValueError: the shapes differ.
        TypeError: an argument is not floating-point.

    Source: Hastie et al. (2009), "The elements of statistical learning", section 10.6.
    """
    check_alike("absolute_error", {"prediction": prediction, "target": target})
    return (prediction - target).abs()


def huber(x: Tensor, delta: float | Tensor = 1.0) -> Tensor:
    """Huber's function: a square near zero, linear from ``delta`` on.

        x^2 / 2                   where |x| <= delta
        delta (|x| - delta / 2)   elsewhere

    Its slope is x, held to [-delta, delta]; infinite numbers have a finite one.

    Args:
        x: ``[...]`` float.
        delta: where the square ends, positive; float, or a tensor that broadcasts to ``[...]``.

    Returns:
        ``[...]``, differentiable in delta too.

    Raises:
        ValueError: ``delta`` does not broadcast, or is a float that is not positive.
        TypeError: an argument is not floating-point.

    Source: Huber (1964), "Robust estimation of a location parameter".
    """
    shape = check_float("huber", "x", x).shape
    check_divisor("huber", "delta", delta, shape, "x")
    return unchecked_huber(x, delta)


def huber_error(prediction: Tensor, target: Tensor, delta: float | Tensor = 1.0) -> Tensor:
    """Huber's error: a square near zero, linear from ``delta`` on.

        huber(prediction - target, delta)

    With ``delta`` of 1 it is what is also called the smooth L1 error. Note its factor of 1/2.

    Args:
        prediction: ``[...]`` float.
        target: ``[...]`` float, of the same shape. Carries gradient as the prediction does.
        delta: where the square ends, positive; float, or a tensor that broadcasts to ``[...]``.

    Returns:
        ``[...]``, one number per element, differentiable in delta too.

    Raises:
        ValueError: the shapes differ, or ``delta`` is a float that is not positive.
        TypeError: an argument is not floating-point.

    Source: Huber (1964), "Robust estimation of a location parameter".
    """
    name = "huber_error"
    shape = check_alike(name, {"prediction": prediction, "target": target})
    check_divisor(name, "delta", delta, shape, "prediction")
    return unchecked_huber(prediction - target, delta)


def expectile_error(prediction: Tensor, target: Tensor, expectile: float | Tensor = 0.7) -> Tensor:
    """Asymmetric squared error, whose minimum over many targets is their expectile.

        x = target - prediction
        (expectile if x >= 0 else 1 - expectile) x^2

    Without a factor of 1/2; an ``expectile`` of 1/2 gives half the squared error.

    Args:
        prediction: ``[...]`` float.
        target: ``[...]`` float, of the same shape. Carries gradient as the prediction does.
        expectile: in [0, 1]; float, or a tensor that broadcasts to ``[...]``.

    Returns:
        ``[...]``, one number per element.

    Raises:
        ValueError: the shapes differ, or ``expectile`` is a float out of its range.
        TypeError: an argument is not floating-point.

    Source: Kostrikov et al. (2021), "Offline reinforcement learning with implicit Q-learning",
    equation 5.
    """
    name = "expectile_error"
    shape = check_alike(name, {"prediction": prediction, "target": target})
    check_hyper(name, "expectile", expectile, shape, "prediction", 0.0, 1.0)
    return asymmetric(prediction, target, expectile)


@torch.compiler.allow_in_graph  # a compiler that looked inside would lose the backward
def _clip(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return _ClipGradient.apply(x, low, high)


def clip_gradient(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """The identity, whose gradient is clipped elementwise on its way back.

        y = x,    dL/dx = clamp(dL/dy, low, high)

    Twice differentiable: the second derivative is that of the clamp, and low and high get a
    gradient where a gradient that they clipped is differentiated. There is no forward mode.

    Args:
        x: ``[...]`` float.
        low: smallest entry of the gradient; float, or a tensor that broadcasts to ``[...]``.
        high: largest entry of the gradient; likewise.

    Returns:
        ``[...]``, equal to ``x``.

    Raises:
        ValueError: a bound does not broadcast to the shape of x, or is not a number.
        TypeError: an argument is not floating-point.

    Source: Mnih et al. (2015), "Human-level control through deep reinforcement learning", methods.
    """
    shape = check_float("clip_gradient", "x", x).shape
    bounds = []
    for name, bound in (("low", low), ("high", high)):
        check_hyper("clip_gradient", name, bound, shape, "x")
        bounds.append(bound if isinstance(bound, Tensor) else x.new_full((), bound))
    return _clip(x, *bounds)


# ---- parts


def unchecked_huber(x: Tensor, delta: float | Tensor) -> Tensor:
    """``huber`` without its checks, and of a delta that broadcasts in any way."""
    inner = bounded(x, -delta, delta)
    return inner * (x - 0.5 * inner)


def asymmetric(prediction: Tensor, target: Tensor, expectile: float | Tensor) -> Tensor:
    """``expectile_error`` without its checks."""
    square = (target - prediction).square()
    return torch.where(target < prediction, (1 - expectile) * square, expectile * square)


class _ClipGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        low, high = ctx.saved_tensors
        return grad.clamp(low, high).to(grad.dtype), None, None
