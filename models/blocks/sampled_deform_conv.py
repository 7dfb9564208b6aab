"""Deformable convolution by `grid_sample`: every tap looked up where it is told to, then one product over all taps.

What `deform_conv2d` does, from operators that every runtime has. The taps of a picture lie one below the other in a
single grid. A tap between four cells looks each of them up, the nearest with zeros outside, and weighs them itself:
bilinear lookups would round the place to W / 2^24 of a cell (`AtlasPool` tells why), and in a row of these layers that
grows. A 1x1 convolution over channels and taps adds all up.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, stack

from models.blocks.deform_conv import regular_taps


def sampled_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    deform_groups: int,
) -> Tensor:
    """As `deform_conv2d`; (B, O, h, w). What it looks up is (B, C * k * k, h, w), four times one after the other."""
    channels, height, width = x.shape[1:]
    outputs, _, kernel, _ = weight.shape
    grid = (offset.shape[2], offset.shape[3])
    taps = kernel * kernel
    at_y, at_x = regular_taps(grid, kernel, stride, padding, dilation, x)  # (taps, h, w) each
    moved = offset.unflatten(1, (deform_groups, taps, 2))  # (B, G, taps, 2, h, w)
    y = (at_y + moved[:, :, :, 0]).clamp(-2.0, height + 1.0)  # (B, G, taps, h, w); further out is as far out
    across = (at_x + moved[:, :, :, 1]).clamp(-2.0, width + 1.0)
    top, left = y.floor(), across.floor()
    below, right = y - top, across - left
    counts = below.new_ones(()) if mask is None else mask.unflatten(1, (deform_groups, taps))  # (B, G, taps, h, w)
    maps = x.unflatten(1, (deform_groups, channels // deform_groups)).flatten(0, 1)  # (B * G, C / G, H, W)
    columns = None
    for row, share_y in ((top, 1.0 - below), (top + 1.0, below)):
        for column, share_x in ((left, 1.0 - right), (left + 1.0, right)):
            places = stack([(2.0 * column + 1.0) / width - 1.0, (2.0 * row + 1.0) / height - 1.0], dim=-1)
            found = F.grid_sample(
                maps,
                places.flatten(0, 1).flatten(1, 2),  # (B * G, taps * h, w, 2)
                mode="nearest",
                padding_mode="zeros",
                align_corners=False,
            )  # (B * G, C / G, taps * h, w)
            found = found.unflatten(2, (taps, grid[0])).unflatten(0, (-1, deform_groups))  # (B, G, C / G, taps, h, w)
            part = found * (share_y * share_x * counts).unsqueeze(2)
            columns = part if columns is None else columns + part
    assert columns is not None
    return F.conv2d(columns.flatten(1, 3), weight.reshape(outputs, -1, 1, 1), bias, groups=groups)
