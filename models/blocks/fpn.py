"""Feature pyramid: every map of a backbone, told what the coarser ones saw (Lin et al. 2016,
https://arxiv.org/abs/1612.03144).

    c5 -> lateral 1x1 ------------------------> output 3x3 -> p5 -> every second cell -> p6
                        | twice the size
    c4 -> lateral 1x1 - + --------------------> output 3x3 -> p4
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.norm import Norm


class PyramidConv(nn.Module):
    """A convolution with a bias, or with a norm in its place; no activation."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, norm: Norm | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=norm is None)
        self.norm = nn.Identity() if norm is None else norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class FPN(nn.Module):
    """
    Args:
        in_channels: of the backbone's maps, finest first.
        channels: of every level.
        norm: after every convolution, or None.
        extra: coarser levels, each of every second cell of the one before.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, norm: Norm | None = None, extra: int = 1) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(PyramidConv(width, channels, 1, norm) for width in in_channels)
        self.outputs = nn.ModuleList(PyramidConv(channels, channels, 3, norm) for _ in in_channels)
        self.extra = extra

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, h, w), finest first, to as many levels (B, channels, h, w) and the extra ones."""
        merged = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        levels = [output(x) for output, x in zip(self.outputs, merged, strict=True)]
        for _ in range(self.extra):
            levels.append(levels[-1][:, :, ::2, ::2])
        return levels
