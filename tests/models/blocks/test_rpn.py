from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from models.blocks.anchors import declared_stride
from models.blocks.boxes import BoxCoder
from models.blocks.rpn import RPN, AnchorSpec, RPNSpec
from models.blocks.top import UNUSED

SQUARES = (((-8.0, -8.0, 8.0, 8.0), (-8.0, -4.0, 8.0, 4.0)), ((-32.0, -32.0, 32.0, 32.0), (-32.0, -16.0, 32.0, 16.0)))
SPEC = RPNSpec(
    anchors=AnchorSpec(cells=SQUARES, strides=(16, 32), stride=declared_stride),
    convs=1,
    coder=BoxCoder(),
    before_nms=6,
    after_nms=6,
    proposals=8,
    iou=0.7,
    shortest_side=1e-3,
)
SIZES = torch.tensor([[64, 96]])


def heads(*best: tuple[int, int, int, int, float]) -> list[tuple[Tensor, Tensor]]:
    """Maps of 4 x 6 and 2 x 3 cells where nothing moves: (level, anchor, row, column, logit), the others at -20."""
    logits = [torch.full((1, 2, 4, 6), -20.0), torch.full((1, 2, 2, 3), -20.0)]
    for level, anchor, row, column, logit in best:
        logits[level][0, anchor, row, column] = logit
    return [(told, torch.zeros(1, 8, *told.shape[2:])) for told in logits]


def propose(spec: RPNSpec, told: list[tuple[Tensor, Tensor]], sizes: Tensor = SIZES) -> tuple[Tensor, Tensor]:
    boxes, logits = RPN(4, spec).propose(told, (64, 96), sizes)
    return boxes[0], logits[0]


def test_an_anchor_that_holds_something_becomes_a_proposal() -> None:
    boxes, logits = propose(SPEC, heads((0, 0, 2, 3, 5.0), (1, 1, 1, 1, 7.0)))
    assert boxes.shape == (8, 4)
    assert logits[:2].tolist() == [7.0, 5.0]
    assert boxes[0].tolist() == [0.0, 16.0, 64.0, 48.0]
    assert boxes[1].tolist() == [40.0, 24.0, 56.0, 40.0]


def test_an_anchor_moves_by_its_own_deltas() -> None:
    told = heads((0, 1, 1, 2, 5.0))
    told[0][1][0, 4:, 1, 2] = torch.tensor([0.5, 0.0, 0.0, 0.0])  # the second anchor's, half its width to the right
    boxes, _ = propose(SPEC, told)
    assert boxes[0].tolist() == [32.0, 12.0, 48.0, 20.0]


def test_proposals_end_at_the_picture_and_anchors_do_not() -> None:
    boxes, logits = propose(SPEC, heads((0, 0, 3, 5, 5.0)), sizes=torch.tensor([[50, 82]]))
    assert boxes[0].tolist() == [72.0, 40.0, 82.0, 50.0]
    assert logits[0] == 5.0


def test_proposals_may_end_with_the_padding() -> None:
    told = heads((0, 0, 3, 5, 5.0), (0, 0, 0, 0, 4.0))
    spec = replace(SPEC, edge_multiple=32, coder=BoxCoder(extent=1.0), shortest_side=-math.inf)
    boxes, _ = propose(spec, told, sizes=torch.tensor([[33, 65]]))
    assert boxes[0].tolist() == [72.0, 40.0, 88.0, 56.0]  # the input goes on to 64 x 96, where this one is
    boxes, _ = propose(spec, told, sizes=torch.tensor([[32, 64]]))
    assert boxes[0].tolist() == [63.0, 31.0, 63.0, 31.0]
    boxes, _ = propose(spec, heads((1, 0, 1, 1, 5.0)), sizes=torch.tensor([[50, 61]]))
    assert boxes[0].tolist() == [0.0, 0.0, 63.0, 63.0]


def test_a_proposal_outside_the_picture_is_none() -> None:
    boxes, logits = propose(replace(SPEC, before_nms=1), heads((0, 0, 3, 5, 5.0)), sizes=torch.tensor([[10, 10]]))
    assert (logits > 0).sum() == 0
    assert not boxes[logits <= UNUSED / 2].any()


def test_levels_do_not_suppress_each_other() -> None:
    told = heads((0, 0, 2, 2, 9.0), (1, 0, 1, 1, 8.0))
    told[0][1][0, 2:4, 2, 2] = torch.log(torch.tensor(4.0))  # the fine box, four times as large, lies on the coarse one
    boxes, logits = propose(SPEC, told)
    assert torch.equal(boxes[0], boxes[1])
    assert logits[:2].tolist() == [9.0, 8.0]


def test_within_a_level_the_better_one_stays() -> None:
    told = heads((1, 0, 0, 0, 9.0), (1, 0, 0, 1, 8.0))
    told[1][1][0, 0, 0, 1] = -0.5  # the second box moves onto the first
    _, logits = propose(SPEC, told)
    assert logits[0] == 9.0
    assert 8.0 not in logits.tolist()


def test_what_is_kept_of_a_level_may_be_limited_of_its_own() -> None:
    told = heads(*((0, 0, row, column, 5.0 + row + column / 10) for row in range(2) for column in range(3)))
    _, logits = propose(replace(SPEC, after_nms=2), told)
    assert (logits > 0).sum() == 2


def test_more_rows_than_anchors_are_unused_and_zero() -> None:
    boxes, logits = propose(replace(SPEC, before_nms=40, after_nms=40, proposals=100), heads())
    used = logits > UNUSED / 2
    assert boxes.shape == (100, 4)
    assert 0 < used.sum() <= 2 * (24 + 6)
    assert not boxes[~used].any()
    assert (logits[~used] == UNUSED).all()
