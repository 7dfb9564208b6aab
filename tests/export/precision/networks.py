"""Small networks with a known weakness, and pictures for them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from export.sample import draw
from export.source import Exportable
from server.masks import AnyMasks, CenterOffsetMasks
from server.preprocess import InputSpec


class Weak(nn.Module):
    """Three convolutions in a row; the middle one may be given a weakness.

    Args:
        largest: what its numbers grow to and shrink from again.
        spread: its output's channels are of unlike sizes, and the small one is what counts.
    """

    classes: tuple[str, ...] = ("blob",)
    score_threshold = 0.5
    masks: AnyMasks = CenterOffsetMasks()

    def __init__(self, largest: float = 1.0, spread: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.input = InputSpec(multiple=2, max_size=(64, 64), short_side=1, max_scale=1.0, reduced_decoding=True)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            self.middle.weight.copy_(torch.eye(8)[:, :, None, None] * largest)
            self.head.weight.div_(largest)
            if spread != 1.0:  # channel 0 is huge and then hardly looked at
                self.middle.weight[0] *= spread
                self.head.weight[:, 0] /= spread * 100

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        x = images.permute(0, 3, 1, 2).to(torch.float32) / 255 + 0 * sizes[:, :1, None, None].to(torch.float32)
        x = self.head(self.middle(torch.relu(self.first(x))))
        return {"inside": torch.sigmoid(4 * x[:, 0]), "offsets": x[:, 1:]}


class _Offset(Weak):
    """Its last layer answers with small differences of large numbers; half precision has 11 bits."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            assert self.head.bias is not None
            self.head.bias.add_(2000)

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        x = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        x = self.head(self.middle(torch.relu(self.first(x)))) - 2000
        return {"inside": torch.sigmoid(4 * x[:, 0]), "offsets": x[:, 1:]}


def weak_overflow() -> Exportable:
    """Half precision ends at 65504; this goes beyond in the middle."""
    return cast(Exportable, Weak(largest=1e6).eval())


def weak_offset() -> Exportable:
    """Small differences of large numbers."""
    return cast(Exportable, _Offset().eval())


def weak_spread() -> Exportable:
    """With one step for all channels, the seven small ones become zero."""
    return cast(Exportable, Weak(spread=5000.0).eval())


def pictures(folder: Path, count: int = 4, size: tuple[int, int] = (48, 40)) -> Path:
    """Drawn ones, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(draw(size, 50 + number)).save(folder / f"{number}.png")
    return folder


def batch(size: tuple[int, int] = (32, 32), seed: int = 1) -> dict[str, np.ndarray]:
    """A batch of one."""
    return {"images": draw(size, seed)[None], "sizes": np.array([size], np.int32)}
