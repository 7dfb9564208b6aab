"""Anchors: the boxes that a region proposal network starts from, the same few around every cell of a map.

A code base differs from the next in the shapes around the origin (rounded or not, corners inside or not) and in how far
apart the cells are; the first are numbers that its dialect computes, the second one of the two functions below.

    cells = torch.tensor([[-8.0, -8.0, 8.0, 8.0], [-11.0, -6.0, 11.0, 6.0]])    two anchors of one level
    anchors_at(torch.arange(12), cells, 3, (16, 16))    (12, 4), those of a map of 2 x 3 cells, 16 pixels apart
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Cells = tuple[tuple[float, float, float, float], ...]


def declared_stride(side: int, cells: int, stride: int) -> int:
    """Cells lie as far apart as the network's strides say."""
    return stride


def fitted_stride(side: int, cells: int, stride: int) -> int:
    """Cells divide the input's side: 53 pixels, not 64, where 160 pixels have 3 cells."""
    return side // cells


def anchors_at(indices: Tensor, cells: Tensor, columns: int, stride: tuple[int, int]) -> Tensor:
    """
    Args:
        indices: (...) int64, of anchors counted cell by cell, row by row.
        cells: (A, 4) xyxy around the origin.
        columns: cells in a row of the map.
        stride: input pixels (vertical, horizontal) from one cell to the next.

    Returns:
        (..., 4) xyxy, input pixels; neither clipped nor rounded.
    """
    place = indices // len(cells)  # (...)
    row = place // columns  # (...)
    x, y = (place - row * columns) * stride[1], row * stride[0]  # (...)
    origin = torch.stack([x, y, x, y], dim=-1).to(cells.dtype)  # (..., 4)
    return origin + cells[indices % len(cells)]


def by_ratio(sizes: Sequence[float], ratios: Sequence[float]) -> Cells:
    """Shapes of detectron2: each area in every ratio of height to width, sizes outermost, in double precision."""
    shapes = [(math.sqrt(size**2 / ratio), ratio * math.sqrt(size**2 / ratio)) for size in sizes for ratio in ratios]
    return tuple((-width / 2, -height / 2, width / 2, height / 2) for width, height in shapes)


def by_root(sizes: Sequence[float], ratios: Sequence[float], base: float = 1.0) -> Cells:
    """Shapes of torchvision before rounding, and of mmdetection: ratios outermost, in single precision.

    Args:
        sizes: roots of the areas, in units of `base`.
    """
    tall = np.sqrt(np.array(ratios, np.float32))[:, None]  # (R, 1)
    size = np.array(sizes, np.float32)[None]  # (1, S)
    widths = (np.float32(base) * (1 / tall) * size).ravel()  # (R * S,)
    heights = (np.float32(base) * tall * size).ravel()
    return _as_cells(np.stack([-widths, -heights, widths, heights], axis=1) * np.float32(0.5))


def rounded(cells: Cells) -> Cells:
    """Corners at whole pixels, halves to the even one (torchvision)."""
    return _as_cells(np.array(cells, np.float32).round())


def around_pixels(stride: int, sizes: Sequence[float], ratios: Sequence[float]) -> Cells:
    """Shapes of Detectron and maskrcnn-benchmark: around the stride's first square, corners inside, ratios outermost.

    The sides of the square that has the stride's area in each ratio are rounded, then multiplied.
    """
    centre = 0.5 * (stride - 1)
    cells = []
    for ratio in ratios:
        width = float(round(math.sqrt(stride * stride / ratio)))
        height = float(round(width * ratio))
        for size in sizes:
            half_width, half_height = 0.5 * (width * size / stride - 1), 0.5 * (height * size / stride - 1)
            cells.append((centre - half_width, centre - half_height, centre + half_width, centre + half_height))
    return tuple(cells)


def _as_cells(boxes: NDArray[np.float32]) -> Cells:
    return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist())
