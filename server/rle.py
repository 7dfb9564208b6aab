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

# Masks are worked on together, but a few at a time, so that the arrays between the steps stay in a core's cache.
PIXELS_AT_ONCE = 500_000
RUNS_AT_ONCE = 32_000


def encode(patches: Sequence[Patch], size: tuple[int, int]) -> list[str]:
    """The COCO string of each mask of one image; `size` is the frame's (height, width)."""
    return [string for runs, bounds in _runs(patches, size) for string in _strings(runs, bounds)]


def patches_to_counts(patches: Sequence[Patch], size: tuple[int, int]) -> list[Counts]:
    """Run lengths of each mask of one image.

    Args:
        patches: masks, each wholly inside the frame.
        size: (height, width) of the frame, at least one pixel.

    Returns:
        Per patch its runs, zeros first, at least one; they add up to height * width.
    """
    return [
        runs[start:stop].astype(np.int64)
        for runs, bounds in _runs(patches, size)
        for start, stop in pairwise(bounds.tolist())
    ]


def counts_to_strings(counts: Sequence[Counts]) -> list[str]:
    """Write run lengths as COCO strings, many masks at once.

    Args:
        counts: per mask its runs, at least one, each below 2**32.
    """
    lengths = [len(runs) for runs in counts]
    return [
        string
        for part in _parts(lengths, RUNS_AT_ONCE)
        for string in _strings(np.concatenate(counts[part], dtype=np.int64), np.cumsum([0, *lengths[part]]))
    ]


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


# Many masks at once: runs i to i + 1 of `bounds` are those of mask i, in one array.
_Runs = NDArray[np.signedinteger]
_Bounds = NDArray[np.intp]


def _runs(patches: Sequence[Patch], size: tuple[int, int]) -> Iterator[tuple[_Runs, _Bounds]]:
    """Run lengths, some masks at a time.

    An edge is a pixel that differs from the one before it in the walk. Edges are found by comparing rows, which are
    contiguous, and then sorted into columns: there are so few of them that this is cheaper than to turn the pixels.
    """
    first = used = waiting = 0  # the first mask not yet given; pixels looked at for it and the next; edges found
    found: list[NDArray[np.intp]] = []
    starts: list[int] = []
    for part in _parts([patch.bits.size for patch in patches], PIXELS_AT_ONCE):
        canvas = _draw_edges(patches[part], size, used, starts)
        edges = _true_places(canvas)
        edges += used
        found.append(edges)
        used += canvas.size
        waiting += edges.size
        if waiting >= RUNS_AT_ONCE or part.stop == len(patches):
            yield _edges_to_runs(np.concatenate(found), starts, patches[first : part.stop], size)
            first, used, waiting = part.stop, 0, 0
            found, starts = [], []


def _draw_edges(patches: Sequence[Patch], size: tuple[int, int], used: int, starts: list[int]) -> NDArray[np.bool_]:
    """Edges of all patches, one after the other, each with a row more than the patch: all is zero below it.

    Args:
        used: where the first patch begins.
        starts: gets the beginning of every patch.

    Returns:
        A flat canvas of whole bytes of bits.
    """
    height, width = size
    pixels = sum([patch.bits.size + patch.bits.shape[1] for patch in patches])
    canvas = np.empty(pixels - pixels % -16, np.bool_)
    start = 0
    for patch in patches:
        starts.append(used + start)
        h, w = patch.bits.shape
        if not h or not w:
            continue
        bits = patch.bits.ravel()  # flat pieces are quicker to take than rows
        last = start + h * w  # the first edge below the patch
        canvas[start : start + w] = bits[:w]
        np.not_equal(bits[w:], bits[:-w], out=canvas[start + w : last])
        canvas[last : last + w] = bits[-w:]
        if h == height:  # below a column is the top of the next
            canvas[start + 1 : start + w] ^= canvas[last : last + w - 1]
            canvas[last : last + w - 1] = False
        start = last + w
        if patch.y + h == height and patch.x + w == width:  # below the last column the walk is over
            canvas[start - 1] = False
    canvas[start:] = False
    return canvas


def _true_places(canvas: NDArray[np.bool_]) -> NDArray[np.intp]:
    """`np.flatnonzero`, quicker where true places are few but lie together: 16 of them are looked at as one number.

    Args:
        canvas: a multiple of 16 places.
    """
    groups = np.packbits(canvas, bitorder="little").view(np.uint16)
    hit = np.flatnonzero(groups != 0)
    places = np.flatnonzero(np.unpackbits(groups[hit].view(np.uint8), bitorder="little").view(np.bool_))
    skipped = (hit - np.arange(len(hit))) * 16  # places before each group that were left out
    places += skipped[places >> 4]
    return places


def _edges_to_runs(
    edges: NDArray[np.intp], starts: Sequence[int], patches: Sequence[Patch], size: tuple[int, int]
) -> tuple[_Runs, _Bounds]:
    """From edges on a canvas, where patch i begins at starts[i], to runs.

    All frames make one long walk. An edge in row r of its patch, at place p of the canvas, comes at
    p * height + r * (1 - width * height) in it, but for a constant of the patch. In floats, all of it exact: the whole
    numbers stay below 2**53, and the middle of a pixel is far from the next row.
    """
    height, width = size
    begins = np.array(starts)
    widths = np.array([patch.bits.shape[1] or 1 for patch in patches])
    corners = np.array([patch.x * height + patch.y for patch in patches])
    frames = np.arange(len(patches) + 1) * (height * width)
    times = np.diff(np.searchsorted(edges, begins), append=len(edges))  # edges of each patch

    places = edges * np.repeat(1 / widths, times)
    places += np.repeat((0.5 - begins) / widths, times)
    np.floor(places, out=places)  # the row
    places *= np.repeat(1.0 - widths * height, times)
    places += np.repeat((frames[:-1] + corners - begins * height).astype(np.float64), times)
    places += edges * height

    walk = np.empty(len(frames) + len(places), np.int32 if frames[-1] < 2**31 else np.int64)
    walk[: len(frames)] = frames
    walk[len(frames) :] = places
    walk.sort()
    return np.diff(walk), np.cumsum([0, *(times + 1)])


def _strings(runs: _Runs, bounds: _Bounds) -> list[str]:
    numbers = _runs_to_numbers(runs, bounds)
    magnitudes = np.maximum(numbers, ~numbers)  # n, or -n - 1 when it is negative: k groups hold it below 2**(5k - 1)
    largest = magnitudes.max()
    lengths = np.ones(len(numbers), np.uint8)
    limit = 16
    while largest >= limit:
        lengths += (magnitudes >= limit).view(np.uint8)
        limit <<= 5

    stops = np.cumsum(lengths, dtype=np.intp)
    places = stops - lengths
    characters = np.empty(stops[-1], np.uint8)
    while len(numbers):  # one turn writes one group of every number that still has one
        unfinished = lengths > 1
        groups = numbers.astype(np.uint8) & 31
        groups += 48
        groups += unfinished.view(np.uint8) << 5
        characters[places] = groups
        rest = np.flatnonzero(unfinished)
        numbers, places, lengths = numbers[rest] >> 5, places[rest] + 1, lengths[rest] - 1

    text = characters.tobytes().decode("ascii")
    return [text[start:stop] for start, stop in pairwise([0, *stops[bounds[1:] - 1].tolist()])]


def _runs_to_numbers(runs: _Runs, bounds: _Bounds) -> _Runs:
    """Take from each run, from the fourth of its mask on, the run two before it."""
    numbers = runs.copy()
    numbers[2:] -= runs[:-2]
    heads = bounds[:-1, None] + np.arange(3)  # (N, 3): the first three runs of each mask stay as they are
    heads = heads[heads < bounds[1:, None]]
    numbers[heads] = runs[heads]
    return numbers
