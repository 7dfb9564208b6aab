"""How far a lowered network's answers lie from the fp32 network's, as one number.

0 is equal, 1 is nothing in common, infinite is an overflow. Planes: the error's root mean square over the deviation of
what was wanted. Candidates: every wanted row is worth its score, and loses what its best partner of the same label
lacks in overlap, score or mask; a row without a partner loses all, whichever side it stands on.

    wanted   cell 0.9 at (0, 0, 10, 10)       found   cell 0.9 at (0, 0, 10, 9)       0.1: a tenth of the overlap
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME_OBJECT = 0.5  # intersection over union from which two boxes mean one object
ROW_MEANING = ("boxes", "scores", "labels")

Answer = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]


def distance(found: Sequence[Answer], wanted: Sequence[Answer], legend: Mapping[str, str]) -> float:
    """
    Args:
        found, wanted: answers to the same batches, each output (B, ...).
        legend: of the mask representation.

    Returns:
        The mean over pictures; infinite where a number is not finite.
    """
    costs = [
        _of_picture(
            {name: found_batch[name][i] for name in wanted_batch},
            {name: tensor[i] for name, tensor in wanted_batch.items()},
            legend,
        )
        for found_batch, wanted_batch in zip(found, wanted, strict=True)
        for i in range(len(next(iter(wanted_batch.values()))))
    ]
    return float(np.mean(costs))


def _of_picture(found: Answer, wanted: Answer, legend: Mapping[str, str]) -> float:
    if not all(np.isfinite(tensor).all() for tensor in found.values()):
        return np.inf
    candidates = set(ROW_MEANING) <= set(wanted)
    rows = {name for name in wanted if candidates and legend[name].split()[0] == legend["scores"]}
    costs = [_of_plane(found[name], wanted[name]) for name in wanted if name not in rows]
    if candidates:
        costs.append(_of_rows({n: found[n] for n in rows}, {n: wanted[n] for n in rows}))
    return max(costs)


def _of_plane(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Root mean square error over the deviation, at most 1."""
    error = np.sqrt(np.mean((found.astype(np.float64) - wanted) ** 2))
    spread = np.std(wanted.astype(np.float64))
    return float(min(1.0, error / spread)) if spread > 0 else float(error > 0)


def _of_rows(found: Answer, wanted: Answer) -> float:
    used, other = np.flatnonzero(wanted["scores"] > 0), np.flatnonzero(found["scores"] > 0)
    scores, others = (side["scores"][rows].astype(np.float64) for side, rows in ((wanted, used), (found, other)))
    if not len(used) and not len(other):
        return 0.0
    overlap = _overlaps(wanted["boxes"][used], found["boxes"][other])  # (W, F)
    overlap = np.where(wanted["labels"][used][:, None] == found["labels"][other], overlap, 0.0)
    partner = _partners(overlap, np.abs(scores[:, None] - others))
    lost = scores.sum() + others.sum()
    whole = lost
    for i, j in enumerate(partner):
        if j < 0:
            continue
        lacking = max(1 - overlap[i, j], abs(scores[i] - others[j]), _row_error(found, wanted, other[j], used[i]))
        lost -= (scores[i] + others[j]) * (1 - min(1.0, lacking))
    return float(lost / whole)


def _partners(overlap: Floats, apart: Floats) -> list[int]:
    """For every wanted row the found one that is most like it, each taken once; -1 for none. The surest go first.

    Args:
        overlap, apart: (W, F) of boxes, and between scores.
    """
    partner = [-1] * overlap.shape[0]
    left = np.where(overlap >= SAME_OBJECT, overlap - apart, -np.inf)
    while left.size and np.isfinite(left.max()):
        i, j = np.unravel_index(int(left.argmax()), left.shape)
        partner[int(i)] = int(j)
        left[i, :], left[:, j] = -np.inf, -np.inf
    return partner


def _row_error(found: Answer, wanted: Answer, here: int, there: int) -> float:
    """What two rows of one object differ by besides box, score and label."""
    errors = [0.0]
    for name in set(wanted) - set(ROW_MEANING):
        if name == "mask_logits":
            masks = (_probabilities(found[name][here]), _probabilities(wanted[name][there]))
            errors.append(float(np.abs(masks[0] - masks[1]).mean()))
        else:
            errors.append(_of_plane(found[name][here], wanted[name][there]))
    return max(errors)


def _probabilities(logits: NDArray[Any]) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -60, 60))), np.float64)


def _overlaps(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Intersection over union of boxes (W, 4) and (F, 4) xyxy: (W, F)."""
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    shared = sides[..., 0] * sides[..., 1]
    areas = [(box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.asarray(np.where(union > 0, shared / np.where(union > 0, union, 1), 0.0), np.float64)
