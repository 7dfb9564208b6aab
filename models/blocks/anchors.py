"""Anchors: the boxes that a region proposal network starts from, the same few around every cell of a map.

A code base differs from the next in the shapes around the origin (rounded or not, corners inside or not) and in how far
apart the cells are; the first are numbers that its dialect computes, the second one of the two functions below.

    cells = ((-8.0, -8.0, 8.0, 8.0), (-11.0, -6.0, 11.0, 6.0))      two anchors of one level
    grid_anchors(torch.tensor(cells), (2, 3), (16, 16))             (12, 4): cell by cell, row by row
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


def grid_anchors(cells: Tensor, grid: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """
    Args:
        cells: (A, 4) xyxy around the origin.
        grid: (height, width) of the map.
        stride: input pixels (vertical, horizontal) from one cell to the next.

    Returns:
        (height * width * A, 4) xyxy, input pixels; neither clipped nor rounded.
    """
    x = torch.arange(grid[1], device=cells.device).to(cells.dtype) * stride[1]  # (w,)
    y = torch.arange(grid[0], device=cells.device).to(cells.dtype) * stride[0]  # (h,)
    x, y = x[None, :, None], y[:, None, None]  # (1, w, 1), (h, 1, 1)
    x1, y1, x2, y2 = cells.unbind(-1)  # (A,)
    columns = torch.stack([x + x1, x + x2], dim=-1).expand(grid[0], -1, -1, -1)  # (h, w, A, 2)
    rows = torch.stack([y + y1, y + y2], dim=-1).expand(-1, grid[1], -1, -1)  # (h, w, A, 2)
    return torch.stack([columns[..., 0], rows[..., 0], columns[..., 1], rows[..., 1]], dim=-1).reshape(-1, 4)


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
