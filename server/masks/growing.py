"""A small grid of values grown to pixels, and cut at a level: what masks that come from coarse cells share.

Growth is bilinear, from cell centre to cell centre. One row of two cells grown to eight pixels, in tenths, whose
centres lie at -0.375, -0.125, ... 1.375 cells from the first centre:

    cells       8 2
    pixels      8 8 7 6 4 3 2 2        > 5        # # # # . . . .

It grows in width first, while it is small, and then row by row, some rows at a time: so the values stay in a core's
cache, and the bits are all that is ever as large as the mask. Matrix products would do it as quickly, but BLAS spreads
those of this size over all cores, which other pictures need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PIXELS_AT_ONCE = 30_000  # two float32 of each are 240 kB


@dataclass(frozen=True, slots=True)
class Steps:
    """Where the centres of pixels lie along one axis, from the first to the last. All (pixels,)."""

    below: NDArray[np.intp]  # the cell whose centre is the last that does not lie beyond the pixel's
    after: NDArray[np.intp]  # the next cell
    rest: Floats  # of the cell below in the pixel's value
    share: Floats  # of the next one

    @staticmethod
    def at(below: NDArray[np.intp], share: Floats) -> Steps:
        return Steps(below, below + 1, 1 - share, share)

    def __getitem__(self, part: slice) -> Steps:
        return Steps(self.below[part], self.after[part], self.rest[part], self.share[part])


def between(places: NDArray[np.floating], low: int, high: int) -> tuple[int, int]:
    """The pixels strictly between two cells' centres: the first, and the one after the last.

    Args:
        places: (pixels,), where their centres lie, in cells; they never fall.
    """
    start = int(places.searchsorted(low, side="right"))
    return start, max(start, int(places.searchsorted(high, side="left")))


def grow(cells: Floats, rows: Steps, columns: Steps, level: float, above: np.ufunc = np.greater) -> NDArray[np.bool_]:
    """Which pixels are above a level.

    A value is a * (1 - share) + b * share, in float32, first along and then down. Shorter sums flip pixels that lie at
    the level but for rounding, and then masks are no longer PyTorch's to the pixel.

    Args:
        cells: (h, w); every pixel has a cell on either side of it.
        above: `np.greater`, or `np.greater_equal` where a value of just the level is enough.

    Returns:
        (H, W), as many as `rows` and `columns` have.
    """
    wide = _blend(cells.take(columns.below, 1), cells.take(columns.after, 1), columns.rest, columns.share)  # (h, W)
    height, width = len(rows.below), len(columns.below)
    if height * width <= PIXELS_AT_ONCE:
        bits: NDArray[np.bool_] = above(_down(wide, rows), level)
        return bits
    bits = np.empty((height, width), np.bool_)
    step = max(1, PIXELS_AT_ONCE // width)
    for start in range(0, height, step):
        part = slice(start, start + step)
        above(_down(wide, rows[part]), level, out=bits[part])
    return bits


def _down(wide: Floats, rows: Steps) -> Floats:
    """(h, W) grown to (H, W)."""
    return _blend(wide.take(rows.below, 0), wide.take(rows.after, 0), rows.rest[:, None], rows.share[:, None])


def _blend(one: Floats, other: Floats, rest: Floats, share: Floats) -> Floats:
    """Written over `one`."""
    one *= rest
    other *= share
    one += other
    return one
