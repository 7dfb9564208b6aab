"""Every pixel points at the centre of its object, and the votes of many pixels make an object.

The idea of regressing centres is Kendall et al. 2018 (https://arxiv.org/abs/1705.07115), grouping by the nearest centre
is Panoptic-DeepLab's (Cheng et al. 2020, https://arxiv.org/abs/1911.10194); counted votes replace its heat map.

Two tensors: `inside`, the probability that a pixel belongs to any object, and `offsets` (dy, dx) from a pixel to its
object's centre. Touching objects part because their pixels point different ways:

    pixels     . a a a b b b .
    offsets    . + 0 - + 0 - .
    votes      . . 3 . . 3 . .       two peaks, two objects
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from server.geometry import Frame
from server.masks.base import Masks, Outputs
from server.segments import Patch, Segment, patch_to_box

FAINT = 0.5  # pixels down to this share of the threshold are assigned too, for the interpolation at an object's rim


class CenterOffsetMasks(Masks):
    """Objects of one class, found by votes. Lengths and areas are in pixels of the network's input."""

    kind: Literal["center_offsets"] = "center_offsets"
    threshold: float = Field(0.5, gt=0.0, lt=1.0, description="probability above which a pixel is part of an object")
    blur: float = Field(2.5, gt=0.0, description="standard deviation of the blur that gathers votes")
    apart: int = Field(11, ge=3, description="odd; of two centres closer than half of this only the stronger counts")
    min_votes: float = Field(16.0, ge=1.0, description="votes that a centre needs under its blur")
    min_area: int = Field(1, ge=1, description="in pixels of the original: smaller objects are noise")
    spread: float = Field(
        0.25, gt=0.0, description="spread of the votes over the object's radius at which its score is halved"
    )

    legend: ClassVar[dict[str, str]] = {"inside": "h w", "offsets": "2 h w"}

    def decode(self, outputs: Outputs, frame: Frame, min_score: float) -> Iterator[Segment]:
        height, width = frame.content
        inside = outputs["inside"][:height, :width]
        votes = _vote(inside, outputs["offsets"][:, :height, :width], self.threshold)
        labels = self._nearest_centre(votes, (height, width))
        if labels is None:
            return
        objects = _group(votes, labels, self.spread)
        owners = np.zeros((height, width), np.int32)
        owners.reshape(-1)[votes.pixels] = labels
        places = None if frame.content == frame.size else _nearest(frame)
        (kept,) = np.nonzero((objects.scores >= min_score) & objects.found)
        for label, score, bounds in zip(
            kept.tolist(), objects.scores[kept].tolist(), objects.bounds[kept].tolist(), strict=True
        ):
            patch = _to_original(inside, owners, label, bounds, frame, places, self.threshold)
            if np.count_nonzero(patch.bits) >= self.min_area:
                yield Segment(label=0, score=score, box=patch_to_box(patch), patch=patch)

    def _nearest_centre(self, votes: _Votes, size: tuple[int, int]) -> NDArray[np.int32] | None:
        """For every voting pixel the number of the centre nearest to its vote, from 1; None when there is no centre."""
        counts = np.bincount(votes.targets[votes.strong], minlength=size[0] * size[1]).reshape(size).astype(np.float32)
        blurred = cv2.GaussianBlur(counts, (0, 0), self.blur)
        enough = self.min_votes / (
            2 * np.pi * self.blur**2
        )  # height of the blurred peak of min_votes votes at one place
        window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (self.apart, self.apart))
        centres = ((blurred >= cv2.dilate(blurred, window)) & (blurred >= enough)).astype(np.uint8)
        if not centres.any():
            return None
        _, nearest = cv2.distanceTransformWithLabels(
            1 - centres, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_CCOMP
        )
        return np.asarray(nearest.reshape(-1)[votes.targets], np.int32)


@dataclass(frozen=True, slots=True)
class _Votes:
    """The M pixels that may belong to an object, in reading order, and where each points. All (M,)."""

    pixels: NDArray[np.intp]  # y * width + x
    targets: NDArray[np.intp]  # the same of the place that a pixel votes for
    probability: NDArray[np.float32]
    strong: NDArray[np.bool_]  # above the threshold: these vote, the faint ones only belong
    width: int


@dataclass(frozen=True, slots=True)
class _Objects:
    """What is known of every centre, by its number; 0 is none. All (centres + 1, ...)."""

    found: NDArray[np.bool_]  # whether any pixel is above the threshold
    scores: NDArray[np.float64]
    bounds: NDArray[np.intp]  # y1, x1, y2, x2 around its pixels in the network's input, the last two exclusive


def _vote(inside: NDArray[np.float32], offsets: NDArray[np.float32], threshold: float) -> _Votes:
    height, width = inside.shape
    inside, vertical, horizontal = (np.ascontiguousarray(plane).reshape(-1) for plane in (inside, *offsets))
    pixels = np.flatnonzero(inside > threshold * FAINT)
    targets = _nearest_place(pixels // width, vertical[pixels], height)
    targets *= width
    targets += _nearest_place(pixels % width, horizontal[pixels], width)
    probability = inside[pixels]
    return _Votes(pixels, targets, probability, probability > threshold, width)


def _nearest_place(places: NDArray[np.intp], offsets: NDArray[np.float32], length: int) -> NDArray[np.intp]:
    """Where offsets along one axis lead, inside its length. Written over as it goes: these are the largest arrays."""
    to = places + offsets  # float64
    np.rint(to, out=to)
    np.clip(to, 0, length - 1, out=to)
    return to.astype(np.intp)


def _group(votes: _Votes, labels: NDArray[np.int32], spread: float) -> _Objects:
    """Score of each centre: mean probability of its pixels, less where they disagree about the centre.

    With s the standard deviation of the votes over the radius of a disc of the same area, the factor is
    1 / (1 + (s / spread)^2).
    """
    total = int(labels.max(initial=0)) + 1
    voting = labels[votes.strong]
    areas = np.bincount(voting, minlength=total)
    some = np.maximum(areas, 1)
    to_y = votes.targets[votes.strong]
    to_x = to_y % votes.width
    to_y //= votes.width
    variance = -((np.bincount(voting, to_y, total) / some) ** 2) - (np.bincount(voting, to_x, total) / some) ** 2
    to_y *= to_y
    to_x *= to_x
    to_y += to_x
    variance += np.bincount(voting, to_y, total) / some  # whole numbers: their sums are exact
    relative = variance * np.pi / some  # (s / radius)^2
    probability = np.bincount(voting, votes.probability[votes.strong], total) / some
    return _Objects(areas > 0, probability / (1.0 + relative / spread**2), _bounds(votes, labels, total))


def _bounds(votes: _Votes, labels: NDArray[np.int32], total: int) -> NDArray[np.intp]:
    """y1, x1, y2, x2 around the pixels of each label below `total`; zeros for a label without any."""
    bounds = np.zeros((total, 4), np.intp)
    order = np.argsort(labels.astype(np.uint16) if total <= 2**16 else labels, kind="stable")  # 16 bits sort quicker
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    if not len(starts):
        return bounds
    pixels = votes.pixels[order]  # of each label in reading order still
    lasts = np.append(starts[1:], len(order)) - 1
    each = labels[order[starts]]
    bounds[each, 0] = pixels[starts] // votes.width
    bounds[each, 2] = pixels[lasts] // votes.width + 1
    pixels %= votes.width
    bounds[each, 1] = np.minimum.reduceat(pixels, starts)
    bounds[each, 3] = np.maximum.reduceat(pixels, starts) + 1
    return bounds


def _nearest(frame: Frame) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The row and the column of the input from which each one of the original takes its owner."""
    rows, columns = (
        ((np.arange(length) + 0.5) * scale).astype(np.intp).clip(0, content - 1)
        for length, scale, content in zip(frame.size, frame.scale, frame.content, strict=True)
    )
    return rows, columns


def _to_original(
    inside: NDArray[np.float32],
    owners: NDArray[np.int32],
    label: int,
    bounds: Sequence[int],
    frame: Frame,
    places: tuple[NDArray[np.intp], NDArray[np.intp]] | None,
    threshold: float,
) -> Patch:
    """One object's mask in original pixels: probability interpolated, assignment from the nearest pixel.

    Args:
        owners: (h, w), the label of every pixel of the input.
        bounds: around the object in the input.
        places: as of `_nearest`; None where the input is the original.
    """
    top, left = max(0, bounds[0] - 1), max(0, bounds[1] - 1)
    bottom, right = min(inside.shape[0], bounds[2] + 1), min(inside.shape[1], bounds[3] + 1)
    probability = inside[top:bottom, left:right]
    if places is None:
        return Patch(top, left, (owners[top:bottom, left:right] == label) & (probability > threshold))
    vertical, horizontal = frame.scale
    y1, x1 = int(top / vertical), int(left / horizontal)
    y2 = min(frame.size[0], ceil(bottom / vertical))
    x2 = min(frame.size[1], ceil(right / horizontal))
    # the centre of original pixel (y, x) lies at ((y + 0.5) * scale - 0.5) of the input
    step = np.array(
        [
            [horizontal, 0.0, (x1 + 0.5) * horizontal - 0.5 - left],
            [0.0, vertical, (y1 + 0.5) * vertical - 0.5 - top],
        ]
    )
    smooth = cv2.warpAffine(
        probability,
        step,
        (x2 - x1, y2 - y1),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    # which input pixel an original pixel takes its owner from is the same for every object: no pixel has two
    mine = owners[places[0][y1:y2, None], places[1][x1:x2]] == label
    return Patch(y1, x1, mine & (smooth > threshold))
