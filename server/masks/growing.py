"""A small grid of values grown to pixels, and cut at a level, rounding as PyTorch does.

Growth is bilinear, from cell centre to cell centre. One row of two cells grown to eight pixels, in tenths, whose
centres lie at -0.375, -0.125, ... 1.375 cells from the first centre:

    cells       8 2
    pixels      8 8 7 6 4 3 2 2        > 5        # # # # . . . .

It grows in width first, while it is small, and then row by row, some rows at a time: so the values stay in a core's
cache, and the bits are all that is ever as large as the mask. Products with tables of shares are quicker (`grid`), but
round once less, and that turns pixels of masks which have been recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PIXELS_AT_ONCE = 30_000  # two float32 of each are 240 kB


@dataclass(frozen=True, slots=True)
class Steps:
    """Where the centres of pixels lie along one axis, from the first to the last. Both (pixels,)."""

    below: NDArray[np.intp]  # the cell whose centre is the last that does not lie beyond the pixel's
    share: Floats  # of the next cell in its value


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
    wide = cells.take(columns.below, axis=1)  # (h, W)
    wide *= 1 - columns.share
    after = cells.take(columns.below + 1, axis=1)
    after *= columns.share
    wide += after
    bits = np.empty((len(rows.below), len(columns.below)), np.bool_)
    shares, rest = rows.share[:, None], 1 - rows.share[:, None]
    step = max(1, PIXELS_AT_ONCE // max(1, len(columns.below)))
    for start in range(0, len(bits), step):
        part = slice(start, start + step)
        grown = wide.take(rows.below[part], axis=0)
        grown *= rest[part]
        after = wide[1:].take(rows.below[part], axis=0)
        after *= shares[part]
        grown += after
        above(grown, level, out=bits[part])
    return bits
