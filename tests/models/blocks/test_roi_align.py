from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.blocks.roi_align import roi_align
from tests.models.blocks.exported import FREE, Outputs, Run, exported
from tests.shared_data import shared

SETTINGS = list(itertools.product((True, False), (0, 1, 2)))  # aligned, sampling


def scene(batch: int, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A map of 13 x 17 cells of 4 pixels, and boxes in, across and beyond it, some empty, some far larger than it."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, 5, 13, 17, generator=draw)
    corner = torch.rand(count, 2, generator=draw) * 110 - 30
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=draw) * 90], dim=1)
    special = [[0, 0, 0, 0], [500, 500, 600, 600], [-300, -300, -200, -200], [-50, -60, 700, 800], [8, 8, 8, 40]]
    boxes[: len(special)] = torch.tensor(special, dtype=torch.float32)
    return features, boxes, torch.randint(0, batch, (count,), generator=draw)


def pool(features: Tensor, boxes: Tensor, batch_index: Tensor) -> tuple[Tensor, ...]:
    return tuple(roi_align(features, boxes, batch_index, 0.25, 7, sampling, aligned) for aligned, sampling in SETTINGS)


@pytest.fixture(scope="module")
def graph() -> Run:
    run, operators = exported(Outputs(pool), scene(2, 20, seed=0), [{0: FREE}, {0: FREE}, {0: FREE}])
    assert operators == ["RoiAlign"] * len(SETTINGS)
    return run


@pytest.mark.parametrize(("batch", "seed"), [(1, 1), (2, 2), (3, 3), (3, 4)])
def test_eager_code_and_onnx_runtime_agree(graph: Run, batch: int, seed: int) -> None:
    inputs = scene(batch, 100, seed)
    for (aligned, sampling), ours, theirs in zip(SETTINGS, pool(*inputs), graph(*inputs), strict=True):
        assert np.abs(ours.numpy() - theirs).max() < 1e-5, (aligned, sampling)


def definition(plane: Tensor, box: list[float], scale: float, size: int, sampling: int, aligned: bool) -> Tensor:
    """The paper's words, sample by sample, for one plane and one box."""

    def value(y: float, x: float) -> float:
        height, width = plane.shape
        if y < -1 or y > height or x < -1 or x > width:
            return 0.0
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        above = plane[top, left] * (left + 1 - x) + plane[top, right] * (x - left)
        below = plane[bottom, left] * (left + 1 - x) + plane[bottom, right] * (x - left)
        return float(above * (top + 1 - y) + below * (y - top))

    x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0.0) for c in box)
    width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
    across = sampling or int(np.ceil(width / size))
    down = sampling or int(np.ceil(height / size))
    bins = torch.zeros(size, size)
    for i, j, v, u in itertools.product(range(size), range(size), range(down), range(across)):
        y = y1 + (i + (v + 0.5) / down) * height / size
        x = x1 + (j + (u + 0.5) / across) * width / size
        bins[i, j] += value(y, x) / (down * across)
    return bins


@pytest.mark.parametrize(("aligned", "sampling"), SETTINGS)
def test_it_does_what_the_definition_says(aligned: bool, sampling: int) -> None:
    features, boxes, batch_index = scene(2, 25, seed=5)
    pooled = roi_align(features, boxes, batch_index, 0.25, 3, sampling, aligned)
    for row in range(boxes.shape[0]):
        plane = features[int(batch_index[row]), 2]
        expected = definition(plane, boxes[row].tolist(), 0.25, 3, sampling, aligned)
        assert torch.allclose(pooled[row, 2], expected, atol=1e-4), boxes[row]


def test_samples_just_outside_are_moved_to_the_edge_and_those_further_out_are_zero() -> None:
    ones = torch.ones(1, 1, 4, 4)
    box = torch.tensor([[-3.0, 0.0, 1.0, 1.0]])  # one cell wide bins, centres at -2.5, -1.5, -.5, .5 (no half cell)
    index = torch.zeros(1, dtype=torch.int64)
    assert roi_align(ones, box, index, 1.0, 4, 1, False)[0, 0, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert roi_align(ones, box + 6.5, index, 1.0, 4, 1, False)[0, 0, 0].tolist() == [0.0] * 4  # y at 6.6
    far = torch.tensor([[2.5, 0.0, 6.5, 1.0]])  # centres at 3, 4, 5, 6; the map ends at 3, and 4 still counts
    assert roi_align(ones, far, index, 1.0, 4, 1, False)[0, 0, 0].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_without_alignment_a_box_is_at_least_one_cell_and_half_a_cell_further() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8).contiguous()  # the value is the column's number
    index = torch.zeros(1, dtype=torch.int64)
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert roi_align(ramp, point, index, 1.0, 1, 1, False).item() == 3.5  # from 3 to 4
    assert roi_align(ramp, point, index, 1.0, 1, 1, True).item() == 2.5  # at 3, less the half cell
    assert roi_align(ramp, point, index, 1.0, 1, 0, True).item() == 0.0  # no cells, no samples


def test_no_boxes_give_no_rows() -> None:
    features = torch.randn(1, 3, 4, 4)
    empty = roi_align(features, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 1.0, 7, 0, True)
    assert empty.shape == (0, 3, 7, 7)


@pytest.mark.parametrize(("aligned", "sampling"), SETTINGS)
def test_a_box_does_not_see_the_others(aligned: bool, sampling: int) -> None:
    features, boxes, batch_index = scene(3, 30, seed=6)
    together = roi_align(features, boxes, batch_index, 0.25, 7, sampling, aligned)
    for row in (0, 3, 17, 29):
        alone = roi_align(
            features[int(batch_index[row])][None], boxes[row][None], torch.zeros(1).long(), 0.25, 7, sampling, aligned
        )
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize(
    ("code_base", "sampling", "aligned"), [("torchvision", 2, False), ("detectron2", 0, True), ("mmdet", 0, True)]
)
@pytest.mark.parametrize("size", [7, 14])
def test_reference_boxes_are_pooled_from_their_levels(code_base: str, sampling: int, aligned: bool, size: int) -> None:
    case = load_file(shared("golden/conventions_roi_pool/a.safetensors"))
    boxes, levels, expected = case["in/boxes"], case[f"det/{code_base}_level"], case[f"det/{code_base}_{size}"]
    for level, stride in enumerate((4, 8, 16, 32)):
        (rows,) = torch.nonzero(levels == level, as_tuple=True)
        index = torch.zeros(len(rows), dtype=torch.int64)
        pooled = roi_align(case[f"in/p{level + 2}"], boxes[rows], index, 1 / stride, size, sampling, aligned)
        assert torch.allclose(pooled, expected[rows], atol=1e-5), level


def test_a_thousand_boxes_of_all_sizes_on_a_full_map_take_seconds() -> None:
    draw = torch.Generator().manual_seed(7)
    features = torch.randn(1, 256, 200, 336, generator=draw)
    first, second = torch.rand(2, 1000, 2, generator=draw) * torch.tensor([1344.0, 800.0])
    boxes = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)
    started = time.process_time()
    roi_align(features, boxes, torch.zeros(1000, dtype=torch.int64), 0.25, 7, 0, True)
    assert time.process_time() - started < 30
