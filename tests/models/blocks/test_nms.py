from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.blocks.nms import nms_keep
from tests.models.blocks.exported import FREE, Outputs, Run, exported

LIMITS = [(0.5, 0.0), (0.0, -1e30), (0.25, 0.5), (1.0, -5.0), (0.7, -5e29)]  # iou, threshold


def definition(boxes: np.ndarray, scores: np.ndarray, iou: float, threshold: float) -> np.ndarray:
    """One group: go through the boxes from the best, keep each that no kept one overlaps too much."""

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        low = np.maximum(np.minimum(a[:2], a[2:]), np.minimum(b[:2], b[2:]))
        high = np.minimum(np.maximum(a[:2], a[2:]), np.maximum(b[:2], b[2:]))
        shared = np.prod(np.maximum(high - low, 0))
        union = np.prod(np.abs(a[2:] - a[:2])) + np.prod(np.abs(b[2:] - b[:2])) - shared
        return float(shared / union) if shared > 0 else 0.0

    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if scores[i] > threshold and all(not overlap(boxes[i], boxes[j]) > iou for j in kept):
            kept.append(i)
    marks = np.zeros(len(scores), np.float32)
    marks[kept] = 1
    return marks


def keep_with_all_limits(boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
    return tuple(nms_keep(boxes, scores, iou, threshold) for iou, threshold in LIMITS)


@pytest.fixture(scope="module")
def graph() -> Run:
    run, operators = exported(
        Outputs(keep_with_all_limits), (torch.rand(2, 6, 4), torch.rand(2, 6)), [{0: FREE, 1: FREE}, {0: FREE, 1: FREE}]
    )
    assert operators.count("NonMaxSuppression") == operators.count("ScatterND") == len(LIMITS)
    return run


def agree(graph: Run, boxes: Tensor, scores: Tensor) -> None:
    ours = keep_with_all_limits(boxes, scores)
    for (iou, threshold), mine, theirs in zip(LIMITS, ours, graph(boxes, scores), strict=True):
        expected = [definition(b, s, iou, threshold) for b, s in zip(boxes.numpy(), scores.numpy(), strict=True)]
        assert np.array_equal(mine.numpy(), np.stack(expected)), (iou, threshold)
        assert np.array_equal(mine.numpy(), theirs), (iou, threshold)


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Boxes on a coarse grid with few scores: duplicates, ties, points, lines and swapped corners are common."""
    count, members = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    number = st.integers(0, 5)
    boxes = draw(st.lists(st.lists(number, min_size=4, max_size=4), min_size=count * members, max_size=count * members))
    chosen = st.sampled_from([-1e30, -6.0, 0.0, 0.25, 0.5, 0.75])
    scores = draw(st.lists(chosen, min_size=count * members, max_size=count * members))
    return (
        torch.tensor(boxes, dtype=torch.float32).reshape(count, members, 4),
        torch.tensor(scores, dtype=torch.float32).reshape(count, members),
    )


@given(groups())
@settings(max_examples=150, deadline=None)
def test_any_boxes_are_kept_as_defined_by_us_and_by_onnx_runtime(graph: Run, case: tuple[Tensor, Tensor]) -> None:
    agree(graph, *case)


@pytest.mark.parametrize(("groups", "members", "seed"), [(1, 200, 0), (3, 80, 1)])
def test_crowds_of_arbitrary_boxes(graph: Run, groups: int, members: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(groups, members, 2, generator=draw) * 100
    boxes = torch.cat([corner, corner + 10 + torch.rand(groups, members, 2, generator=draw) * 40], dim=-1)
    agree(graph, boxes, torch.rand(groups, members, generator=draw))


def test_when_nothing_scores_enough_nothing_is_kept(graph: Run) -> None:
    boxes, scores = torch.rand(2, 5, 4), torch.full((2, 5), -1e30)
    agree(graph, boxes, scores)
    assert not nms_keep(boxes, scores, 0.5, 0.0).any()


def test_of_equal_boxes_the_first_of_the_best_stays(graph: Run) -> None:
    boxes = torch.tensor([0.0, 0.0, 4.0, 4.0]).expand(1, 5, 4).contiguous()
    scores = torch.tensor([[0.1, 0.6, 0.6, 0.3, 0.6]])
    agree(graph, boxes, scores)
    assert nms_keep(boxes, scores, 0.5, 0.0).tolist() == [[0, 1, 0, 0, 0]]


def test_a_box_that_was_suppressed_suppresses_none() -> None:
    """A chain: each overlaps the next by 3/5 and the one after by 1/3."""
    boxes = torch.tensor([[[0.0, 0, 4, 1], [1, 0, 5, 1], [2, 0, 6, 1]]])
    scores = torch.tensor([[0.9, 0.8, 0.7]])
    assert nms_keep(boxes, scores, 0.5, 0.0).tolist() == [[1, 0, 1]]


def test_an_overlap_of_just_the_limit_is_none() -> None:
    boxes = torch.tensor([[[0.0, 0, 2, 1], [0, 0, 1, 1]]])  # 1 / 2
    scores = torch.tensor([[0.9, 0.8]])
    assert nms_keep(boxes, scores, 0.5, 0.0).tolist() == [[1, 1]]
    assert nms_keep(boxes, scores, 0.49, 0.0).tolist() == [[1, 0]]
    assert nms_keep(boxes, scores, 0.5, 0.8).tolist() == [[1, 0]]  # nor is a score of just the threshold one


def test_the_plus_one_convention_is_the_callers_to_add() -> None:
    """Two rows of pixels each, one shared: 1/3 where corners are pixels inside, none where they are edges."""
    boxes = torch.tensor([[[0.0, 0, 3, 1], [0, 1, 3, 2]]])
    scores = torch.tensor([[0.9, 0.8]])
    stretched = boxes + torch.tensor([0.0, 0, 1, 1])
    assert nms_keep(boxes, scores, 0.3, 0.0).tolist() == [[1, 1]]
    assert nms_keep(stretched, scores, 0.3, 0.0).tolist() == [[1, 0]]


def test_no_boxes_and_no_groups(graph: Run) -> None:
    assert nms_keep(torch.zeros(2, 0, 4), torch.zeros(2, 0), 0.5, 0.0).shape == (2, 0)
    agree(graph, torch.zeros(2, 0, 4), torch.zeros(2, 0))
    assert nms_keep(torch.zeros(0, 3, 4), torch.zeros(0, 3), 0.5, 0.0).shape == (0, 3)
