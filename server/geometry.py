"""How a picture lies in the network's input, and the way back.

A picture of 256 x 320 seen at twice its size in an input padded to multiples of 16:

    Frame(size=(256, 320), input_size=(512, 640), content=(512, 640))
    frame.to_original([[64, 20, 128, 40]]) == [[32, 10, 64, 20]]

A `Picture` may have been decoded at a reduced size; everything else speaks of the original.

Coordinates count pixel edges: a pixel in column 3 reaches from x = 3 to x = 4, its centre is 3.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Resample = Literal["area", "linear", "triangle"]  # how a picture shrinks: see `preprocess.place`


@dataclass(frozen=True, slots=True)
class Picture:
    """Decoded pixels, at full size or reduced.

    Reduced sides are rounded up: 4031 columns at half size are 2016, and these reach from 0 to 4032 in the original, or
    from -1 to 4031 where EXIF mirrors it.
    """

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB, upright, C-contiguous
    covers: tuple[int, int, int, int]  # xyxy, original pixels: where the outer edges of `pixels` lie


@dataclass(frozen=True, slots=True)
class Frame:
    """Sizes are (height, width); the picture lies in the top-left corner of the input, padding below and right."""

    size: tuple[int, int]  # of the upright original
    input_size: tuple[int, int]  # of the tensor, padding included
    content: tuple[int, int]  # of the resized picture inside the tensor
    resample: Resample = "area"

    @property
    def scale(self) -> tuple[float, float]:
        """(vertical, horizontal) input pixels per original pixel."""
        return self.content[0] / self.size[0], self.content[1] / self.size[1]

    def to_original(self, input_boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, 4) xyxy boxes from input pixels to original pixels."""
        vertical, horizontal = self.scale
        original: NDArray[np.float64] = input_boxes / np.array([horizontal, vertical, horizontal, vertical])
        return original

    def to_input(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, 4) xyxy boxes from original pixels to input pixels."""
        vertical, horizontal = self.scale
        placed: NDArray[np.float64] = boxes * np.array([horizontal, vertical, horizontal, vertical])
        return placed
