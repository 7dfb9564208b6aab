"""Run-length encoding as COCO writes it, from the crop alone: the frame is never painted.

A mask is walked down its columns, left to right, and the lengths of the runs are kept: zeros first, then ones, then
zeros again. A ring in a frame of 4 rows and 5 columns:

    . . . . .
    . # # # .       ....  .###  .#.#  .###  ....      the columns
    . # . # .
    . # # # .       5 3 1 1 1 1 1 3 4                 the runs; they add up to 4 * 5

A run that leaves the bottom of a column goes on at the top of the next. A mask that begins with a one has a first run
of 0; no run of 0 stands at the end.

The string form is made of numbers: the first three runs as they are, and from then on (i > 2, counted from 0) each run
less the run two before it, as neighbouring columns resemble each other:

    5 3 1 -2 0 0 0 2 3     ->     531N00023

A number is cut into groups of 5 bits, the lowest first. Every group but the last has 32 added, and all are written as
the character 48 places on, from "0" to "o". The highest bit of the last group is the sign, so 20 takes two characters:

     5  =        00101     ->             5 + 48     ->     5
    -2  =        11110     ->            30 + 48     ->     N
    20  =  00000 10100     ->   20 + 32 + 48, 48     ->     d0

The format is that of `rleEncode` and `rleToString` in cocoapi
(https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c), and the result is theirs to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from server.segments import Patch

Counts = NDArray[np.int64]

# Masks are worked on a few at a time, so that the arrays between the steps stay in a core's cache.
EDGE_MAP_BYTES = 250_000
RUNS_AT_ONCE = 16_000


def encode(patches: Sequence[Patch], size: tuple[int, int]) -> list[str]:
    """The COCO string of each mask of one image; `size` is the frame's (height, width)."""
    return counts_to_strings(patches_to_counts(patches, size))


def patches_to_counts(patches: Sequence[Patch], size: tuple[int, int]) -> list[Counts]:
    """Run lengths of each mask of one image.

    An edge is a pixel that differs from the one before it in the walk. Edges are found by comparing rows, which are
    contiguous, and then sorted into columns: there are so few of them that this is cheaper than to turn the pixels.

    Args:
        patches: masks, each wholly inside the frame.
        size: (height, width) of the frame, at least one pixel.

    Returns:
        Per patch its runs, zeros first, at least one; they add up to height * width.
    """
    height, width = size
    frames = np.arange(len(patches) + 1) * (height * width)  # one long walk through all frames: mask i from frames[i]
    parts = _parts([patch.bits.size for patch in patches], EDGE_MAP_BYTES)
    edges = np.concatenate([frames, *(_edges(patches[part], frames[part], size) for part in parts)])
    edges.sort()
    bounds = np.searchsorted(edges, frames).tolist()
    counts = np.diff(edges)
    return [counts[start:stop] for start, stop in pairwise(bounds)]


def counts_to_strings(counts: Sequence[Counts]) -> list[str]:
    """Write run lengths as COCO strings, many masks at once.

    Args:
        counts: per mask its runs, at least one, each below 2**32.
    """
    parts = _parts([len(runs) for runs in counts], RUNS_AT_ONCE)
    return [string for part in parts for string in _strings(counts[part])]


def string_to_counts(text: str) -> Counts:
    """Read a COCO string back into run lengths.

    Raises:
        ValueError: `text` is empty, ends inside a number, or holds a character outside "0".."o".
    """
    groups = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if not groups.size or groups.min() < 0 or groups.max() > 63 or groups[-1] > 31:
        raise ValueError(f"a COCO run-length string is numbers in the characters '0' to 'o', got {text[:40]!r}")
    lasts = np.flatnonzero(groups < 32)
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    lengths = lasts - firsts + 1
    shifts = 5 * (np.arange(len(groups)) - np.repeat(firsts, lengths))
    runs: Counts = np.add.reduceat((groups & 31) << shifts, firsts)
    runs -= (groups[lasts] & 16) << (5 * lengths - 4)  # the sign bit s stands for -s: take it away twice
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def counts_to_mask(counts: Counts, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Paint run lengths into an (H, W) bool frame.

    Raises:
        ValueError: the runs do not add up to the frame.
    """
    height, width = size
    if counts.sum() != height * width or counts.min() < 0:
        raise ValueError(f"runs should add up to {height} * {width} = {height * width}, got {counts.sum()}")
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return pixels.reshape(width, height).T


def _parts(costs: Sequence[int], limit: int) -> Iterator[slice]:
    """Cut a sequence into slices that cost up to `limit`; an item above it comes alone."""
    start = spent = 0
    for i, cost in enumerate(costs):
        if spent + cost > limit and i > start:
            yield slice(start, i)
            start, spent = i, 0
        spent += cost
    if costs:
        yield slice(start, len(costs))


def _edges(patches: Sequence[Patch], frames: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Where masks change, as places in the walk, in no order; mask i's frame begins at frames[i]."""
    height, width = size
    canvas = np.empty(sum(patch.bits.size + patch.bits.shape[1] for patch in patches), np.bool_)
    used, starts, widths, corners = 0, [], [], []
    for patch in patches:
        h, w = patch.bits.shape
        starts.append(used)
        widths.append(w)
        corners.append(patch.x * height + patch.y)
        if not patch.bits.size:
            continue
        edges = canvas[used : used + (h + 1) * w].reshape(h + 1, w)  # one row more: all is zero below the patch
        edges[0] = patch.bits[0]
        np.not_equal(patch.bits[1:], patch.bits[:-1], out=edges[1:h])
        edges[h] = patch.bits[-1]
        if h == height:  # below a column is the top of the next
            edges[0, 1:] ^= edges[h, :-1]
            edges[h, :-1] = False
        if patch.y + h == height and patch.x + w == width:  # below the last column the walk is over
            edges[h, -1] = False
        used += edges.size

    found = np.flatnonzero(canvas[:used])
    times = np.diff(np.searchsorted(found, starts), append=len(found))  # edges of each patch
    found -= np.repeat(starts, times)
    each_width = np.repeat(widths, times)
    rows = found // each_width
    columns = found - rows * each_width
    places: NDArray[np.int64] = np.repeat(frames + corners, times) + columns * height + rows
    return places


def _strings(counts: Sequence[Counts]) -> list[str]:
    """`counts_to_strings` for one part."""
    runs = np.concatenate(counts, dtype=np.int64)
    ends = np.cumsum([len(each) for each in counts])
    numbers = _runs_to_numbers(runs, ends)

    magnitudes = numbers ^ (numbers >> 63)  # n, or -n - 1 when it is negative: k groups hold it below 2**(5k - 1)
    lengths = np.ones(len(numbers), np.uint8)
    for groups in range(1, 7):
        lengths += magnitudes >= 1 << (5 * groups - 1)

    stops = np.cumsum(lengths, dtype=np.int64)
    places = stops - lengths
    characters = np.empty(stops[-1], np.uint8)
    while len(numbers):  # one turn writes one group of every number that still has one
        unfinished = lengths > 1
        characters[places] = (numbers & 31) + 32 * unfinished + 48
        rest = np.flatnonzero(unfinished)
        numbers, places, lengths = numbers[rest] >> 5, places[rest] + 1, lengths[rest] - 1

    text = characters.tobytes().decode("ascii")
    bounds = [0, *stops[ends - 1].tolist()]
    return [text[start:stop] for start, stop in pairwise(bounds)]


def _runs_to_numbers(runs: Counts, ends: NDArray[np.int64]) -> Counts:
    """Take from each run, from the fourth of its mask on, the run two before it."""
    numbers = runs.copy()
    numbers[2:] -= runs[:-2]
    starts = np.concatenate([[0], ends[:-1]])
    heads = starts[:, None] + np.arange(3)  # (N, 3): the first three runs of each mask stay as they are
    heads = heads[heads < ends[:, None]]
    numbers[heads] = runs[heads]
    return numbers
