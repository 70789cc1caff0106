"""Heat maps as bytes: a matrix, or a stack of them, made small and put into 255 steps."""

import base64
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IMAGES = 16  # of a stack that are shown
_BROKEN = 255  # the byte of a cell that isn't finite


class Picture(NamedTuple):
    """Images of one size with one scale.

    Attributes:
        images: number of images.
        height: cells of each from top to bottom.
        width: from left to right.
        block: entries that one cell is the mean of, from top to bottom and from left to right.
        low: number of the byte 0.
        high: number of the byte 254; 255 stands for what isn't finite.
        data: the bytes, image by image and row by row, in base64.
    """

    images: int
    height: int
    width: int
    block: tuple[int, int]
    low: float
    high: float
    data: str


def cells(shape: Sequence[int], rows: Sequence[int], most: int) -> int:
    """Number of cells that a picture of a tensor takes.

    Args:
        shape: of the tensor.
        rows: its leading axes that are told apart.
        most: largest number of cells.

    Returns:
        The number; 0 where there can't be a picture.
    """
    if len(shape) < 2 or 0 in shape or len(shape) == len(rows) or math.prod(rows) > most:
        return 0
    return min(most, math.prod(shape))


def pictures(tensors: Sequence[Tensor], n_rows: int, most: int) -> list[Picture]:
    """Pictures of a tensor, or of two on one scale and of the second less the first.

    Args:
        tensors: [*rows, *stack, height, width], or [*rows, width], each; one or two of one shape.
        n_rows: number of axes in rows; each index has as many images as the others.
        most: cells of one picture.

    Returns:
        One picture, or three; their images are ordered by row.
    """
    small, blocks = zip(*[_small(x, n_rows, most) for x in tensors], strict=True)
    out = _steps(small, blocks[0], False)
    if len(small) == 2:
        out += _steps([small[1] - small[0]], blocks[0], True)
    return out


def _steps(small: Sequence[Tensor], block: tuple[int, int], centered: bool) -> list[Picture]:
    """Images on one scale; zero is in its middle where there are numbers on both sides."""
    finite = torch.cat([x[x.isfinite()] for x in small])
    low, high = (finite.min().item(), finite.max().item()) if finite.numel() else (0.0, 0.0)
    if centered or low < 0 < high:
        low, high = -max(-low, high), max(-low, high)
    width = (high / 2 - low / 2) / 127 or 1.0
    out = []
    for x in small:
        steps = ((x - low) / width).round().clamp(0, 254)
        steps = torch.where(x.isfinite(), steps, _BROKEN).to(torch.uint8)
        data = base64.b64encode(bytes(steps.flatten().tolist())).decode()
        images, tall, wide = x.shape
        out.append(Picture(images, tall, wide, block, low, high, data))
    return out


def _small(x: Tensor, n_rows: int, most: int) -> tuple[Tensor, tuple[int, int]]:
    """[images, height, width] float64 with few cells, and the entries in one of them."""
    rows = math.prod(x.shape[:n_rows])
    if x.ndim - n_rows == 1:
        x = x.unsqueeze(-2)
    stack = x.ndim - n_rows - 2
    room = max(1, min(IMAGES, most // rows)) if rows > 1 or stack else 1
    for axis in reversed(range(n_rows, n_rows + stack)):
        kept = min(room, x.shape[axis])
        x, room = x.narrow(axis, 0, kept), max(1, room // kept)
    images = math.prod(x.shape[:-2])
    height, width = x.shape[-2:]
    side = max(1, math.isqrt(most // images))
    tall, wide = min(height, side), min(width, side)
    tall, wide = min(height, most // images // wide), min(width, most // images // tall)
    steps = max(1, height // (4 * tall)), max(1, width // (4 * wide))
    x = x[..., :: steps[0], :: steps[1]]
    x = x.abs() if x.is_complex() else x
    x = x.to(device="cpu", dtype=torch.float64).reshape(images, *x.shape[-2:])
    x = torch.nn.functional.adaptive_avg_pool2d(x, (tall, wide))
    return x, (-(-height // tall), -(-width // wide))
