"""When two answers are the same: raw tensors by tolerance, detections as sets, masks by what they cover.

Rows of detections have no stable order: noise of 1e-6 in the weights swaps two scores that are nearly equal. So a row
is looked for by its label and box, and only then are scores and masks compared.

    matched = match(wanted, found)
    matched.share          1.0 where every detection has its partner and none is left over
    matched.score_error    largest difference of two partners' scores
    agree(wanted.masks, found.masks, matched.pairs)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BOX_IOU = 0.99
POINT = 1e-2  # pixels: boxes without area are the same when their sides lie this close
SCORE = 1e-3
MASK_IOU, MASK_IOU_MEAN, FLIPPED = 0.95, 0.99, 4
RELATIVE = 1e-3
ABSOLUTE_BEFORE_ROI, ABSOLUTE_AFTER_ROI = 2e-4, 1e-3  # times the standard deviation of the reference's tensor


@dataclass(frozen=True)
class Detections:
    """What an implementation found in one picture, in original pixels, labels from 0 without background."""

    boxes: NDArray[np.float64]  # (N, 4) xyxy
    scores: NDArray[np.float64]  # (N)
    labels: NDArray[np.int64]  # (N)
    masks: NDArray[np.bool_]  # (N, H, W)


@dataclass(frozen=True)
class Matched:
    """Which detection is which."""

    pairs: list[tuple[int, int]]  # (wanted, found)
    share: float  # of the larger of both sets that has a partner
    score_error: float  # of partners
    box_iou: float  # smallest of partners


@dataclass(frozen=True)
class Agreement:
    """How well the masks of partners cover each other."""

    mean: float
    worst: float
    flipped: int  # pixels, largest of all
    bad: int  # masks below MASK_IOU of which more than FLIPPED pixels differ


@dataclass(frozen=True)
class Difference:
    """Of one raw tensor."""

    of_tolerance: float  # largest |found - wanted| as a share of what is allowed there; at most 1 is equal
    of_std: float  # the same in standard deviations of the reference


def differ(found: NDArray[np.floating], wanted: NDArray[np.floating], absolute: float) -> Difference:
    """Compare a raw tensor: |found - wanted| <= RELATIVE |wanted| + `absolute` std(wanted).

    Another shape, or a number that is not finite, is an infinite difference.
    """
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return Difference(np.inf, np.inf)
    if not wanted.size:
        return Difference(0.0, 0.0)
    reference = wanted.astype(np.float64)
    error = np.abs(found.astype(np.float64) - reference)
    std = float(reference.std()) or 1.0  # a tensor of one number has none
    allowed = RELATIVE * np.abs(reference) + absolute * std
    return Difference(float((error / allowed).max()), float(error.max()) / std)


def match(wanted: Detections, found: Detections, box_iou: float = BOX_IOU, score: float = SCORE) -> Matched:
    """Pair detections of equal label whose boxes overlap by more than `box_iou` and whose scores differ by at most
    `score`; those that overlap most go first, each has one partner."""
    ious = box_ious(wanted.boxes, found.boxes)  # (W, F)
    apart = np.abs(wanted.scores[:, None] - found.scores)  # (W, F)
    possible = (wanted.labels[:, None] == found.labels) & (ious > box_iou) & (apart <= score)
    rows, columns = np.nonzero(possible)
    pairs: list[tuple[int, int]] = []
    taken_rows, taken_columns = set(), set()
    for index in np.argsort(-ious[rows, columns], kind="stable").tolist():
        row, column = int(rows[index]), int(columns[index])
        if row not in taken_rows and column not in taken_columns:
            pairs.append((row, column))
            taken_rows.add(row)
            taken_columns.add(column)
    most = max(len(wanted.scores), len(found.scores))
    return Matched(
        pairs=sorted(pairs),
        share=len(pairs) / most if most else 1.0,
        score_error=max((float(apart[pair]) for pair in pairs), default=0.0),
        box_iou=min((float(ious[pair]) for pair in pairs), default=1.0),
    )


def agree(wanted: NDArray[np.bool_], found: NDArray[np.bool_], pairs: list[tuple[int, int]]) -> Agreement:
    """Compare the masks (N, H, W) of partners. Two empty masks agree."""
    ious, flips = [], []
    for row, column in pairs:
        one, other = wanted[row], found[column]
        together = int((one | other).sum())
        ious.append(int((one & other).sum()) / together if together else 1.0)
        flips.append(int((one ^ other).sum()))
    bad = sum(iou < MASK_IOU and flipped > FLIPPED for iou, flipped in zip(ious, flips, strict=True))
    return Agreement(
        mean=float(np.mean(ious)) if ious else 1.0,
        worst=min(ious, default=1.0),
        flipped=max(flips, default=0),
        bad=bad,
    )


def box_ious(boxes: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, M) IoU of xyxy boxes (N, 4) and (M, 4); of two boxes without area, 1 where they lie in the same place."""
    one, other = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    sides = (np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])).clip(0)
    shared = sides.prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).clip(0).prod(axis=-1) for box in (one, other)]
    union = areas[0] + areas[1] - shared
    same = (np.abs(one - other).max(axis=-1) < POINT).astype(np.float64)
    ious: NDArray[np.float64] = np.where(union > 0, shared / np.where(union > 0, union, 1), same)
    return ious
