"""From an upright picture to the network's input.

The graph does the arithmetic on pixel values; here pixels only move: the picture is scaled by the manifest's rule and
laid into the top-left corner of a tensor whose sides are multiples of what the network needs. For the bundled nuclei
model (short side 512, at most twice the size, multiples of 16) a picture of 256 x 256 becomes 512 x 512.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from server.geometry import Frame, Picture


class InputSpec(BaseModel):
    """What pictures the network wants to see; part of the manifest. Lengths in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    multiple: int = Field(ge=1, description="height and width of the tensor are multiples of this")
    max_size: tuple[int, int] = Field(description="largest (height, width) of the tensor; a larger picture is shrunk")
    short_side: int = Field(ge=1, description="a picture with a shorter side than this is enlarged towards it")
    max_scale: float = Field(ge=1.0, description="but never by more than this factor")
    reduced_decoding: bool = Field(
        True,
        description="decode a large JPEG at half or a quarter of its size; not where contrast is stretched",
    )

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


class FixedInput(BaseModel):
    """Where the graph takes one input size only; in place of an `InputSpec`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int] = Field(description="(height, width) of the tensor, pixels")
    resize: Literal["stretch", "letterbox"] = Field(
        description="fill the tensor and let the sides change their ratio, or keep the ratio and fill up with zeros"
    )
    shrink: Literal["area", "linear"] = Field(
        "area", description="mean of the pixels that become one, or bilinear between four of them (cv2.INTER_LINEAR)"
    )
    reduced_decoding: bool = Field(True, description="as in `InputSpec`")

    @model_validator(mode="after")
    def _has_pixels(self) -> FixedInput:
        if min(self.size) < 1:
            raise ValueError(f"size {self.size} has no pixels")
        return self

    def frame(self, size: tuple[int, int]) -> Frame:
        """Where a picture of `size` (height, width) comes to lie."""
        antialias = self.shrink == "area"
        if self.resize == "stretch":
            return Frame(size=size, input_size=self.size, content=self.size, antialias=antialias)
        scale = min(self.size[0] / size[0], self.size[1] / size[1])
        content = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        return Frame(size=size, input_size=self.size, content=content, antialias=antialias)


def _free_or_fixed(value: Any) -> str:
    return "fixed" if isinstance(value, FixedInput) or (isinstance(value, dict) and "size" in value) else "free"


AnyInput = Annotated[
    Annotated[InputSpec, Tag("free")] | Annotated[FixedInput, Tag("fixed")], Discriminator(_free_or_fixed)
]


def place(picture: Picture, frame: Frame) -> NDArray[np.uint8]:
    """Scale a picture and lay it into the network's input.

    Enlarging is bilinear, shrinking averages areas unless the frame says otherwise, both with pixel centres aligned.

    Args:
        picture: of `frame.size`, or reduced with `frame.content` in view.

    Returns:
        The tensor (h, w, 3) uint8, zero beyond the picture.
    """
    pixels = picture.pixels if frame.content == frame.size else _scale(picture, frame)
    if frame.content == frame.input_size:
        return np.ascontiguousarray(pixels)
    tensor = np.zeros((*frame.input_size, 3), np.uint8)
    tensor[: frame.content[0], : frame.content[1]] = pixels
    return tensor


def _scale(picture: Picture, frame: Frame) -> NDArray[np.uint8]:
    """The picture at the size of `frame.content`, without what it shows beyond the original.

    OpenCV begins at the edge of the first pixel. Given factors in place of a size, it may end anywhere inside a pixel:
    so what lies beyond the original is turned to the end for it.
    """
    left, top, right, bottom = picture.covers
    rows, columns = picture.pixels.shape[:2]
    vertical = frame.scale[0] * (bottom - top) / rows
    horizontal = frame.scale[1] * (right - left) / columns
    shrunk = vertical < 1 or horizontal < 1
    how = cv2.INTER_AREA if shrunk and frame.antialias else cv2.INTER_LINEAR
    turned = np.s_[:: -1 if top < 0 else 1, :: -1 if left < 0 else 1]
    pixels = np.ascontiguousarray(picture.pixels[turned])
    scaled = cv2.resize(pixels, None, fx=horizontal, fy=vertical, interpolation=how)
    return np.asarray(scaled[: frame.content[0], : frame.content[1]][turned], np.uint8)
