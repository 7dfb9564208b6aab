"""The best boxes of all classes, where those of the same class do not overlap much: natively, and without plugins.

`best_of_classes` makes every class a group of `nms_keep`. Without that operator a matrix for each of 80 classes and
1000 boxes would be 320 MB for a picture, so `BestPairs` looks at the best pairs of a box and a class only, all in one
matrix where other classes do not overlap.

What is left out scores no more than any of the pairs. So it could not have ruled one of them out, and it could have
come among the `rows` best only if fewer than `rows` of them stay: where they do, or where nothing is left out, the
answer is the same. Otherwise `Watch.left_out` is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.blocks.cluster_nms import ClusterNMS
from models.blocks.nms import nms_keep
from models.blocks.top import best, pick

NO_DETECTION = -1.0  # the score of an unused row
PAIRS = 3000

ClassNms = Callable[[Tensor, Tensor, float, float, int], tuple[Tensor, Tensor]]  # as `best_of_classes`


def best_of_classes(boxes: Tensor, scores: Tensor, iou: float, threshold: float, rows: int) -> tuple[Tensor, Tensor]:
    """
    Args:
        boxes: (B, C, P, 4), two opposite corners.
        scores: (B, C, P).
        iou: of two boxes of a class that overlap more, the worse goes.
        threshold: a box scores more than this, at least 0.
        rows: at most so many.

    Returns:
        Scores (B, rows), best first, `NO_DETECTION` in unused rows, and indices (B, rows) into C * P.
    """
    kept = nms_keep(boxes.flatten(0, 1), scores.flatten(0, 1), iou, threshold).reshape(scores.shape)  # (B, C, P)
    return best(torch.where(kept > 0, scores, NO_DETECTION).flatten(1), rows, NO_DETECTION)


@dataclass(frozen=True, slots=True)
class BestPairs:
    """`best_of_classes` from operators that every runtime has.

    Args:
        pairs: of a box and a class that are looked at in a picture.
    """

    nms: ClusterNMS = field(default_factory=ClusterNMS)
    pairs: int = PAIRS

    def __call__(self, boxes: Tensor, scores: Tensor, iou: float, threshold: float, rows: int) -> tuple[Tensor, Tensor]:
        """As `best_of_classes`."""
        candidates = scores > threshold  # (B, C, P)
        told, indices = best(
            torch.where(candidates, scores, NO_DETECTION).flatten(1),
            min(self.pairs, scores.shape[1] * scores.shape[2]),
            NO_DETECTION,
        )  # (B, M)
        valid = (told > threshold).to(told.dtype)  # (B, M)
        kept = self.nms.keep(pick(boxes.flatten(1, 2), indices), valid, iou, indices // scores.shape[2])  # (B, M)
        surplus = candidates.flatten(1).sum(dim=1) - valid.sum(dim=1)  # (B,)
        self.nms.watch.left_out((surplus * (kept.sum(dim=1) < rows)).sum())
        scores, order = best(torch.where(kept > 0, told, NO_DETECTION), rows, NO_DETECTION)  # (B, rows)
        return scores, indices.gather(1, order)
