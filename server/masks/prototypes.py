"""Every mask is a weighted sum of K planes that the whole picture shares (YOLACT, Bolya et al. 2019,
https://arxiv.org/abs/1904.02689, eq. 1; the segmentation heads of the YOLO family end the same way).

The sum is coarse, a cell for several pixels, and says what is likely anywhere in the picture. So it is cut off at the
object's box, and grows to the size of the picture between cell centres (half-pixel rule, edges repeated). In tenths,
grown to twice the width, with the box around the two columns on the left:

    cells          crop to the box      between centres         > threshold
    8 8 4 0        8 8 . .              8 8 8 6 2 . . .         # # # # . . . .
    8 8 4 8        8 8 . .              8 8 8 6 2 . . .         # # # # . . . .

Implementations disagree about the details, and the masks show it. Two of the rules that the parameters can say:

    YOLACT      crop="grid", cells="corner", padding=1, interpolate="probabilities"     `postprocess` and `crop` in
                https://github.com/dbolya/yolact/blob/master/layers/output_utils.py and box_utils.py; so does mmdet
    YOLO-seg    crop="grid", cells="corner", padding=0, interpolate="logits"            `process_mask` in
                https://github.com/ultralytics/ultralytics/blob/main/ultralytics/utils/ops.py; with crop="image" it is
                `process_mask_native`

Only the part of the picture where a mask can be is ever computed: from the cells above the threshold to their next
neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from server.geometry import Frame
from server.masks.base import Masks, Outputs
from server.masks.grid import Bounds, Grid
from server.masks.growing import Floats
from server.segments import Patch, Segment

CELLS_AT_ONCE = 1_000_000  # of weighted sums: a hundred masks of 64 x 64, 4 MB
LOWEST = np.float32(-80.0)  # exp(80) is still a float32


class PrototypeMasks(Masks):
    """Objects with boxes; a mask is `coefficients @ prototypes`, cut off at the box."""

    kind: Literal["prototypes"] = "prototypes"
    threshold: float = Field(0.5, gt=0.0, lt=1.0, description="probability above which a pixel is part of an object")
    crop: Literal["grid", "image", "none"] = Field(
        "grid", description="cut off at the box before the mask grows, after it, or not at all"
    )
    cells: Literal["touched", "corner"] = Field(
        "touched", description="kept are cells (pixels) that the box touches, or whose top-left corner lies inside"
    )
    padding: float = Field(0.0, ge=0.0, description="cells (pixels) by which the box is larger for the crop")
    interpolate: Literal["probabilities", "logits"] = Field(
        "probabilities", description="what grows; where logits are cut off, the threshold itself stands outside"
    )

    legend: ClassVar[dict[str, str]] = {
        "boxes": "N 4",
        "scores": "N",
        "labels": "N",
        "coefficients": "N K",
        "prototypes": "K h w",
    }

    def decode(self, outputs: Outputs, frame: Frame, min_score: float) -> Iterator[Segment]:
        scores, prototypes = outputs["scores"], outputs["prototypes"]
        (kept,) = np.nonzero((scores >= min_score) & (scores > 0))
        if not kept.size:
            return
        grid = prototypes.shape[1:]
        placed = Grid(grid, frame)
        input_boxes = outputs["boxes"][kept].astype(np.float64)
        boxes = frame.to_original(input_boxes).clip(0, [*frame.size[::-1], *frame.size[::-1]])
        kept_cells, kept_pixels = self._crops(input_boxes, grid, frame)
        step = max(1, CELLS_AT_ONCE // (grid[0] * grid[1]))
        for start in range(0, len(kept), step):
            part = kept[start : start + step]
            sums = outputs["coefficients"][part] @ prototypes.reshape(len(prototypes), -1)  # (n, h * w)
            for i, logits in enumerate(sums.reshape(-1, *grid), start):
                x1, y1, x2, y2 = boxes[i].tolist()
                yield Segment(
                    label=int(outputs["labels"][kept[i]]),
                    score=float(scores[kept[i]]),
                    box=(x1, y1, x2, y2),
                    patch=self._cut(logits, kept_cells[i], kept_pixels[i], placed),
                )

    def _crops(
        self, input_boxes: NDArray[np.float64], grid: tuple[int, int], frame: Frame
    ) -> tuple[list[Bounds], list[Bounds]]:
        """For every box the cells and the original pixels that its crop leaves; all of them where it does not cut."""
        whole_grid, whole_image = ([(0, 0, *size)] * len(input_boxes) for size in (grid, frame.size))
        match self.crop:
            case "grid":
                to_cells = np.array([grid[1] / frame.input_size[1], grid[0] / frame.input_size[0]] * 2)
                return self._inside(input_boxes * to_cells, grid), whole_image
            case "image":
                return whole_grid, self._inside(frame.to_original(input_boxes), frame.size)
            case "none":
                return whole_grid, whole_image

    def _inside(self, boxes: NDArray[np.float64], size: tuple[int, int]) -> list[Bounds]:
        """The cells of a grid of `size` that each xyxy box keeps; nothing where a box is inside out."""
        first = np.floor if self.cells == "touched" else np.ceil
        low = first((boxes[:, 1::-1] - self.padding).clip(0, size))  # (N, 2) y, x
        high = np.ceil((boxes[:, :1:-1] + self.padding).clip(0, size))
        return [(y1, x1, y2, x2) for y1, x1, y2, x2 in np.hstack([low, high]).astype(int).tolist()]

    def _cut(self, logits: Floats, cells: Bounds, pixels: Bounds, grid: Grid) -> Patch:
        """One mask from its (h, w) sums, in original pixels."""
        y1, x1, y2, x2 = cells
        inside = logits[y1:y2, x1:x2]
        if self.interpolate == "logits":
            values = inside - np.float32(np.log(self.threshold / (1 - self.threshold)))
            return grid.patch(values, cells, pixels, 0.0)
        return grid.patch(_sigmoid(inside), cells, pixels, self.threshold)


def _sigmoid(logits: Floats) -> Floats:
    values: Floats = np.maximum(logits, LOWEST)
    np.negative(values, out=values)
    np.exp(values, out=values)
    values += 1
    return np.divide(1, values, out=values)
