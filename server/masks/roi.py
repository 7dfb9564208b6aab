"""Every object has a box and a small square of logits for it (Mask R-CNN, He et al. 2017,
https://arxiv.org/abs/1703.06870, sec. 3.1; Cascade, HTC, PANet and many others end the same way).

The square is stretched over the box and cut at a probability. There are two rules for that, and with the same square
and box they disagree about one pixel in ten of a small mask. The third row of a 4 x 4 square of ones, and a box that
reaches from 2.6 to 7.4:

    pixels         0 1 2 3 4 5 6 7 8 9
    detectron2     . . . # # # # . . .        the value at each pixel's centre, on the box as it is; a value of just
                                              the threshold is enough
    torchvision    . . # # # # # # . .        a ring of zeros around the square, and the box that much larger; then its
                                              corners lose their fractions, and the square with its ring goes over whole
                                              pixels, both corners' included; values are above the threshold

mmdetection does as detectron2; Detectron.pytorch, maskrcnn-benchmark and its forks do as torchvision: their "+ 1" is
the last corner's pixel.

    detectron2     `paste_masks_in_image` in
                   https://github.com/facebookresearch/detectron2/blob/main/detectron2/layers/mask_ops.py
    torchvision    the same name in
                   https://github.com/pytorch/vision/blob/main/torchvision/models/detection/roi_heads.py

Boxes come to the original by a float32 ratio for each axis, and are pasted even where they leave the picture: only the
box of an answer is cut off there. (detectron2 cuts off first; its graphs have done so in the input already.)
Coordinates are computed in the order, and rounded where, PyTorch does it on a CPU; values may differ from its own in
the last bit or two, as PyTorch's do from one CPU to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from server.geometry import Frame
from server.masks.base import Masks, Outputs
from server.masks.growing import Floats, Steps, between, grow
from server.segments import Patch, Segment

Paste = Literal["torchvision", "detectron2"]
Places = tuple[int, Floats]  # of pixels along one axis: the first pixel, and where their centres lie in the square

CELLS_AT_ONCE = 100_000  # of squares: a hundred of 28 x 28
FARTHEST = np.float32(1e9)  # a corner beyond this many pixels lies there
LOWEST = np.float32(-80.0)  # exp(80) is still a float32
SLIVER = 1e-30  # a box thinner than this is as thin as this: the next pixel is still a number of cells away


class RoiMasks(Masks):
    """Objects with boxes; a mask is a square of m x m logits over its box."""

    kind: Literal["roi"] = "roi"
    paste: Paste = Field("detectron2", description="how a square comes over its box; detectron2 is mmdetection's too")
    threshold: float = Field(0.5, gt=0.0, lt=1.0, description="probability from which on a pixel is part of an object")

    legend: ClassVar[dict[str, str]] = {"boxes": "N 4", "scores": "N", "labels": "N", "mask_logits": "N m m"}

    def decode(self, outputs: Outputs, frame: Frame, min_score: float) -> Iterator[Segment]:
        scores, logits = outputs["scores"], outputs["mask_logits"]
        (kept,) = np.nonzero((scores >= min_score) & (scores > 0))
        boxes = boxes_to_original(outputs["boxes"][kept], frame)
        inside = boxes.clip(0, [*frame.size[::-1], *frame.size[::-1]]).tolist()
        step = max(1, CELLS_AT_ONCE // max(1, logits.shape[1] ** 2))
        for start in range(0, len(kept), step):
            part = slice(start, start + step)
            probabilities = _sigmoid(logits[kept[part]])
            patches = paste_masks(probabilities, boxes[part], frame.size, self.paste, self.threshold)
            for row, (x1, y1, x2, y2), patch in zip(kept[part].tolist(), inside[part], patches, strict=True):
                yield Segment(
                    label=int(outputs["labels"][row]), score=float(scores[row]), box=(x1, y1, x2, y2), patch=patch
                )


def boxes_to_original(input_boxes: Floats, frame: Frame) -> Floats:
    """(N, 4) xyxy boxes from input pixels to original pixels, rounded as the code bases do: to float32, by ratios.

    `Frame.to_original` is exact, and a box that ends at 3.9999998 there may end at 4 here.
    """
    (height, width), content = frame.size, frame.content
    ratios = np.array([width / content[1], height / content[0]] * 2, np.float32)
    return np.nan_to_num(input_boxes.astype(np.float32)).clip(-FARTHEST, FARTHEST) * ratios


def paste_masks(
    probabilities: Floats, boxes: Floats, size: tuple[int, int], paste: Paste, threshold: float
) -> Iterator[Patch]:
    """Place masks in their picture, one after the other.

    A grown value lies between those of the cells around it, so there is nothing to find farther than one cell from a
    cell above the threshold: only these pixels are computed.

    Args:
        probabilities: (N, m, m).
        boxes: (N, 4) xyxy, original pixels; may reach outside the picture.
        size: (height, width) of the picture.

    Returns:
        For each a patch inside the picture; without pixels where no probability reaches the threshold, where the box
        misses the picture, and where it has no width or height (to torchvision, one below zero).
    """
    rule, side = RULES[paste], probabilities.shape[1]
    high = rule.above(probabilities, threshold)
    found = high.any(axis=(1, 2)).tolist()
    rows, columns = _spans(high.any(axis=2)), _spans(high.any(axis=1))
    framed = np.zeros((side + 2, side + 2), np.float32)
    for i, (x, y) in enumerate(rule.corners(boxes, side)):
        if not found[i]:
            yield Patch(0, 0, np.zeros((0, 0), np.bool_))
            continue
        framed[1:-1, 1:-1] = probabilities[i]
        top, down = _steps(rule.places(y, side, size[0]), rows[i], rule.ring)
        left, along = _steps(rule.places(x, side, size[1]), columns[i], rule.ring)
        yield Patch(top, left, grow(framed, down, along, threshold, rule.above))


def _sigmoid(logits: Floats) -> Floats:
    values: Floats = np.exp(-np.maximum(logits, LOWEST))
    values += 1
    return np.reciprocal(values, out=values)


def _spans(high: NDArray[np.bool_]) -> list[list[int]]:
    """The first and the last true place in each row of (N, m); the ends of a row without any."""
    lasts = high.shape[1] - 1 - high[:, ::-1].argmax(axis=1)
    spans: list[list[int]] = np.stack([high.argmax(axis=1), lasts], axis=1).tolist()
    return spans


def _steps(axis: Places, span: list[int], ring: int) -> tuple[int, Steps]:
    """The first pixel within a cell of those above the threshold, and the way from it to the last.

    Args:
        span: the first and the last such cell.
        ring: the place of the first cell's centre.
    """
    first, places = axis
    start, stop = between(places, span[0] - 1 + ring, span[1] + 1 + ring)
    places = places[start:stop]
    below = np.floor(places)
    return first + start, Steps(below.astype(np.intp) + (1 - ring), places - below)


Corner = tuple[float, float]  # of a box along one axis, in the words of its rule


@dataclass(frozen=True, slots=True)
class Rule:
    """How a square comes over its box."""

    above: np.ufunc  # whether the level itself counts
    ring: int  # how many cells of a ring of zeros are part of the square
    corners: Callable[[Floats, int], list[tuple[Corner, Corner]]]  # of boxes (N, 4) and a side, per box of x and of y
    places: Callable[[Corner, int, int], Places]  # of a corner, a side and the picture's pixels along the axis


def _whole_corners(boxes: Floats, side: int) -> list[tuple[Corner, Corner]]:
    """First and last pixel of a box that has grown by the ring. Cut down towards zero, also below it."""
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((side + 2) / side)
    centres = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    corners: list[tuple[Corner, Corner]] = np.trunc(np.stack([centres - half, centres + half], axis=2)).tolist()
    return corners


def _whole_places(corner: Corner, side: int, pixels: int) -> Places:
    """A square of `side` + 2 over the pixels from a box's first to its last."""
    first, last = int(corner[0]), int(corner[1])
    start = min(max(first, 0), pixels)
    places = np.arange(start - first + 0.5, min(last + 1, pixels) - first)
    places *= np.float32(side + 2) / np.float32(max(last - first + 1, 1))  # cells per pixel
    places -= 0.5
    return start, places.astype(np.float32)  # rounded once: PyTorch's kernel is compiled to a fused multiply-add


def _sampled_corners(boxes: Floats, side: int) -> list[tuple[Corner, Corner]]:
    """Left (or upper) edge and extent."""
    corners: list[tuple[Corner, Corner]] = np.stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=2).tolist()
    return corners


def _sampled_places(corner: Corner, side: int, pixels: int) -> Places:
    """The box reaches from -1 to 1, and the edges of the square with it; beyond, values fall to zero in a cell."""
    low, extent = corner
    if extent <= 0:
        return 0, np.zeros(0, np.float32)
    reach = extent / side + 1
    start = min(max(int(low - reach), 0), pixels)
    places = np.arange(start, min(int(low + extent + reach) + 1, pixels), dtype=np.float32)
    places += 0.5
    places -= low
    places /= max(extent, SLIVER)
    places *= 2
    places -= 1
    places += 1  # not what it was: these round
    exact = places.astype(np.float64)
    exact *= side / 2
    exact -= 0.5
    return start, exact.astype(np.float32)  # rounded once, as above


RULES: dict[Paste, Rule] = {
    "torchvision": Rule(np.greater, 1, _whole_corners, _whole_places),
    "detectron2": Rule(np.greater_equal, 0, _sampled_corners, _sampled_places),
}
