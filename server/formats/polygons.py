"""`masks=polygons`: outlines along the edges of the pixels, holes and separate parts kept; the mask comes back exactly.

Coordinates count pixel edges, as boxes do: column 3 reaches from x = 3 to x = 4. A ring of eight pixels:

    . . . . .
    . # # # .       exterior    (1, 1) (4, 1) (4, 4) (1, 4)     clockwise as one sees it
    . # . # .       hole        (2, 2) (2, 3) (3, 3) (3, 2)     the other way round
    . # # # .

A part is what hangs together by the sides of its pixels. Pixels that touch at a corner only are two parts, holes that
touch at a corner are two holes: no outline meets itself, and geometry libraries take every polygon as valid.

OpenCV walks from pixel centre to pixel centre, on one side of the edge that is wanted. In a mask of twice the size each
side of the edge x has pixels of its own, 2x - 1 and 2x, and (p + 1) // 2 takes both to x. OpenCV also lets a part go on
across a corner. So it is shown what lies outside the mask, where that is right, and finds the mask as holes in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypedDict

import cv2
import numpy as np
from numpy.typing import NDArray

from server.formats.instance import describe
from server.manifest import ClassName
from server.segments import Patch, Segment

Ring = list[list[int]]  # [x, y] of each corner; the last is joined to the first, which is not repeated


class Polygon(TypedDict):
    """One part of a mask."""

    exterior: Ring
    holes: list[Ring]


def render(segments: Sequence[Segment], size: tuple[int, int], classes: Sequence[ClassName]) -> dict[str, Any]:
    instances = [
        describe(segment, classes) | {"segmentation": patch_to_polygons(segment.patch)} for segment in segments
    ]
    return {"instances": instances}


def patch_to_polygons(patch: Patch) -> list[Polygon]:
    """The outlines of a mask, one polygon for each part; none when the mask is empty.

    A pixel is in the mask when its centre is inside an exterior and in none of that polygon's holes. Lines are upright
    or level in turn, so every point is a corner. Two rings have at most single points in common.
    """
    if not patch.bits.size:
        return []
    outside = cv2.copyMakeBorder((~patch.bits).view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    doubled = cv2.resize(outside, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)

    corners, bounds = _contours_to_corners(contours)
    meeting = _meet_themselves(corners, bounds)
    points = (corners + np.array([patch.x - 1, patch.y - 1])).tolist()  # less the border
    polygons: dict[int, Polygon] = {}  # by the number of the contour around the part
    for number, (parent, (start, stop)) in enumerate(zip(hierarchy[0, :, 3].tolist(), pairwise(bounds), strict=True)):
        if parent < 0:  # the border itself
            continue
        ring = points[start:stop]
        around = _clockwise(ring)  # a part; otherwise a hole in the part that is the contour's parent
        polygon = polygons.setdefault(number if around else parent, {"exterior": [], "holes": []})
        for loop in _loops(ring) if number in meeting else [ring]:
            if _clockwise(loop):
                polygon["exterior"] = loop
            else:
                polygon["holes"].append(loop)
    return list(polygons.values())


def _contours_to_corners(contours: Sequence[NDArray[Any]]) -> tuple[NDArray[np.int64], list[int]]:
    """Corners of all contours, (N, 2) xy in pixel edges; those of contour i are rows bounds[i] to bounds[i + 1].

    Two points that stand before and after one corner become the same, and one of them goes.
    """
    bounds = np.cumsum([0, *map(len, contours)])
    points = (np.concatenate(contours, dtype=np.int64)[:, 0] + 1) // 2
    previous = np.roll(points, 1, axis=0)
    previous[bounds[:-1]] = points[bounds[1:] - 1]
    moved = (points != previous).any(axis=1)
    kept = np.concatenate([[0], np.cumsum(moved)])
    return points[moved], kept[bounds].tolist()


def _meet_themselves(corners: NDArray[np.int64], bounds: Sequence[int]) -> set[int]:
    """Numbers of the contours that come to a corner twice."""
    numbers = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    width, height = corners.max(axis=0) + 1
    keys = np.sort((numbers * height + corners[:, 1]) * width + corners[:, 0])
    return set((keys[1:][keys[1:] == keys[:-1]] // (width * height)).tolist())


def _loops(ring: Ring) -> Iterator[Ring]:
    """Cut a ring wherever it meets itself: around a part that closes on a corner, or along holes that touch."""
    path: Ring = []
    places: dict[tuple[int, int], int] = {}
    for x, y in ring:
        if (x, y) in places:
            start = places[x, y]
            loop = path[start:]
            yield loop
            del path[start:]
            for corner in loop:
                del places[corner[0], corner[1]]
        places[x, y] = len(path)
        path.append([x, y])
    yield path


def _clockwise(ring: Ring) -> bool:
    """Whether the inside is on the right hand of who walks along, as one sees it (y grows downwards)."""
    top_left = ring.index(min(ring))
    return ring[top_left - 1][0] == ring[top_left][0]  # comes up along the left side, and turns right
