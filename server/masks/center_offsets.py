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

from collections.abc import Iterator
from dataclasses import dataclass
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
        for item in _objects(votes, labels, self.spread):
            if item.score >= min_score:
                patch = _to_original(inside, item, frame, self.threshold)
                if np.count_nonzero(patch.bits) >= self.min_area:
                    yield Segment(label=0, score=item.score, box=patch_to_box(patch), patch=patch)

    def _nearest_centre(self, votes: _Votes, size: tuple[int, int]) -> NDArray[np.int32] | None:
        """For every voting pixel the number of the centre nearest to its vote; None when there is no centre."""
        flat = votes.to_y[votes.strong] * size[1] + votes.to_x[votes.strong]
        counts = np.bincount(flat, minlength=size[0] * size[1]).reshape(size).astype(np.float32)
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
        return np.asarray(nearest[votes.to_y, votes.to_x], np.int32)


@dataclass(frozen=True, slots=True)
class _Votes:
    """The M pixels that may belong to an object, and where each points. All (M,)."""

    y: NDArray[np.intp]
    x: NDArray[np.intp]
    to_y: NDArray[np.intp]
    to_x: NDArray[np.intp]
    probability: NDArray[np.float32]
    strong: NDArray[np.bool_]  # above the threshold: these vote, the faint ones only belong


@dataclass(frozen=True, slots=True)
class _Object:
    """One centre's pixels, in the network's input."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    score: float


def _vote(inside: NDArray[np.float32], offsets: NDArray[np.float32], threshold: float) -> _Votes:
    height, width = inside.shape
    y, x = np.nonzero(inside > threshold * FAINT)
    probability = inside[y, x]
    to_y = np.clip(np.rint(y + offsets[0, y, x]), 0, height - 1).astype(np.intp)
    to_x = np.clip(np.rint(x + offsets[1, y, x]), 0, width - 1).astype(np.intp)
    return _Votes(y, x, to_y, to_x, probability, probability > threshold)


def _objects(votes: _Votes, labels: NDArray[np.int32], spread: float) -> Iterator[_Object]:
    """Pixels by centre, with a score: mean probability, less where the pixels disagree about the centre.

    With s the standard deviation of the votes over the radius of a disc of the same area, the factor is
    1 / (1 + (s / spread)^2).
    """
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    for pixels in np.split(order, starts[1:]):
        strong = pixels[votes.strong[pixels]]
        if not strong.size:
            continue
        variance = float(votes.to_y[strong].var() + votes.to_x[strong].var())
        relative = variance * np.pi / strong.size  # (s / radius)^2
        agreement = 1.0 / (1.0 + relative / spread**2)
        score = float(votes.probability[strong].mean()) * agreement
        yield _Object(votes.y[pixels], votes.x[pixels], score)


def _to_original(inside: NDArray[np.float32], item: _Object, frame: Frame, threshold: float) -> Patch:
    """One object's mask in original pixels: probability interpolated, assignment from the nearest pixel."""
    top, left = max(0, int(item.rows.min()) - 1), max(0, int(item.columns.min()) - 1)
    bottom = min(inside.shape[0], int(item.rows.max()) + 2)
    right = min(inside.shape[1], int(item.columns.max()) + 2)
    probability = inside[top:bottom, left:right]
    mine = np.zeros(probability.shape, bool)
    mine[item.rows - top, item.columns - left] = True
    if frame.content == frame.size:
        return Patch(top, left, mine & (probability > threshold))
    vertical, horizontal = frame.scale
    y1, x1 = int(top / vertical), int(left / horizontal)
    y2 = min(frame.size[0], int(np.ceil(bottom / vertical)))
    x2 = min(frame.size[1], int(np.ceil(right / horizontal)))
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
    rows = ((np.arange(y1, y2) + 0.5) * vertical).astype(np.intp).clip(top, bottom - 1) - top
    columns = ((np.arange(x1, x2) + 0.5) * horizontal).astype(np.intp).clip(left, right - 1) - left
    return Patch(y1, x1, mine[np.ix_(rows, columns)] & (smooth > threshold))
