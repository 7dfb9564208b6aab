from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.blocks.class_nms import NO_DETECTION, BestPairs, best_of_classes
from models.blocks.cluster_nms import ClusterNMS
from models.blocks.watch import Counting


def scene(seed: int, batch: int = 2, classes: int = 7, count: int = 60) -> tuple[Tensor, Tensor]:
    """Boxes of every class near each other, and some that do not count; no two scores are equal."""
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, 1, count, 2, generator=draw) * 100 + torch.randn(
        batch, classes, count, 2, generator=draw
    )
    boxes = torch.cat([corner, corner + 10 + torch.rand(batch, classes, count, 2, generator=draw) * 40], dim=-1)
    scores = torch.rand(batch, classes, count, generator=draw)
    return boxes, torch.where(scores < 0.1, NO_DETECTION, scores)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_give_the_rows_that_groups_of_classes_give(seed: int) -> None:
    boxes, scores = scene(seed)
    watch = Counting()
    wanted = best_of_classes(boxes, scores, 0.5, 0.3, 100)
    found = BestPairs(ClusterNMS(watch=watch))(boxes, scores, 0.5, 0.3, 100)
    assert not watch.changed
    assert not watch.missed
    assert torch.equal(found[0], wanted[0])
    used = wanted[0] > 0
    assert used.any()
    assert torch.equal(found[1][used], wanted[1][used])


def test_what_is_left_out_changes_nothing_or_is_told() -> None:
    told = kept = 0
    for pairs in (20, 40, 60, 100, 200, 300):
        boxes, scores = scene(5)
        watch = Counting()
        wanted, _ = best_of_classes(boxes, scores, 0.5, 0.3, 30)
        found, _ = BestPairs(ClusterNMS(watch=watch), pairs)(boxes, scores, 0.5, 0.3, 30)
        if watch.missed:
            told += 1
        else:
            kept += 1
            assert torch.equal(found, wanted)
    assert told
    assert kept > 1  # before all candidates were looked at, too


def test_a_picture_does_not_see_the_others_and_one_without_boxes_has_no_rows() -> None:
    boxes, scores = scene(6, batch=3)
    scores[1] = NO_DETECTION
    nms = BestPairs()
    together = nms(boxes, scores, 0.5, 0.3, 40)
    assert (together[0][1] == NO_DETECTION).all()
    for row in range(3):
        alone = nms(boxes[row : row + 1], scores[row : row + 1], 0.5, 0.3, 40)
        assert all(torch.equal(one[0], all_[row]) for one, all_ in zip(alone, together, strict=True))
