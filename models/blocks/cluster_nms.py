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
        count = boxes.shape[1]
        low = torch.minimum(boxes[..., :2], boxes[..., 2:])  # (G, N, 2)
        high = torch.maximum(boxes[..., :2], boxes[..., 2:])  # (G, N, 2)
        kept = valid[:, :0]  # (G, 0)
        for start in range(0, count, self.tile):
            end = min(start + self.tile, count)
            there = valid[:, start:end]  # (G, n)
            if start:
                over = _overlap(low, high, labels, (0, start), (start, end), iou)  # (G, start, n)
                there = _untouched(kept, over, there)  # (G, n)
            over = _overlap(low, high, labels, (start, end), (start, end), iou).triu(1)  # (G, n, n) better, worse
            guess = before = there
            for _ in range(self.rounds):
                before, guess = guess, _untouched(guess, over, there)
            self.watch.unsettled((guess != before).sum())
            kept = torch.cat([kept, guess], dim=1)  # (G, end)
        return kept


def _untouched(better: Tensor, over: Tensor, there: Tensor) -> Tensor:
    """(G, n) marks and (G, n, m) overlaps to (G, m): 1 for a box that is `there` and that no marked one overlaps.

    Sums of ones are whole numbers, so no order of adding can matter.
    """
    return (torch.bmm(better[:, None], over)[:, 0] < 0.5 * there).to(better.dtype)


def _overlap(
    low: Tensor, high: Tensor, labels: Tensor | None, rows: tuple[int, int], columns: tuple[int, int], iou: float
) -> Tensor:
    """(G, n, m): 1 where the box of the row and the box of the column overlap by more than `iou`."""
    first, second = slice(*rows), slice(*columns)
    sides = []
    for axis in (0, 1):
        start = torch.maximum(low[:, first, None, axis], low[:, None, second, axis])  # (G, n, m)
        end = torch.minimum(high[:, first, None, axis], high[:, None, second, axis])  # (G, n, m)
        sides.append((end - start).clamp(min=0.0))
    areas = (high - low).prod(dim=-1)  # (G, N)
    shared = sides[0] * sides[1]  # (G, n, m)
    union = areas[:, first, None] + areas[:, None, second] - shared  # (G, n, m)
    over = (shared / union.clamp(min=POINT)) > iou
    if labels is not None:
        over = over & (labels[:, first, None] == labels[:, None, second])
    return over.to(low.dtype)
