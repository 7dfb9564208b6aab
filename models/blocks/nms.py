"""Greedy non-maximum suppression: of boxes that overlap, the best one stays.

The answer marks boxes and moves none, so its shape does not depend on what they are:

    kept = nms_keep(boxes, scores, iou=0.5, threshold=0.05)     (G, N), 1 where a box stays
    scores = torch.where(kept > 0, scores, -1.0)

Groups do not see each other: the levels of a pyramid, the classes of a picture, the pictures of a batch. In an exported
graph it is `NonMaxSuppression`, whose indices `ScatterND` turns into marks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset20
from torch import Tensor

Nms = Callable[[Tensor, Tensor, float, float], Tensor]  # boxes, scores, iou, threshold, as `nms_keep` has them

op: Any = opset20  # its annotations know single types only


@torch.library.custom_op("maskserve::nms_keep", mutates_args=())
def nms_keep(boxes: Tensor, scores: Tensor, iou: float, threshold: float) -> Tensor:
    """Which boxes stay: best score first, equal scores in the order given.

    Args:
        boxes: (G, N, 4) float, two opposite corners; one without an area neither suppresses nor is suppressed.
        scores: (G, N) float.
        iou: a box that overlaps a better one by more than this goes; intersection over union, 0 to 1.
        threshold: a box that scores no more than this goes, and suppresses none.

    Returns:
        (G, N) of the scores' dtype, 1 or 0.
    """
    kept = torch.zeros_like(scores)
    low = torch.minimum(boxes[..., :2], boxes[..., 2:])  # (G, N, 2)
    high = torch.maximum(boxes[..., :2], boxes[..., 2:])  # (G, N, 2)
    areas = (high - low).prod(dim=-1)  # (G, N)
    for group in range(scores.shape[0]):
        (candidates,) = torch.nonzero(scores[group] > threshold, as_tuple=True)
        order = candidates[scores[group, candidates].argsort(descending=True, stable=True)]  # (n,) best first
        while order.numel():
            best, others = order[0], order[1:]
            kept[group, best] = 1.0
            corner = torch.maximum(low[group, best], low[group, others])  # (n - 1, 2)
            shared = (torch.minimum(high[group, best], high[group, others]) - corner).clamp(min=0.0).prod(dim=-1)
            union = areas[group, best] + areas[group, others] - shared  # (n - 1,)
            order = others[~(shared / union > iou)]  # 0 / 0 is no overlap
    return kept


@nms_keep.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, threshold: float) -> Tensor:
    return torch.empty_like(scores)


def nms_keep_to_onnx(boxes: Any, scores: Any, iou: float, threshold: float) -> Any:
    """Every group is a batch row with one class, and no limit to how many stay."""
    alone = op.Unsqueeze(scores, op.Constant(value_ints=[1]))  # (G, 1, N)
    limit = op.Shape(scores, start=1, end=2)  # (1,) N
    chosen = op.NonMaxSuppression(
        boxes, alone, limit, op.Constant(value_floats=[iou]), op.Constant(value_floats=[threshold])
    )  # (M, 3) group, 0, box
    ones = op.Expand(op.Constant(value_floats=[1.0]), op.Shape(chosen, start=0, end=1))  # (M,)
    marks = op.ScatterND(op.ConstantOfShape(op.Shape(alone)), chosen, ones)  # (G, 1, N)
    return op.Squeeze(marks, op.Constant(value_ints=[1]))
