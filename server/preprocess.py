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
from PIL import Image
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from server.geometry import Frame, Picture, Resample


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
        if self.resize == "stretch":
            return Frame(size=size, input_size=self.size, content=self.size, resample=self.shrink)
        scale = min(self.size[0] / size[0], self.size[1] / size[1])
        content = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        return Frame(size=size, input_size=self.size, content=content, resample=self.shrink)


class ShortestEdgeInput(BaseModel):
    """Where the detectors' rule holds, in place of an `InputSpec`: the short side becomes `short_side`, unless the long
    one would grow beyond `long_side`. Large pictures shrink as far as small ones grow. Lengths in pixels.

    The code bases agree on the rule and differ in the last pixel. 60 x 47 at short_side 96 and long_side 123:

        floor         122 x 95     torchvision: every side is scaled and cut off
        nearest       123 x 96     detectron2, mmdetection: every side is scaled and rounded, halves up
        short_first   122 x 96     maskrcnn-benchmark: the short side is rounded, the long one follows it and is cut off
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    short_side: int = Field(ge=1, description="the short side becomes this")
    long_side: int = Field(ge=1, description="but the long side never more than this")
    multiple: int = Field(ge=1, description="height and width of the tensor are multiples of this")
    rounding: Literal["floor", "nearest", "short_first"] = "nearest"
    resample: Resample = Field(
        "linear",
        description="how pixels are made: bilinear between four of them (cv2.INTER_LINEAR; torchvision, mmdetection), "
        "bilinear over all that a pixel covers (triangle: Pillow's BILINEAR; detectron2), or the mean of these (area)",
    )
    reduced_decoding: bool = Field(True, description="as in `InputSpec`")

    @model_validator(mode="after")
    def _sides_fit(self) -> ShortestEdgeInput:
        if self.short_side > self.long_side:
            raise ValueError(f"short_side {self.short_side} is longer than long_side {self.long_side}")
        return self

    @property
    def max_size(self) -> tuple[int, int]:
        """Largest (height, width) of the tensor."""
        side = -(-self.long_side // self.multiple) * self.multiple
        return side, side

    def frame(self, size: tuple[int, int]) -> Frame:
        """Where a picture of `size` (height, width) comes to lie. Every side is at least one pixel."""
        content = self._content(size)
        padded = tuple(-(-side // self.multiple) * self.multiple for side in content)
        return Frame(size=size, input_size=(padded[0], padded[1]), content=content, resample=self.resample)

    def _content(self, size: tuple[int, int]) -> tuple[int, int]:
        short, long = min(size), max(size)
        if self.rounding == "short_first":
            scaled = self.short_side
            if long / short * scaled > self.long_side:
                scaled = max(1, round(self.long_side * short / long))
            other = min(max(1, int(scaled * long / short)), max(self.max_size))  # it may pass long_side by a few pixels
            return (scaled, other) if size[0] <= size[1] else (other, scaled)
        scale = min(self.short_side / short, self.long_side / long)
        add = 0.5 if self.rounding == "nearest" else 0.0
        return max(1, int(size[0] * scale + add)), max(1, int(size[1] * scale + add))


def _kind_of_input(value: Any) -> str:
    fields = value if isinstance(value, dict) else type(value).model_fields
    return "fixed" if "size" in fields else "shortest_edge" if "long_side" in fields else "free"


AnyInput = Annotated[
    Annotated[InputSpec, Tag("free")]
    | Annotated[FixedInput, Tag("fixed")]
    | Annotated[ShortestEdgeInput, Tag("shortest_edge")],
    Discriminator(_kind_of_input),
]


def place(picture: Picture, frame: Frame) -> NDArray[np.uint8]:
    """Scale a picture and lay it into the network's input.

    Enlarging is bilinear, with pixel centres aligned. Shrinking makes a pixel the mean of all that it covers (`area`),
    their weighted mean, the nearest ones counting most (`triangle`), or lets it lie between four of them (`linear`).

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
    if frame.resample == "triangle":
        return _triangle(picture, frame)
    how = cv2.INTER_AREA if shrunk and frame.resample == "area" else cv2.INTER_LINEAR
    turned = np.s_[:: -1 if top < 0 else 1, :: -1 if left < 0 else 1]
    pixels = np.ascontiguousarray(picture.pixels[turned])
    scaled = cv2.resize(pixels, None, fx=horizontal, fy=vertical, interpolation=how)
    return np.asarray(scaled[: frame.content[0], : frame.content[1]][turned], np.uint8)


def _triangle(picture: Picture, frame: Frame) -> NDArray[np.uint8]:
    """Pillow's bilinear, which covers all that a pixel of the result covers; it takes the original out of `picture`."""
    left, top, right, bottom = picture.covers
    rows, columns = picture.pixels.shape[:2]
    per_column, per_row = columns / (right - left), rows / (bottom - top)
    height, width = frame.size
    original = (
        -left * per_column,
        -top * per_row,
        min((width - left) * per_column, columns),
        min((height - top) * per_row, rows),
    )
    wanted = (frame.content[1], frame.content[0])
    return np.asarray(Image.fromarray(picture.pixels).resize(wanted, Image.Resampling.BILINEAR, box=original))
