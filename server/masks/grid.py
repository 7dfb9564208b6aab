"""A grid of cells over the whole picture, grown to pixels inside a crop and cut at a level.

Growth is bilinear, from cell centre to cell centre, and the cells at the edges go on beyond them. One row of two cells
grown to eight pixels, in tenths, whose centres lie at -0.375, -0.125, ... 1.375 cells from the first centre:

    cells       8 2
    pixels      8 8 7 6 4 3 2 2        > 5        # # # # . . . .

Along an axis it is a product with a table of shares, pixels by cells, most of it zeros. The table is made once for all
masks of a picture, and kept for the next of the same size; a small mask then takes two products of a few cells. Of a
large mask some rows are made at a time, so that values stay in a core's cache, and the bits are all that is ever as
large as the mask.

`growing` does the same for cells that lie elsewhere for every mask, and rounds as PyTorch does; a product rounds once
less, which turns a pixel now and then. Sums of planes have no last bit that would be the right one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from server.geometry import Frame
from server.masks.growing import Floats
from server.segments import Patch

Bounds = tuple[int, int, int, int]  # y1, x1, y2, x2; the last two are exclusive

PIXELS_AT_ONCE = 60_000  # 240 kB of float32


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where the centres of the original's pixels lie among those of the cells."""

    starts: list[int]  # the first pixel beyond each cell's centre, from the one before the first on
    stops: list[int]  # the first that does not lie before it
    shares: Floats  # (pixels, cells) of every cell in every pixel's value

    def between(self, low: int, high: int, first: int, stop: int) -> tuple[int, int]:
        """The pixels strictly between two cells' centres, of those from `first` up to `stop`."""
        start = min(max(self.starts[low + 1], first), stop)
        return start, max(start, min(self.stops[high + 1], stop))


class Grid:
    """Cells over a picture.

    Args:
        size: (rows, columns) of the cells; they cover the network's input.
        frame: how the picture lies in that.
    """

    def __init__(self, size: tuple[int, int], frame: Frame) -> None:
        self._rows, self._columns = (
            _axis(pixels, cells, scale * cells / input_side)
            for pixels, scale, cells, input_side in zip(frame.size, frame.scale, size, frame.input_size, strict=True)
        )

    def patch(self, values: Floats, cells: Bounds, pixels: Bounds, level: float) -> Patch:
        """Where the picture is above a level.

        A grown value lies between those of the cells around it, so there is nothing to find farther than one cell from
        a cell above the level.

        Args:
            values: (h, w), of `cells`; all other cells are 0, which is no more than the level.
            pixels: beyond which nothing is sought.
        """
        y1, x1, y2, x2 = cells
        column, row, width, height = cv2.boundingRect((values > level).view(np.uint8))  # zeros when there are none
        if not width:
            return Patch(pixels[0], pixels[1], np.zeros((0, 0), np.bool_))
        top, bottom = self._rows.between(y1 + row - 1, y1 + row + height, pixels[0], pixels[2])
        left, right = self._columns.between(x1 + column - 1, x1 + column + width, pixels[1], pixels[3])
        wide = values @ self._columns.shares[left:right, x1:x2].T  # (h, right - left)
        down = self._rows.shares[top:bottom, y1:y2]
        if (bottom - top) * (right - left) <= PIXELS_AT_ONCE:
            return Patch(top, left, down @ wide > level)
        bits = np.empty((bottom - top, right - left), np.bool_)
        step = max(1, PIXELS_AT_ONCE // (right - left))
        for start in range(0, len(bits), step):
            part = down[start : start + step]
            (near,) = np.nonzero(part.any(axis=0))
            some = slice(near[0], near[-1] + 1) if len(near) else slice(0, 0)  # cells that these rows lie between
            np.greater(part[:, some] @ wide[some], level, out=bits[start : start + step])
        return Patch(top, left, bits)


@functools.lru_cache(maxsize=2)  # of one picture: those of a camera are all of one size
def _axis(pixels: int, cells: int, step: float) -> _Axis:
    """
    Args:
        step: cells per pixel.
    """
    places = np.round((np.arange(pixels) + 0.5) * step - 0.5, 9)  # a cell has no share where only rounding gives it one
    floors = np.floor(places)
    after = (places - floors).astype(np.float32)
    framed = np.zeros((pixels, cells + 2), np.float32)  # with a cell on either side
    below = np.arange(1, framed.size, cells + 2) + floors.astype(np.intp)
    framed.reshape(-1)[below] = 1 - after
    framed.reshape(-1)[below + 1] = after
    framed[:, 1] += framed[:, 0]
    framed[:, -2] += framed[:, -1]
    centres = np.arange(-1, cells + 1)
    starts, stops = places.searchsorted(centres, side="right"), places.searchsorted(centres, side="left")
    framed.flags.writeable = False  # others use it too
    return _Axis(starts.tolist(), stops.tolist(), framed[:, 1:-1])
