"""Convolution blocks.

Letters in shape comments: B batch, C channels, h w tensor height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a 1x1 shortcut (He et al. 2015, https://arxiv.org/abs/1512.03385).

    Size stays, channels go from `channels_in` to `channels_out`. The shortcut is always a convolution, because the
    channel count changes in every place a U-Net uses this block.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))  # (B, channels_out, h, w)
        y = self.norm2(self.conv2(y))  # (B, channels_out, h, w)
        return torch.relu(y + self.shortcut(x))  # (B, channels_out, h, w)
