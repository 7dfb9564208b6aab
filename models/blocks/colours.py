"""From uint8 pictures to the network's numbers: less the mean, over the deviation, in the network's channel order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ColourSpec:
    """
    Args:
        mean, std: per channel in RGB order, grey levels 0 to 255, whatever order the network wants.
        order: which of R, G, B comes first, second and third: (2, 1, 0) where pictures were read by OpenCV.
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    order: tuple[int, int, int] = (0, 1, 2)


class Normalise(nn.Module):
    """What lies beyond a picture becomes exactly 0 after the mean is gone, as where a training batch is padded."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ColourSpec) -> None:
        super().__init__()
        self.order = spec.order
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        """
        Args:
            images: (B, h, w, 3) uint8 RGB; content beyond `sizes` does not matter.
            sizes: (B, 2) int32, true (height, width) of each picture.

        Returns:
            (B, 3, h, w) float32.
        """
        x = (images.to(torch.float32) - self.mean) / self.std  # (B, h, w, 3)
        rows = torch.arange(x.shape[1], device=x.device)[None, :] < sizes[:, :1]  # (B, h)
        columns = torch.arange(x.shape[2], device=x.device)[None, :] < sizes[:, 1:]  # (B, w)
        inside = (rows[:, :, None] & columns[:, None, :]).to(x.dtype)[..., None]  # (B, h, w, 1)
        x = x * inside  # (B, h, w, 3)
        return torch.stack([x[..., channel] for channel in self.order], dim=1)  # (B, 3, h, w)
