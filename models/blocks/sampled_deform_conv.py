"""Deformable convolution by `grid_sample`: every tap looked up where it is told to, then one product over all taps.

What `deform_conv2d` does, from operators that every runtime has. The taps of a picture lie one below the other in a
single grid, so that one `grid_sample` with zeros outside looks all of them up; each counts as much as it is told, and a
1x1 convolution over channels and taps adds them up.
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
    """As `deform_conv2d`; (B, O, h, w). What it looks up is (B, C * k * k, h, w)."""
    channels, height, width = x.shape[1:]
    outputs, _, kernel, _ = weight.shape
    grid = (offset.shape[2], offset.shape[3])
    taps = kernel * kernel
    at_y, at_x = regular_taps(grid, kernel, stride, padding, dilation, x)  # (taps, h, w) each
    moved = offset.unflatten(1, (deform_groups, taps, 2))  # (B, G, taps, 2, h, w)
    y = (at_y + moved[:, :, :, 0]).clamp(-2.0, height + 1.0)  # (B, G, taps, h, w); further out is as far out
    across = (at_x + moved[:, :, :, 1]).clamp(-2.0, width + 1.0)
    places = stack([(2.0 * across + 1.0) / width - 1.0, (2.0 * y + 1.0) / height - 1.0], dim=-1)
    found = F.grid_sample(
        x.unflatten(1, (deform_groups, channels // deform_groups)).flatten(0, 1),  # (B * G, C / G, H, W)
        places.flatten(0, 1).flatten(1, 2),  # (B * G, taps * h, w, 2)
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )  # (B * G, C / G, taps * h, w)
    columns = found.unflatten(2, (taps, grid[0])).unflatten(0, (-1, deform_groups))  # (B, G, C / G, taps, h, w)
    if mask is not None:
        columns = columns * mask.unflatten(1, (deform_groups, 1, taps))  # (B, G, 1, taps, h, w)
    return F.conv2d(columns.flatten(1, 3), weight.reshape(outputs, -1, 1, 1), bias, groups=groups)
