"""Distances between a value and what it should be, one number per step."""

from torch import Tensor


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error (prediction - target)^2, without a factor of 1/2.

    Args:
        prediction: ``[...]`` float.
        target: ``[...]`` float, of the same shape. Carries gradient as the prediction does.

    Returns:
        ``[...]``, one number per element.
    """
    return (prediction - target).square()
