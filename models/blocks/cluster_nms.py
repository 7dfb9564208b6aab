"""Non-maximum suppression by matrices: what `nms_keep` decides, from operators that every runtime has (cluster-NMS,
Zheng et al. 2020, https://arxiv.org/abs/2005.03572).

Boxes come best first. Guess that all stay; then, again and again, let every box go that a better one of the last guess
overlaps:

    a > b > c, a overlaps b, b overlaps c         guess 1 1 1 -> 1 0 0 -> 1 0 1 -> 1 0 1, as the greedy way has it

After t rounds every box is right that hangs on fewer than t others in a row. A guess that a round leaves as it was is
the answer, for there is only one such; the last round tells (`Watch.unsettled`).

Boxes are taken a tile at a time: those that stay in the tiles before rule out first, by one product, and only chains
within a tile cost rounds. That also bounds the memory: a tile is a matrix of (G, N, tile) at most, not (G, N, N).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.blocks.watch import SILENT, Watch

ROUNDS = 16
TILE = 500
POINT = 1e-30  # square pixels: two boxes that cover less together are points, and do not overlap


@dataclass(frozen=True, slots=True)
class ClusterNMS:
    """
    Args:
        rounds: for the chains of a tile; the last must change nothing.
        tile: boxes at a time.
    """

    rounds: int = ROUNDS
    tile: int = TILE
    watch: Watch = SILENT

    def __call__(self, boxes: Tensor, scores: Tensor, iou: float, threshold: float) -> Tensor:
        """`nms_keep` for boxes in order.

        Args:
            boxes: (G, N, 4) float, two opposite corners, best score first; those that do not score more than the
                threshold may lie anywhere.
            scores: (G, N) float.
            iou: a box that overlaps a better one by more than this goes; intersection over union, 0 to 1.
            threshold: a box that scores no more than this goes, and suppresses none.

        Returns:
            (G, N) of the scores' dtype, 1 or 0.
        """
        return self.keep(boxes, (scores > threshold).to(scores.dtype), iou, None)

    def keep(self, boxes: Tensor, valid: Tensor, iou: float, labels: Tensor | None) -> Tensor:
        """
        Args:
            boxes: (G, N, 4), best first.
            valid: (G, N) 1 or 0, which of them there are.
            labels: (G, N), where only boxes with the same one see each other.

        Returns:
            (G, N) 1 or 0.
        """
        low = torch.minimum(boxes[..., :2], boxes[..., 2:])  # (G, N, 2)
        high = torch.maximum(boxes[..., :2], boxes[..., 2:])  # (G, N, 2)
        planes = [*low.unbind(-1), *high.unbind(-1), (high - low).prod(dim=-1)]  # left, top, right, bottom, area
        planes += [] if labels is None else [labels]  # (G, N) each
        marks = valid.unsqueeze(1)  # (G, 1, N)
        kept = marks[..., :0]
        for start in range(0, boxes.shape[1], self.tile):
            columns = [plane[:, start : start + self.tile].unsqueeze(1) for plane in planes]  # (G, 1, n)
            there = marks[..., start : start + self.tile]  # (G, 1, n)
            if start:
                over = _overlap([plane[:, :start].unsqueeze(2) for plane in planes], columns, iou)  # (G, start, n)
                there = _untouched(kept, over, 0.5 * there)
            over = _overlap([plane.transpose(1, 2) for plane in columns], columns, iou).triu(1)  # (G, n, n)
            guess, before, half = there, there, 0.5 * there
            for _ in range(self.rounds):
                before, guess = guess, _untouched(guess, over, half)
            self.watch.unsettled((guess != before).sum())
            kept = torch.cat([kept, guess], dim=2)  # (G, 1, end)
        return kept.squeeze(1)


def _untouched(better: Tensor, over: Tensor, half: Tensor) -> Tensor:
    """1 for a box that no marked one overlaps.

    Sums of ones are whole numbers, so no order of adding can matter.

    Args:
        better: (G, 1, n) 1 or 0.
        over: (G, n, m) 1 where a box of the row overlaps one of the column.
        half: (G, 1, m) a half for a box that there is, otherwise 0.

    Returns:
        (G, 1, m) 1 or 0.
    """
    return (torch.bmm(better, over) < half).to(better.dtype)


def _overlap(rows: Sequence[Tensor], columns: Sequence[Tensor], iou: float) -> Tensor:
    """(G, n, m): 1 where two boxes overlap by more than `iou`, and have the same label where they have one.

    Args:
        rows: left, top, right, bottom, area and perhaps label of the boxes, (G, n, 1) each.
        columns: the same of others, (G, 1, m) each.
    """
    width = torch.minimum(rows[2], columns[2]) - torch.maximum(rows[0], columns[0])  # (G, n, m)
    height = torch.minimum(rows[3], columns[3]) - torch.maximum(rows[1], columns[1])
    shared = width.clamp(min=0.0) * height.clamp(min=0.0)
    union = rows[4] + columns[4] - shared
    over = shared / union.clamp(min=POINT) > iou
    for mine, yours in zip(rows[5:], columns[5:], strict=True):
        over = over & (mine == yours)
    return over.to(shared.dtype)
