"""Arithmetic on boxes: decode, clip, measure.

Boxes are xyxy in input pixels. Code bases disagree about how wide the box (10, 10, 12, 12) is: 2, or 3 where its
corners are the first and the last pixel inside ("the +1 convention" of Detectron and maskrcnn-benchmark). The
difference is a number here, `extent`, 0.0 or 1.0: what a side is longer than x2 - x1.

    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    boxes = clip(coder.decode(deltas, anchors), sizes[:, None])
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_GROWTH = math.log(1000 / 16)  # of a side, in one step; every code base has this number


@dataclass(frozen=True, slots=True)
class BoxCoder:
    """How a network writes a box down: as offsets from another (Girshick et al. 2014, https://arxiv.org/abs/1311.2524).

    dx, dy are the way of the centre in sides of the old box, dw, dh the logarithm of the growth, each times its weight.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    smallest_log: float = -math.inf  # of dw and dh after weighting
    largest_log: float = LARGEST_GROWTH
    extent: float = 0.0

    def decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """
        Args:
            deltas: (..., 4) dx, dy, dw, dh.
            boxes: (..., 4) what they start from; leading axes broadcast.

        Returns:
            (..., 4), may lie anywhere.
        """
        old = boxes[..., 2:] - boxes[..., :2] + self.extent  # (..., 2) width, height
        told = deltas / torch.tensor(self.weights, dtype=deltas.dtype, device=deltas.device)  # (..., 4)
        centre = told[..., :2] * old + (boxes[..., :2] + 0.5 * old)  # (..., 2)
        half = 0.5 * (torch.exp(told[..., 2:].clamp(self.smallest_log, self.largest_log)) * old)  # (..., 2)
        return torch.cat([centre - half, centre + half - self.extent], dim=-1)


def clip(boxes: Tensor, sizes: Tensor, extent: float = 0.0) -> Tensor:
    """Boxes cut off at their picture's edge: from 0 to its side less `extent`.

    Args:
        boxes: (..., 4).
        sizes: (..., 2) int (height, width); leading axes broadcast.
    """
    ends = sizes.to(boxes.dtype).flip(-1) - extent  # (..., 2) x, y
    low = boxes.clamp(min=0.0)
    return torch.minimum(low, torch.cat([ends, ends], dim=-1))  # (..., 4)


def round_up(sizes: Tensor, multiple: int) -> Tensor:
    """(...) int pixels to the next multiple, not below."""
    return sizes if multiple == 1 else (sizes + (multiple - 1)) // multiple * multiple


def sides_reach(boxes: Tensor, shortest: float) -> Tensor:
    """(..., 4) to (...) bool: are x2 - x1 and y2 - y1 at least `shortest`?"""
    return ((boxes[..., 2:] - boxes[..., :2]) >= shortest).all(dim=-1)


def stretch(boxes: Tensor, extent: float) -> Tensor:
    """Boxes whose x2 - x1 is the length of the side, for code that knows no +1 convention (`nms_keep`)."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] + extent], dim=-1)  # (..., 4)
