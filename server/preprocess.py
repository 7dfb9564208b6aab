"""From an upright picture to the network's input.

The graph does the arithmetic on pixel values; here pixels only move: the picture is scaled by the manifest's rule and
laid into the top-left corner of a tensor whose sides are multiples of what the network needs. For the bundled nuclei
model (short side 512, at most twice the size, multiples of 16) a picture of 256 x 256 becomes 512 x 512.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.geometry import Frame


class InputSpec(BaseModel):
    """What pictures the network wants to see; part of the manifest. Lengths in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    multiple: int = Field(ge=1, description="height and width of the tensor are multiples of this")
    max_size: tuple[int, int] = Field(description="largest (height, width) of the tensor; a larger picture is shrunk")
    short_side: int = Field(ge=1, description="a picture with a shorter side than this is enlarged towards it")
    max_scale: float = Field(ge=1.0, description="but never by more than this factor")

    @model_validator(mode="after")
    def _max_size_fits(self) -> InputSpec:
        if any(side < self.multiple or side % self.multiple for side in self.max_size):
            raise ValueError(f"max_size {self.max_size} is not made of multiples of {self.multiple}")
        return self

    def frame(self, size: tuple[int, int]) -> Frame:
        """Where a picture of `size` (height, width) comes to lie. Every side is at least one pixel."""
        scale = min(max(1.0, self.short_side / min(size)), self.max_scale)
        scale = min(scale, self.max_size[0] / size[0], self.max_size[1] / size[1])
        content = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        padded = tuple(-(-side // self.multiple) * self.multiple for side in content)
        return Frame(size=size, input_size=(padded[0], padded[1]), content=content)


def place(image: NDArray[np.uint8], spec: InputSpec) -> tuple[NDArray[np.uint8], Frame]:
    """Scale a picture and lay it into the network's input.

    Enlarging is bilinear, shrinking averages areas, both with pixel centres aligned.

    Args:
        image: (H, W, 3) uint8 RGB, upright.

    Returns:
        The tensor (h, w, 3) uint8, zero beyond the picture, and the way back.
    """
    frame = spec.frame((image.shape[0], image.shape[1]))
    height, width = frame.content
    if frame.content != frame.size:
        shrink = height < frame.size[0] or width < frame.size[1]
        how = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)
    if frame.content == frame.input_size:
        return np.ascontiguousarray(image), frame
    tensor = np.zeros((*frame.input_size, 3), np.uint8)
    tensor[:height, :width] = image
    return tensor, frame
