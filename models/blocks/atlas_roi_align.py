"""RoIAlign by `grid_sample`: every box pooled from its own level, by operators that every runtime has.

The levels lie side by side in one map, the atlas; a box's sample points, cut off at the edges of its level, become
places in the atlas, and one `grid_sample` looks all of them up.

    pool = AtlasPool(strides=(4, 8, 16, 32), level=rule, sampling=0, aligned=True, largest=(1344, 1344))

Where the number of samples follows the box (`sampling=0`), the graph has to look up the most that any box can need.
Two things keep that small:

  - Samples of a bin lie at most a cell apart, so along an axis they take a run of neighbouring cells. Two neighbours
    with any two weights are one bilinear sample between them: count // 2 + 1 lookups do for `count` samples.
  - A box that is many cells wide on a fine level is few cells high, or the rule would have it on a coarser one. So a
    bin's lookups are listed row by row in one list, which has room for the largest product that any box has.

A box in a picture of `largest` never needs more, so nothing is cut off: boxes are pooled as by `roi_align`, but for
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.pyramid_pool import LevelRule, PyramidPool

GRAIN = 1 + 1e-4  # a box may be larger than the rule says by rounding
LOOKED_UP = 1 << 25  # numbers that one `grid_sample` may give for a picture: 128 MB


@dataclass(frozen=True, slots=True)
class AtlasPool:
    """As `PyramidPool`.

    Args:
        largest: (height, width) of the largest picture, input pixels; no box reaches beyond.
    """

    strides: tuple[int, ...]
    level: LevelRule
    sampling: int
    aligned: bool
    largest: tuple[int, int]

    def __call__(self, maps: Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
        """
        Args:
            maps: (B, C, h, w) each, finest first; those beyond the last stride are not looked at.
            boxes: (B, K, 4) xyxy, input pixels.
            size: bins per side.

        Returns:
            (B * K, C, size, size), picture by picture.
        """
        used = list(maps)[: len(self.strides)]
        places, weights = self._lookups(used, boxes, size)  # (B, K, size * size * n, 2), (B, K, size * size, n)
        atlas = _side_by_side(used)  # (B, C, h, sum of w)
        channels, bins, count = atlas.shape[1], size * size, weights.shape[3]
        some = max(1, LOOKED_UP // (channels * bins * count))  # boxes at a time
        pooled = []
        for start in range(0, boxes.shape[1], some):
            found = F.grid_sample(
                atlas, places[:, start : start + some], mode="bilinear", padding_mode="border", align_corners=False
            )  # (B, C, k, size * size * n)
            weighed = found.unflatten(3, (bins, count)) * weights[:, None, start : start + some]
            pooled.append(weighed.sum(dim=-1))  # (B, C, k, size * size)
        return torch.cat(pooled, dim=2).transpose(1, 2).flatten(0, 1).unflatten(2, (size, size))

    def _lookups(self, maps: Sequence[Tensor], boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Where in the atlas to look (B, K, size * size * n, 2), x and y from -1 to 1, and how much each place counts
        (B, K, size * size, n)."""
        box = boxes.flatten(0, 1)  # (R, 4)
        level = self.level(box, len(maps))  # (R,)
        scale, left, heights, widths = torch.zeros(4, 1, dtype=box.dtype, device=box.device).unbind()
        before = 0
        for i, (features, stride) in enumerate(zip(maps, self.strides, strict=False)):
            here = (level == i).to(box.dtype)  # (R,)
            scale, left = scale + here * (1.0 / stride), left + here * before
            heights, widths = heights + here * features.shape[2], widths + here * features.shape[3]
            before = before + features.shape[3]
        corners = box * scale[:, None] - (0.5 if self.aligned else 0.0)  # (R, 4) in cells
        start, length = corners[:, :2], corners[:, 2:] - corners[:, :2]  # (R, 2) x, y
        if not self.aligned:
            length = length.clamp(min=1.0)
        if self.sampling:
            across, down = _fixed(self.sampling, box)
            x, weight_x = _samples(start[:, 0], length[:, 0], widths, size, across, self.sampling)
            y, weight_y = _samples(start[:, 1], length[:, 1], heights, size, down, self.sampling)
        else:
            most = self.most_samples(size)
            counts = torch.ceil(length / size).clamp(min=0.0)  # (R, 2)
            runs = torch.floor(counts / 2) + 1  # (R, 2) lookups along each axis
            listed = torch.arange(self.most_lookups(size), dtype=box.dtype, device=box.device)  # (n,)
            down = torch.floor((listed + 0.5) / runs[:, :1])  # (R, n) which of the run along y; a half is for rounding
            across = listed - down * runs[:, :1]  # (R, n) and along x
            x, weight_x = _merged(start[:, 0], length[:, 0], counts[:, 0], widths, size, across, most[1])
            y, weight_y = _merged(start[:, 1], length[:, 1], counts[:, 1], heights, size, down, most[0])
        height = maps[0].shape[2]
        x = (2.0 * (x + left[:, None, None]) + 1.0) / before - 1.0  # (R, size, n)
        y = (2.0 * y + 1.0) / height - 1.0
        shape = (-1, size, size, x.shape[2])
        places = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=-1)  # (R, size, size, n, 2)
        weights = weight_x[:, None] * weight_y[:, :, None]  # (R, size, size, n)
        batch = boxes.shape[:2]
        return places.flatten(1, 3).unflatten(0, batch), weights.flatten(1, 2).unflatten(0, batch)

    def most_samples(self, size: int) -> tuple[int, int]:
        """Samples in a bin of the largest box, along y and along x."""
        rows, columns = (math.ceil(GRAIN * side / self.strides[0] / size) for side in self.largest)
        return rows, columns

    def most_lookups(self, size: int) -> int:
        """The most that a bin of any box can need, of all levels."""
        height, width = (GRAIN * side / size for side in self.largest)
        below = [self.level.below(i, len(self.strides)) * GRAIN / size for i in range(len(self.strides))]
        return max(
            _most_lookups(height / stride, width / stride, (side / stride) ** 2)
            for stride, side in zip(self.strides, below, strict=True)
        )


def atlas_pool(pool: PyramidPool, largest: tuple[int, int]) -> AtlasPool:
    """The same pooling, without a plugin."""
    return AtlasPool(pool.strides, pool.level, pool.sampling, pool.aligned, largest)


def _most_lookups(highest: float, widest: float, area: float) -> int:
    """Over all bins of at most `highest` x `widest` cells with at most `area`."""
    most = 1
    for rows in range(1, math.ceil(highest) + 1):  # samples along y of a bin of more than rows - 1 cells
        columns = math.ceil(min(widest, area / (rows - 1) if rows > 1 else widest))
        most = max(most, (rows // 2 + 1) * (columns // 2 + 1))
    return most


def _side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """(B, C, h, w) each to (B, C, h of the first, sum of w), zeros below the lower ones."""
    height = maps[0].shape[2]
    return torch.cat([maps[0], *(F.pad(x, (0, 0, 0, height - x.shape[2])) for x in maps[1:])], dim=3)


def _fixed(sampling: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Which sample along x and along y the lookups of a bin are, (1, n) each."""
    each = torch.arange(sampling, dtype=like.dtype, device=like.device)
    return each.repeat(sampling)[None], each.repeat_interleave(sampling)[None]


def _samples(
    start: Tensor, length: Tensor, cells: Tensor, size: int, which: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """One lookup for each sample: where, in cells of its level, and how much it counts.

    Args:
        start, length: (R,) of the boxes, in cells.
        cells: (R,) of their levels, along this axis.
        which: (1, n) or (R, n) sample of a bin.
        count: samples in a bin.

    Returns:
        (R, size, n) each.
    """
    bin_length = (length / size)[:, None, None]  # (R, 1, 1)
    bins = torch.arange(size, device=start.device)[None, :, None]  # (1, size, 1)
    at = start[:, None, None] + bins * bin_length + (which[:, None] + 0.5) * bin_length / count  # (R, size, n)
    return _inside(at, cells[:, None, None], count)


def _inside(at: Tensor, cells: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor]:
    """A sample more than a cell outside counts 0; others are moved to the edge."""
    weight = ((at >= -1.0) & (at <= cells)).to(at.dtype) / count
    return torch.minimum(at.clamp(min=0.0), cells - 1.0), weight


def _merged(
    start: Tensor, length: Tensor, counts: Tensor, cells: Tensor, size: int, which: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """One lookup for each two cells of the run that a bin's samples take.

    Args:
        counts: (R,) samples in a bin.
        which: (R, n) pair of cells, counted from the first that the bin takes.
        most: of `counts`.

    Returns:
        (R, size, n) each.
    """
    bin_length = (length / size)[:, None, None]  # (R, 1, 1)
    bins = torch.arange(size, device=start.device)[None, :, None]  # (1, size, 1)
    samples = torch.arange(most, dtype=start.dtype, device=start.device)  # (S,)
    count = counts.clamp(min=1.0)[:, None, None]
    at = start[:, None, None] + bins * bin_length + (samples + 0.5) * bin_length / count  # (R, size, S)
    at, weight = _inside(at, cells[:, None, None], count)
    weight = weight * (samples < counts[:, None]).to(weight.dtype)[:, None]  # the surplus counts nothing
    first = at[:, :, :1].floor() + 2.0 * which[:, None]  # (R, size, n) the left one of two cells
    way = at[:, :, None] - first[..., None]  # (R, size, n, S) from it to each sample
    left = ((1.0 - way.abs()).clamp(min=0.0) * weight[:, :, None]).sum(dim=-1)  # (R, size, n)
    right = ((1.0 - (way - 1.0).abs()).clamp(min=0.0) * weight[:, :, None]).sum(dim=-1)
    together = left + right
    place = first + right / torch.where(together > 0.0, together, 1.0)
    return torch.minimum(place, cells[:, None, None] - 1.0), together
