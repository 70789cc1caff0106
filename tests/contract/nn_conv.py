"""Rows of convolutions and pools, and of what they are made with."""

from collections.abc import Callable

import torch

from paramtree import nn
from tests.contract.case import Case, draw, layer_case

PLANE = {
    "max_pool2d": nn.max_pool2d(2, 1, "same"),
    "avg_pool2d": nn.avg_pool2d(2, 1, [(1, 0), 0], count_include_pad=False),
    "adaptive_max_pool2d": nn.adaptive_max_pool2d((2, None)),
    "adaptive_avg_pool2d": nn.adaptive_avg_pool2d(2),
    "global_max_pool": nn.global_max_pool(2),
    "global_avg_pool": nn.global_avg_pool(2),
}
LINE = {
    "max_pool1d": nn.max_pool1d(2, 1, 1),
    "avg_pool1d": nn.avg_pool1d(2),
    "adaptive_max_pool1d": nn.adaptive_max_pool1d(2),
    "adaptive_avg_pool1d": nn.adaptive_avg_pool1d(2),
}
VOLUME = {
    "max_pool3d": nn.max_pool3d(2, 1),
    "avg_pool3d": nn.avg_pool3d(2),
    "adaptive_max_pool3d": nn.adaptive_max_pool3d(1),
    "adaptive_avg_pool3d": nn.adaptive_avg_pool3d(2),
}


def line() -> torch.Tensor:
    return draw("x", 2, 2, 5)


def plane() -> torch.Tensor:
    return draw("x", 2, 2, 3, 4)


def volume() -> torch.Tensor:
    return draw("x", 1, 2, 2, 3, 2)


def pools(
    table: dict[str, Callable[..., torch.Tensor]], x: Callable[[], torch.Tensor]
) -> list[Case]:
    return [Case(f"nn.{name}", pool, lambda: (x(),)) for name, pool in table.items()]


ROWS = [
    layer_case("conv1d", nn.conv1d(2, 3, 2, 2, 1, padding_mode="circular"), line),
    layer_case("conv2d", nn.conv2d(2, 4, (2, 3), 2, "same", groups=2), plane, inductor=True),
    layer_case("conv3d", nn.conv3d(2, 1, 2, padding=[(1, 0), 0, 1]), volume),
    layer_case("conv_transpose1d", nn.conv_transpose1d(2, 3, 2, 2, 1, 1), line),
    layer_case("conv_transpose2d", nn.conv_transpose2d(2, 4, 3, 2, "same", groups=2), plane),
    layer_case("conv_transpose3d", nn.conv_transpose3d(2, 1, 2, padding=[(1, 0), 0, 1]), volume),
    layer_case("depthwise_conv1d", nn.depthwise_conv1d(2, 2, 2), line),
    layer_case("depthwise_conv2d", nn.depthwise_conv2d(2, 2, 2, padding=1), plane),
    layer_case("depthwise_conv3d", nn.depthwise_conv3d(2, 2), volume),
    layer_case("separable_conv1d", nn.separable_conv1d(2, 3, 2), line),
    layer_case("separable_conv2d", nn.separable_conv2d(2, 3, 2, 2, bias=False), plane),
    *pools(LINE, line),
    *pools(PLANE, plane),
    *pools(VOLUME, volume),
]
