"""Distances between a value and what it should be, one number per step."""

from torch import Tensor

from ._check import check_float


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
    """
    shape = check_float("squared_error", "prediction", prediction).shape
    if check_float("squared_error", "target", target).shape != shape:
        raise ValueError(
            f"squared_error: target has shape {tuple(target.shape)}, expected {tuple(shape)} "
            "(from prediction)"
        )
    return (prediction - target).square()
