from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from models.blocks.boxes import BoxCoder
from models.blocks.class_nms import NO_DETECTION
from models.blocks.detections import DetectionSpec, detections

SPEC = DetectionSpec(
    classes=2,
    first_class=0,
    sets=2,
    coder=BoxCoder(),
    score_threshold=0.1,
    iou=0.5,
    shortest_side=0.0,
    shortest_answer=-math.inf,
    rows=4,
)
PROPOSALS = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [40.0, 40.0, 60.0, 90.0]]])
USED = torch.ones(1, 3, dtype=torch.bool)
SIZES = torch.tensor([[64, 64]])


def answer(probabilities: list[list[float]], spec: DetectionSpec = SPEC, **changes: Tensor) -> tuple[Tensor, ...]:
    told = torch.tensor([probabilities])
    sets = {"deltas": torch.zeros(1, 3, 4 * spec.sets), "proposals": PROPOSALS, "used": USED, "sizes": SIZES}
    given = sets | changes
    boxes, scores, labels = detections(told, given["deltas"], given["proposals"], given["used"], given["sizes"], spec)
    return boxes[0], scores[0], labels[0]


def test_of_boxes_of_a_class_that_overlap_the_best_stays_and_other_classes_do_not_mind() -> None:
    boxes, scores, labels = answer([[0.5, 0.0, 0.5], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    torch.testing.assert_close(scores, torch.tensor([0.7, 0.6, 0.3, 0.2]))
    assert labels.tolist() == [1, 0, 1, 0]
    assert labels.dtype == torch.int32
    assert boxes[0].tolist() == [40.0, 40.0, 60.0, 64.0]  # cut off at the picture
    assert boxes[1].tolist() == [1.0, 0.0, 11.0, 10.0]


def test_the_background_may_come_first() -> None:
    spec = replace(SPEC, first_class=1)
    deltas = torch.zeros(1, 3, 12)  # a set of its own, which counts nothing
    deltas[..., :4] = 9.0
    _, scores, labels = answer([[0.5, 0.5, 0.0], [0.9, 0.0, 0.1], [0.3, 0.0, 0.7]], spec, deltas=deltas)
    torch.testing.assert_close(scores, torch.tensor([0.7, 0.5, NO_DETECTION, NO_DETECTION]))
    assert labels.tolist() == [1, 0, 0, 0]


def test_one_set_of_offsets_serves_all_classes() -> None:
    spec = replace(SPEC, sets=1)
    boxes, scores, _ = answer([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.4, 0.6, 0.0]], spec)
    torch.testing.assert_close(scores[:2], torch.tensor([0.6, 0.4]))
    assert torch.equal(boxes[0], boxes[1])


def test_unused_rows_are_zero() -> None:
    for probabilities, used in (([[0.0, 0.1, 0.9]] * 3, USED), ([[0.9, 0.1, 0.0]] * 3, ~USED)):
        boxes, scores, labels = answer(probabilities, used=used)
        assert scores.tolist() == [NO_DETECTION] * 4
        assert not boxes.any()
        assert not labels.any()


def test_more_than_fit_are_left_out_from_the_end() -> None:
    spec = replace(SPEC, rows=1)
    _, scores, labels = answer([[0.5, 0.2, 0.3], [0.0, 0.0, 1.0], [0.2, 0.7, 0.1]], spec)
    torch.testing.assert_close(scores, torch.tensor([0.7]))
    assert labels.tolist() == [1]


def test_an_empty_box_is_dropped_before_or_after_the_best_are_chosen() -> None:
    """torchvision drops them before, so others move up; detectron2 after, so a row is lost."""
    proposals = PROPOSALS.clone()
    proposals[0, 2] = torch.tensor([70.0, 10.0, 90.0, 20.0])  # beyond the picture
    told = [[0.5, 0.0, 0.5], [0.1, 0.0, 0.9], [0.8, 0.0, 0.2]]
    before = replace(SPEC, shortest_side=1e-2, rows=1)
    assert answer(told, before, proposals=proposals)[1].tolist() == [0.5]
    after = replace(SPEC, shortest_answer=1e-2, rows=1)
    assert answer(told, after, proposals=proposals)[1].tolist() == [NO_DETECTION]


def test_an_overlap_counts_the_last_pixel_where_corners_are_inside() -> None:
    """2 x 1 pixels on 3 x 1: 2 / 3 where the last pixel counts, 1 / 2 by the corners."""
    proposals = torch.tensor([[[0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 1.0, 3.0], [40.0, 40.0, 60.0, 60.0]]])
    told = [[0.5, 0.0, 0.5], [0.4, 0.0, 0.6], [0.0, 0.0, 1.0]]
    spec = replace(SPEC, iou=0.6)
    assert (answer(told, spec, proposals=proposals)[1] > 0).sum() == 2
    spec = replace(spec, coder=BoxCoder(extent=1.0))
    assert (answer(told, spec, proposals=proposals)[1] > 0).sum() == 1
