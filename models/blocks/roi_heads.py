"""What Mask R-CNN makes of the features that were pooled for a box: classes and offsets, and a mask (He et al. 2017,
https://arxiv.org/abs/1703.06870, sec. 3).

Letters: R boxes, C channels in, m bins per side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.blocks.norm import Norm


class ConvLayer(nn.Module):
    """Convolution, normalisation where there is one, ReLU; the bias goes where there is none."""

    def __init__(self, channels_in: int, channels_out: int, norm: Norm | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=norm is None)
        self.norm = nn.Identity() if norm is None else norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


def conv_layers(channels_in: int, widths: tuple[int, ...], norm: Norm | None) -> nn.Sequential:
    pairs = zip((channels_in, *widths), widths, strict=False)
    return nn.Sequential(*(ConvLayer(before, width, norm) for before, width in pairs))


class FullyConnected(nn.Module):
    """Convolutions, then the pooled square as one vector through fully connected layers."""

    def __init__(
        self, channels: int, size: int, convs: tuple[int, ...], widths: tuple[int, ...], norm: Norm | None
    ) -> None:
        super().__init__()
        self.convs = conv_layers(channels, convs, norm)
        features = (convs[-1] if convs else channels) * size * size
        self.layers = nn.ModuleList(
            nn.Linear(before, width) for before, width in zip((features, *widths), widths, strict=False)
        )
        self.width = widths[-1]

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, m, m) to (R, width)."""
        x = self.convs(pooled).flatten(1)  # (R, C * m * m)
        for layer in self.layers:
            x = torch.relu(layer(x))  # (R, width)
        return x


class Averaged(nn.Module):
    """The mean over the pooled square (the C4 head, after its stage of the backbone)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, m, m) to (R, C)."""
        return pooled.mean(dim=(2, 3))


class BoxPredictor(nn.Module):
    """
    Args:
        width: of the vector of a box.
        scores: classes, with the background.
        boxes: offsets that are told, one set for every class or one for all.
    """

    def __init__(self, width: int, scores: int, boxes: int) -> None:
        super().__init__()
        self.scores = nn.Linear(width, scores)
        self.deltas = nn.Linear(width, 4 * boxes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, width) to logits (R, scores) and deltas (R, 4 * boxes)."""
        return self.scores(x), self.deltas(x)


class MaskHead(nn.Module):
    """Convolutions, twice the size, and one plane of logits per class.

    Args:
        convs: widths of the convolutions before.
        width: channels of the enlarged square.
        planes: classes that have a mask of their own.
    """

    def __init__(self, channels: int, convs: tuple[int, ...], width: int, planes: int, norm: Norm | None) -> None:
        super().__init__()
        self.convs = conv_layers(channels, convs, norm)
        self.upsample = nn.ConvTranspose2d(convs[-1] if convs else channels, width, 2, stride=2)
        self.logits = nn.Conv2d(width, planes, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, m, m) to logits (R, planes, 2m, 2m)."""
        x = self.convs(pooled)  # (R, C, m, m)
        return self.logits(torch.relu(self.upsample(x)))  # (R, planes, 2m, 2m)
