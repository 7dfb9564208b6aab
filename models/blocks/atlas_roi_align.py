"""RoIAlign by `grid_sample`: every box pooled from its own level, by operators that every runtime has.

The levels lie side by side in one map, the atlas; the cells that a box's samples lie between, cut off at the edges of
its level, become places in the atlas, and `grid_sample` looks them up, for some boxes at a time.

    pool = AtlasPool(strides=(4, 8, 16, 32), level=rule, sampling=0, aligned=True, largest=(1344, 1344))

Where the number of samples follows the box (`sampling=0`), the graph has to look up the most that any box can need.
Two things keep that small:

  - Samples of a bin lie at most a cell apart, so along an axis they take a run of count + 1 neighbouring cells, however
    many they are: a cell is looked up once, with the weight that all samples together give it.
  - A box that is many cells wide on a fine level is few cells high, or the rule would have it on a coarser one. So a
    bin's lookups are listed row by row in one list, which has room for the largest product that any box has.

A box in a picture of `largest` never needs more, so nothing is cut off: boxes are pooled as by `roi_align`, but for
rounding. `grid_sample` takes places from -1 to 1, which in single precision is a grain of W / 2^24 of a cell: between
two cells of a wide atlas that is ten times the rounding of anything else here. So whole cells are looked up, the
nearest, and weighed by us. A single map (C4, DC5) is narrow and its boxes take many cells: there one bilinear lookup
serves two cells, between them as their weights are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        largest: (height, width) of the largest picture, input pixels; no box is larger.
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
        mode = "bilinear" if self._pairs() else "nearest"
        places, weights = self._lookups(used, boxes, size)  # (B, K, size * size * n, 2), (B, K, size * size, n)
        atlas = _side_by_side(used)  # (B, C, h, sum of w)
        channels, bins, count = atlas.shape[1], size * size, weights.shape[3]
        some = max(1, LOOKED_UP // (channels * bins * count))  # boxes at a time
        pooled: list[Tensor] = []
        for start in range(0, boxes.shape[1], some):
            here = places[:, start : start + some]  # (B, k, size * size * n, 2)
            if pooled:
                # adds nothing; a compiler that sees no order looks all up at once, and holds it all (decisions/0011)
                here = here + pooled[-1][:, :1, :1, :1].clamp(0.0, 0.0)
            found = F.grid_sample(
                atlas, here, mode=mode, padding_mode="border", align_corners=False
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
        count_y, count_x, list_y, list_x = self._listed(length, size)
        most_y, most_x = self.most_samples(size)
        y, weight_y = self._places(start[:, 1], length[:, 1], heights, size, count_y, most_y, list_y)  # (R, size, n)
        x, weight_x = self._places(start[:, 0], length[:, 0], widths, size, count_x, most_x, list_x)
        height = maps[0].shape[2]
        x = (2.0 * (x + left[:, None, None]) + 1.0) / before - 1.0  # (R, size, n)
        y = (2.0 * y + 1.0) / height - 1.0
        shape = (-1, size, size, x.shape[2])
        places = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=-1)  # (R, size, size, n, 2)
        weights = weight_x[:, None] * weight_y[:, :, None]  # (R, size, size, n)
        batch = boxes.shape[:2]
        return places.flatten(1, 3).unflatten(0, batch), weights.flatten(1, 2).unflatten(0, batch)

    def _pairs(self) -> bool:
        """Whether one lookup serves two neighbouring cells."""
        return len(self.strides) == 1 and not self.sampling

    def _listed(self, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Samples in a bin along y and along x, (R,) each, and for every lookup of a bin which one it is along y and
        along x, (R, n) each; row by row, the surplus last.

        Args:
            length: (R, 2) width and height, in cells.
        """
        counts = torch.full_like(length, self.sampling) if self.sampling else torch.ceil(length / size).clamp(min=0.0)
        runs = self._run(counts)  # (R, 2) lookups along each axis
        listed = torch.arange(self.most_lookups(size), dtype=length.dtype, device=length.device)  # (n,)
        down = torch.floor((listed + 0.5) / runs[:, :1])  # (R, n); a half keeps rounding away
        return counts[:, 1], counts[:, 0], down, listed - down * runs[:, :1]

    def _run(self, counts: Any) -> Any:
        """Lookups along an axis for so many samples."""
        if self.sampling:
            return 2 * counts
        return counts // 2 + 1 if self._pairs() else counts + 1

    def _places(
        self, start: Tensor, length: Tensor, cells: Tensor, size: int, count: Tensor, most: int, which: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where the lookups of every bin are along an axis, in cells of their level, and how much they count there.

        Args:
            start, length: (R,) of the boxes, in cells.
            cells: (R,) of their levels.
            count: (R,) samples in a bin, `most` at most.
            which: (R, n) of a bin's lookups.

        Returns:
            (R, size, n) each.
        """
        bin_length = (length / size)[:, None, None]  # (R, 1, 1)
        bins = torch.arange(size, device=start.device)[None, :, None]  # (1, size, 1)
        samples = torch.arange(most, dtype=start.dtype, device=start.device)  # (S,)
        some = count.clamp(min=1.0)[:, None, None]
        at = start[:, None, None] + bins * bin_length + (samples + 0.5) * bin_length / some  # (R, size, S)
        weight = ((at >= -1.0) & (at <= cells[:, None, None])).to(at.dtype) / some  # more than a cell outside: 0
        weight = weight * (samples < count[:, None]).to(at.dtype)[:, None]  # the surplus counts nothing
        last = cells[:, None, None] - 1.0
        at = torch.minimum(at.clamp(min=0.0), last)  # less outside: at the edge
        if self.sampling:
            sample = torch.floor((which[0] + 0.5) / 2)  # (n,) two cells for each; all boxes have the same list
            own = (samples == sample[:, None]).to(at.dtype)  # (n, S)
            first = (at[:, :, None] * own).sum(dim=-1).floor()  # (R, size, n); a product of matrices might round
            cell, weight = first + (which - 2 * sample[None])[:, None], weight[:, :, None] * own
        else:
            step = 2.0 if self._pairs() else 1.0
            cell, weight = at[:, :, :1].floor() + step * which[:, None], weight[:, :, None]
        share = _share(at, cell, weight)  # (R, size, n)
        if self._pairs():
            right = _share(at, cell + 1.0, weight)
            share = share + right
            cell = cell + right / torch.where(share > 0.0, share, 1.0)
        return torch.minimum(cell, last), share

    def most_samples(self, size: int) -> tuple[int, int]:
        """Samples in a bin of the largest box, along y and along x."""
        if self.sampling:
            return self.sampling, self.sampling
        height, width = (math.ceil(side / self.strides[0] / size) for side in self.largest)
        return height, width

    def most_lookups(self, size: int) -> int:
        """The most that a bin of any box can need, of all levels."""
        if self.sampling:
            return int(self._run(self.sampling)) ** 2
        most = 1
        for i, stride in enumerate(self.strides):
            height, width = (side / stride / size for side in self.largest)  # cells in a bin
            area = (self.level.below(i, len(self.strides)) * GRAIN / stride / size) ** 2
            for rows in range(1, math.ceil(height) + 1):  # samples along y of a bin of more than rows - 1 cells
                columns = math.ceil(min(width, area / (rows - 1) if rows > 1 else width))
                most = max(most, self._run(rows) * self._run(columns))
        return most


def _share(at: Tensor, cell: Tensor, weight: Tensor) -> Tensor:
    """How much of the samples at (R, size, S), weighed (R, size, n or 1, S), falls on a cell (R, size, n)."""
    way = at[:, :, None] - cell[..., None]  # (R, size, n, S)
    return ((1.0 - way.abs()).clamp(min=0.0) * weight).sum(dim=-1)


def atlas_pool(pool: PyramidPool, largest: tuple[int, int]) -> AtlasPool:
    """The same pooling, without a plugin."""
    return AtlasPool(pool.strides, pool.level, pool.sampling, pool.aligned, largest)


def _side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """(B, C, h, w) each to (B, C, h of the first, sum of w), zeros below the lower ones."""
    height = maps[0].shape[2]
    return torch.cat([maps[0], *(F.pad(x, (0, 0, 0, height - x.shape[2])) for x in maps[1:])], dim=3)
