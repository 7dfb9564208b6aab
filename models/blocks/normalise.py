"""From uint8 pictures to what a network likes to see.

`standardise` is the pixel head of models for microscopy, where exposure differs by a factor of a hundred between
pictures: every picture is measured by its own mean and standard deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 2.0  # grey levels: keeps a flat, empty picture from being blown up into noise


class Standardise(nn.Module):
    """Each picture minus its mean over its standard deviation, bright outliers tamed by asinh.

    The statistics are taken over the true picture only (`sizes`), all channels together so that hue survives, and what
    lies beyond the picture becomes exactly 0: the network cannot tell it from its own zero padding.
    """

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        """
        Args:
            images: (B, h, w, 3) uint8 RGB; content beyond `sizes` does not matter.
            sizes: (B, 2) int32, true (height, width) of each picture.

        Returns:
            (B, 3, h, w) float32.
        """
        x = images.to(torch.int32).permute(
            0, 3, 1, 2
        )  # (B, 3, h, w); TensorRT casts bytes, and does nothing else to them
        rows = torch.arange(x.shape[2], device=x.device)[None, :] < sizes[:, :1]  # (B, h)
        columns = torch.arange(x.shape[3], device=x.device)[None, :] < sizes[:, 1:]  # (B, w)
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]  # (B, 1, h, w)
        x = x * inside.to(torch.int32)  # (B, 3, h, w)
        count = 3.0 * (sizes[:, :1] * sizes[:, 1:]).to(torch.float32)[:, :, None, None]  # (B, 1, 1, 1)
        mean = _exact_sum(x).to(torch.float32) / count  # (B, 1, 1, 1)
        variance = _exact_sum(x * x).to(torch.float32) / count - mean * mean  # (B, 1, 1, 1)
        deviation = torch.sqrt(torch.clamp(variance, min=0.0))
        centred = (x.to(torch.float32) - mean) * inside.to(torch.float32)  # (B, 3, h, w)
        return torch.asinh(centred / (deviation + EPSILON))  # (B, 3, h, w), 0 stays 0


def _exact_sum(x: Tensor) -> Tensor:
    """Sum of each picture, (B, C, h, w) int32 to (B, 1, 1, 1) int64: whole, so the order of adding cannot matter.

    Float sums would differ in the last bits between a picture alone and in a batch. A row of up to 33,000 squared
    bytes fits int32.
    """
    return x.sum(dim=3, keepdim=True, dtype=torch.int32).to(torch.int64).sum(dim=(1, 2), keepdim=True)
