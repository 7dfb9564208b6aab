"""From the class scores and boxes of all proposals to the fixed number of rows that a picture is answered with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.blocks.boxes import BoxCoder, clip, sides_reach, stretch
from models.blocks.class_nms import NO_DETECTION, ClassNms, best_of_classes
from models.blocks.top import pick


@dataclass(frozen=True, slots=True)
class DetectionSpec:
    """
    Args:
        classes: without the background.
        first_class: column of the first class among the scores: 1 where the background comes first, 0 where it is last.
        sets: of offsets that count, the last of those told: one for every class, or a single one.
        score_threshold: a row scores more than this.
        iou: two boxes of a class that overlap more are one.
        shortest_side: pixels; a box with a shorter one is dropped before overlaps are looked for.
        shortest_answer: and among those that would be answered.
        rows: at most so many are answered.
        nms: what chooses them, from the boxes and scores of all classes.
    """

    classes: int
    first_class: int
    sets: int
    coder: BoxCoder
    score_threshold: float
    iou: float
    shortest_side: float
    shortest_answer: float
    rows: int
    nms: ClassNms = best_of_classes  # or `BestPairs`


def detections(
    probabilities: Tensor, deltas: Tensor, proposals: Tensor, used: Tensor, sizes: Tensor, spec: DetectionSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """The best rows of every picture, where boxes of the same class do not overlap much.

    Args:
        probabilities: (B, P, columns) of the classes and the background.
        deltas: (B, P, 4 * sets), one set for every class (and perhaps the background before them) or one for all.
        proposals: (B, P, 4) xyxy, input pixels.
        used: (B, P) bool, which proposals there are.
        sizes: (B, 2) true (height, width) of each picture.

    Returns:
        Boxes (B, K, 4) xyxy in input pixels, scores (B, K) best first and labels (B, K) int32 from 0; unused rows have
        the score `NO_DETECTION` and are zero otherwise.
    """
    count = probabilities.shape[1]
    scores = probabilities[:, :, spec.first_class : spec.first_class + spec.classes]  # (B, P, C)
    moves = deltas.unflatten(2, (-1, 4))[:, :, -spec.sets :]  # (B, P, C or 1, 4)
    boxes = clip(spec.coder.decode(moves, proposals[:, :, None]), sizes[:, None, None], spec.coder.extent)
    boxes = boxes.expand(-1, -1, spec.classes, -1).transpose(1, 2)  # (B, C, P, 4)
    fit = sides_reach(boxes, spec.shortest_side) & used[:, None]  # (B, C, P)
    scores = torch.where(fit, scores.transpose(1, 2), NO_DETECTION)  # (B, C, P)
    scores, indices = spec.nms(
        stretch(boxes, spec.coder.extent), scores, spec.iou, spec.score_threshold, spec.rows
    )  # (B, K)
    boxes, labels = pick(boxes.flatten(1, 2), indices), indices // count  # (B, K, 4), (B, K)
    scores, order = torch.where(sides_reach(boxes, spec.shortest_answer), scores, NO_DETECTION).topk(spec.rows)
    answered = scores > 0  # (B, K)
    boxes = torch.where(answered[..., None], pick(boxes, order), 0.0)
    labels = torch.where(answered, labels.gather(1, order), 0).to(torch.int32)
    return boxes, scores, labels
