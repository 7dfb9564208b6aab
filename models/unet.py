"""U-Net: an encoder, a decoder and a bridge at every level (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597).

This one is built from residual blocks and ends at pixel planes. `CenterOffsetUNet` gives the planes a meaning: which
pixels are inside an object, and where each one's object has its centre.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks.conv import ResidualBlock
from models.blocks.normalise import Standardise
from server.masks import CenterOffsetMasks
from server.preprocess import InputSpec

__all__ = ["nuclei_unet", "unet_tiny"]

OFFSET_UNIT = 16.0  # input pixels per unit of the offset planes: keeps them near one


class UNet(nn.Module):
    """Residual U-Net on self-standardised pictures.

    Args:
        widths: channels at each level, finest first; the input must be divisible by 2 ** (len(widths) - 1).
        planes: channels of the output.
    """

    def __init__(self, widths: tuple[int, ...], planes: int) -> None:
        super().__init__()
        self.standardise = Standardise()
        self.down = nn.ModuleList(
            ResidualBlock(before, width) for before, width in zip((3, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            ResidualBlock(width + below, width) for width, below in zip(widths, widths[1:], strict=False)
        )
        self.head = nn.Conv2d(widths[0], planes, 1)

    def planes(self, x: Tensor) -> Tensor:
        """From standardised pixels (B, 3, h, w) to raw planes (B, planes, h, w)."""
        bridges = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else functional.max_pool2d(x, 2))  # (B, widths[level], h >> level, w >> level)
            bridges.append(x)
        for level in reversed(range(len(self.up))):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")  # (B, widths[level + 1], h >> level, ...)
            x = self.up[level](torch.cat([bridges[level], x], dim=1))  # (B, widths[level], h >> level, w >> level)
        return self.head(x)  # (B, planes, h, w)

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        """uint8 pictures (B, h, w, 3) and their true sizes (B, 2) to raw planes (B, planes, h, w)."""
        return self.planes(self.standardise(images, sizes))


class CenterOffsetUNet(nn.Module):
    """A U-Net whose planes say what is inside an object and where its centre lies.

    Five planes are trained: inside, seam (where two objects meet), energy (depth inside the object) and the offset (dy,
    dx). Seam and energy only teach the layers below; the graph leaves them out.

    Args:
        classes: names of the classes, in label order; this representation has one.
        widths: as for `UNet`.
        reduced_decoding: as in `InputSpec`; standardising a dim picture enlarges what decoding leaves out.
    """

    planes = 5

    def __init__(
        self,
        classes: tuple[str, ...],
        widths: tuple[int, ...],
        masks: CenterOffsetMasks,
        score_threshold: float,
        reduced_decoding: bool = True,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.masks = masks
        self.score_threshold = score_threshold
        self.input = InputSpec(
            multiple=2 ** (len(widths) - 1),
            max_size=(1408, 1408),
            short_side=512,
            max_scale=2.0,
            reduced_decoding=reduced_decoding,
        )
        self.unet = UNet(widths, self.planes)

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (B, h, w, 3) uint8 RGB.
            sizes: (B, 2) int32, true (height, width) of each picture inside its input.
        """
        planes = self.unet(images, sizes)  # (B, 5, h, w)
        return {
            "inside": torch.sigmoid(planes[:, 0]),  # (B, h, w)
            "offsets": OFFSET_UNIT * planes[:, 3:5],  # (B, 2, h, w)
        }


def nuclei_unet() -> CenterOffsetUNet:
    """The bundled model: nuclei in microscopy pictures, docs/models/nuclei.md."""
    masks = CenterOffsetMasks(threshold=0.55, blur=3.0, apart=15, min_votes=16, min_area=12, spread=0.4)
    return CenterOffsetUNet(("nucleus",), (16, 32, 64, 128, 224), masks, 0.65, reduced_decoding=False)


def unet_tiny() -> CenterOffsetUNet:
    """Small enough to export in a test."""
    return CenterOffsetUNet(("blob",), (4, 8), CenterOffsetMasks(), score_threshold=0.5)
