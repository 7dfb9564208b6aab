from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.blocks.boxes import LARGEST_GROWTH, BoxCoder, clip, sides_reach, stretch

coordinates = st.floats(0, 500, width=32)
sides = st.floats(1, 300, width=32)


def encode(coder: BoxCoder, boxes: Tensor, target: Tensor) -> Tensor:
    """What a network would have to tell, by the paper's equations 6 to 9."""
    low, high = boxes[:2], boxes[2:] + coder.extent
    target_low, target_high = target[:2], target[2:] + coder.extent
    shift = ((target_low + target_high) - (low + high)) / 2 / (high - low)
    growth = ((target_high - target_low) / (high - low)).log()
    return torch.cat([shift, growth]) * torch.tensor(coder.weights)


@given(
    corner=st.tuples(coordinates, coordinates),
    size=st.tuples(sides, sides),
    target=st.tuples(coordinates, coordinates),
    target_size=st.tuples(sides, sides),
    extent=st.sampled_from([0.0, 1.0]),
    weights=st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]),
)
def test_a_box_that_was_written_down_comes_back(corner, size, target, target_size, extent, weights) -> None:
    coder = BoxCoder(weights=weights, largest_log=math.inf, extent=extent)
    boxes = torch.tensor([*corner, corner[0] + size[0], corner[1] + size[1]], dtype=torch.float64)
    wanted = torch.tensor([*target, target[0] + target_size[0], target[1] + target_size[1]], dtype=torch.float64)
    assert torch.allclose(coder.decode(encode(coder, boxes, wanted), boxes), wanted, atol=1e-6)


def test_a_box_grows_at_most_62_5_times_and_shrinks_as_far_as_the_dialect_lets_it() -> None:
    box = torch.tensor([0.0, 0.0, 8.0, 8.0])
    deltas = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, -9.0, -9.0]])
    grown, shrunk = BoxCoder().decode(deltas, box)
    assert torch.allclose(grown[2:] - grown[:2], torch.full((2,), 500.0))
    assert torch.allclose(shrunk[2:] - shrunk[:2], torch.full((2,), 8 * math.exp(-9.0)), atol=1e-6)
    _, bounded = BoxCoder(smallest_log=-LARGEST_GROWTH).decode(deltas, box)
    assert torch.allclose(bounded[2:] - bounded[:2], torch.full((2,), 8 / 62.5))


@pytest.mark.parametrize(("extent", "corner"), [(0.0, [48.0, 32.0]), (1.0, [47.0, 31.0])])
def test_boxes_are_cut_off_at_their_own_picture(extent: float, corner: list[float]) -> None:
    sizes = torch.tensor([[32, 48], [100, 200]])
    boxes = torch.tensor([[-3.0, -4.0, 60.0, 70.0]]).expand(2, 1, 4)
    cut = clip(boxes, sizes[:, None], extent)
    assert cut[0, 0].tolist() == [0.0, 0.0, *corner]
    assert cut[1, 0].tolist() == [0.0, 0.0, 60.0, 70.0]


def test_both_sides_must_reach() -> None:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [1.0, 1.0, 1.0, 1.0]])
    assert sides_reach(boxes, 2.0).tolist() == [True, False, False]
    assert sides_reach(boxes, 0.0).tolist() == [True, True, True]


def test_the_far_corner_moves_by_the_extent() -> None:
    assert stretch(torch.tensor([1.0, 2.0, 3.0, 4.0]), 1.0).tolist() == [1.0, 2.0, 4.0, 5.0]
