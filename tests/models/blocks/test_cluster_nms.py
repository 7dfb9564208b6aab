from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.blocks.cluster_nms import ROUNDS, ClusterNMS
from models.blocks.nms import nms_keep
from models.blocks.watch import Counting
from tests.models.blocks.exported import FREE, Outputs, exported
from tests.models.blocks.test_nms import LIMITS, groups


def in_order(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Best first, equal ones as they were."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return boxes.gather(1, order[..., None].expand_as(boxes)), scores


def crowd(groups: int, members: int, seed: int, spread: float = 0.15) -> tuple[Tensor, Tensor]:
    """Boxes in heaps around thirty places, best first."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.randint(0, 30, (groups, members), generator=draw)
    centres = torch.rand(groups, 30, 2, generator=draw) * 800
    sides = torch.rand(groups, 30, 2, generator=draw) * 200 + 16
    noise = torch.randn(2, groups, members, 2, generator=draw) * spread
    centre, side = (told.gather(1, places[..., None].expand(-1, -1, 2)) for told in (centres, sides))
    centre, side = centre + noise[0] * side, side * torch.exp(noise[1])
    return torch.cat([centre - side / 2, centre + side / 2], dim=-1), torch.rand(groups, members, generator=draw).sort(
        dim=1, descending=True
    ).values


@given(groups(), st.sampled_from([1, 3, 500]))
@settings(max_examples=150, deadline=None)
def test_any_boxes_are_kept_as_by_the_greedy_way(case: tuple[Tensor, Tensor], tile: int) -> None:
    """Duplicates, ties, points, lines and swapped corners among them, in tiles of any size."""
    boxes, scores = in_order(*case)
    for iou, threshold in LIMITS:
        watch = Counting()
        found = ClusterNMS(rounds=10, tile=tile, watch=watch)(boxes, scores, iou, threshold)
        assert torch.equal(found, nms_keep(boxes, scores, iou, threshold)), (iou, threshold)
        assert not watch.changed


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
@pytest.mark.parametrize(("groups", "members"), [(5, 1000), (1, 1700)])
def test_crowds_need_no_more_than_the_usual_rounds(groups: int, members: int, iou: float) -> None:
    boxes, scores = crowd(groups, members, seed=members)
    watch = Counting()
    assert torch.equal(ClusterNMS(watch=watch)(boxes, scores, iou, 0.05), nms_keep(boxes, scores, iou, 0.05))
    assert not watch.changed


def row_of(count: int) -> tuple[Tensor, Tensor]:
    """Each box overlaps the next alone, and the scores fall: a chain as long as the row."""
    left = torch.arange(count) * 3.0
    boxes = torch.stack([left, torch.zeros(count), left + 5, torch.ones(count)], dim=1)[None]
    return boxes, torch.linspace(1.0, 0.5, count)[None]


def test_too_few_rounds_are_told() -> None:
    boxes, scores = row_of(40)
    wanted = nms_keep(boxes, scores, 0.1, 0.0)
    assert wanted[0].tolist() == [1, 0] * 20
    few, enough = Counting(), Counting()
    assert not torch.equal(ClusterNMS(rounds=ROUNDS, watch=few)(boxes, scores, 0.1, 0.0), wanted)
    assert few.changed
    assert torch.equal(ClusterNMS(rounds=41, watch=enough)(boxes, scores, 0.1, 0.0), wanted)
    assert not enough.changed


def test_a_chain_over_several_tiles_costs_the_rounds_of_one() -> None:
    boxes, scores = row_of(200)
    watch = Counting()
    found = ClusterNMS(rounds=11, tile=10, watch=watch)(boxes, scores, 0.1, 0.0)
    assert torch.equal(found, nms_keep(boxes, scores, 0.1, 0.0))
    assert not watch.changed


def test_pytorch_and_onnx_runtime_agree_to_the_bit_whatever_the_company() -> None:
    nms = ClusterNMS(tile=130)
    boxes, scores = crowd(3, 250, seed=3)
    scores[1, 40:] = -1e30
    run, operators = exported(Outputs(lambda b, s: nms(b, s, 0.5, 0.05)), (boxes[:2], scores[:2]), [{0: FREE}] * 2)
    assert not {"NonMaxSuppression", "NonZero", "TopK"} & set(operators)
    (together,) = run(boxes, scores)
    assert np.array_equal(together, nms(boxes, scores, 0.5, 0.05).numpy())
    assert np.array_equal(together, nms_keep(boxes, scores, 0.5, 0.05).numpy())
    for row in range(3):
        assert np.array_equal(run(boxes[row : row + 1], scores[row : row + 1])[0][0], together[row])


def test_no_boxes_and_no_groups() -> None:
    assert ClusterNMS()(torch.zeros(2, 0, 4), torch.zeros(2, 0), 0.5, 0.0).shape == (2, 0)
    assert ClusterNMS()(torch.zeros(0, 3, 4), torch.zeros(0, 3), 0.5, 0.0).shape == (0, 3)
