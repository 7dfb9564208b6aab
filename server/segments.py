"""Values that travel between a mask representation and an output format.

A mask never exists at the size of the photograph: it is a `Patch`, the crop that holds it, so cost follows the object.

    Patch(y=2, x=3, bits=[[1, 1], [0, 1]])      three pixels: (2, 3) (2, 4) (3, 4)
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Patch:
    """A mask inside its picture.

    `bits` is (h, w) bool; its top-left pixel lies at row `y`, column `x` of the picture, and it lies wholly inside.
    """

    y: int
    x: int
    bits: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Segment:
    """One found object, in original pixels."""

    label: int  # index into the manifest's `classes`
    score: float
    box: tuple[float, float, float, float]  # xyxy
    patch: Patch

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.patch.bits))


def patch_to_box(patch: Patch) -> tuple[float, float, float, float]:
    """The tight xyxy box of a mask's pixels; (x, y, x, y) of its corner when it has none."""
    if not patch.bits.size:
        return float(patch.x), float(patch.y), float(patch.x), float(patch.y)
    x, y, width, height = cv2.boundingRect(patch.bits.view(np.uint8))  # zeros when no pixel is set
    return float(patch.x + x), float(patch.y + y), float(patch.x + x + width), float(patch.y + y + height)
