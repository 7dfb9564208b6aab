"""Which pyramid level a box is pooled from, and the pooling (Lin et al. 2017, https://arxiv.org/abs/1612.03144, eq. 1).

Level k = floor(k0 + log2(sqrt(area) / s0)): a box of s0 x s0 pixels belongs to level k0, one of half the side to the
level below. The code bases agree but for a grain of salt against rounding, and where they add it: boxes of 112, 224 or
448 pixels go different ways. `LevelRule` holds both grains.

Every level pools every box, and those of other levels count nothing: no shape depends on what the boxes are. A box that
another level pools is given to this one as an empty box in the corner, which costs next to nothing where the number of
samples follows the box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.blocks.roi_align import roi_align


@dataclass(frozen=True, slots=True)
class LevelRule:
    """Lengths in input pixels."""

    canonical_size: float = 224.0
    canonical_level: float = 4.0
    first_level: float = 2.0  # the number of the finest map
    inside: float = 0.0  # added to the ratio, before the logarithm
    outside: float = 0.0  # added after it
    extent: float = 0.0  # what a side is longer than x2 - x1

    def __call__(self, boxes: Tensor, levels: int) -> Tensor:
        """(R, 4) xyxy to (R,) float: whole numbers, 0 the finest map, `levels` - 1 the coarsest."""
        sides = boxes[:, 2:] - boxes[:, :2] + self.extent  # (R, 2)
        ratio = torch.sqrt(sides[:, 0] * sides[:, 1]) / self.canonical_size  # (R,)
        level = torch.floor(self.canonical_level + torch.log2(ratio + self.inside) + self.outside)
        return level.clamp(self.first_level, self.first_level + levels - 1) - self.first_level

    def below(self, level: int, levels: int) -> float:
        """What the root of a box's area is less than on a level: without bound on the coarsest."""
        if level == levels - 1:
            return math.inf
        return float(self.canonical_size * 2.0 ** (level + 1 + self.first_level - self.canonical_level))


class Pool(Protocol):
    """How boxes are pooled from a pyramid: `PyramidPool`, or `AtlasPool` of the same numbers."""

    def __call__(self, maps: Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
        """Maps (B, C, h, w), finest first, and boxes (B, K, 4) to (B * K, C, size, size)."""


@dataclass(frozen=True, slots=True)
class PyramidPool:
    """RoIAlign from the level that each box belongs to.

    Args:
        strides: input pixels per cell of every map that is pooled, finest first.
        sampling: points per side of a bin, 0 for as many as there are cells.
        aligned: pixel centres at .5 (detectron2's second version, mmdetection), or at whole numbers.
    """

    strides: tuple[int, ...]
    level: LevelRule
    sampling: int
    aligned: bool

    def __call__(self, maps: Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
        """
        Args:
            maps: (B, C, h, w) each, finest first; those beyond the last stride are not looked at.
            boxes: (B, K, 4) xyxy, input pixels.
            size: bins per side.

        Returns:
            (B * K, C, size, size), picture by picture.
        """
        batch_index = row_of_each(boxes)  # (R,)
        boxes = boxes.flatten(0, 1)  # (R, 4)
        pairs = list(zip(maps, self.strides, strict=False))
        if len(pairs) == 1:
            ((single, stride),) = pairs
            return roi_align(single, boxes, batch_index, 1.0 / stride, size, self.sampling, self.aligned)
        level = self.level(boxes, len(pairs))  # (R,)
        pooled: Tensor | None = None
        for i, (features, stride) in enumerate(pairs):
            here = (level == i).to(boxes.dtype)  # (R,) 0 or 1
            part = roi_align(
                features, boxes * here[:, None], batch_index, 1.0 / stride, size, self.sampling, self.aligned
            )  # (R, C, size, size)
            part = part * here[:, None, None, None]
            pooled = part if pooled is None else pooled + part
        assert pooled is not None
        return pooled


def row_of_each(boxes: Tensor) -> Tensor:
    """(B, K, 4) to (B * K,) int64: the picture that each box is on."""
    rows = torch.arange(boxes.shape[0], device=boxes.device)  # (B,)
    return rows[:, None].expand(-1, boxes.shape[1]).reshape(-1)
