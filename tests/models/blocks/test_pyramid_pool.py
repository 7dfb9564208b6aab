from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from models.blocks.pyramid_pool import LevelRule, PyramidPool
from models.blocks.roi_align import roi_align
from models.dialects import detectron2, detectron_pytorch, maskrcnn_benchmark, mmdetection, torchvision

DIALECTS = (torchvision, detectron2, mmdetection, maskrcnn_benchmark, detectron_pytorch)


def squares(*sides: float) -> torch.Tensor:
    return torch.tensor([[3.0, 5.0, 3.0 + side, 5.0 + side] for side in sides])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_box_of_twice_the_side_is_one_level_up(dialect) -> None:
    levels = dialect.POOL.level(squares(1, 100, 200, 400, 800, 5000), 4)
    assert levels.tolist() == [0, 0, 1, 2, 3, 3]


def test_dialects_disagree_just_below_the_border() -> None:
    """Their grains against rounding lift a box by 7e-7, 2.5e-7 and next to nothing of 224 pixels."""
    boxes = torch.tensor([[0.0, 0.0, 224 * (1 - short), 224 * (1 - short)] for short in (6e-7, 2e-7)])
    assert torchvision.POOL.level(boxes, 4).tolist() == [2, 2]
    assert mmdetection.POOL.level(boxes, 4).tolist() == [1, 2]
    assert detectron2.POOL.level(boxes, 4).tolist() == [1, 1]


def test_a_box_s_last_pixel_counts_where_corners_are_inside() -> None:
    box = squares(223.0)
    assert maskrcnn_benchmark.POOL.level(box, 4).item() == 2
    assert detectron_pytorch.POOL.level(box, 4).item() == 2
    assert torchvision.POOL.level(box, 4).item() == 1


def test_an_empty_box_belongs_to_the_finest_level() -> None:
    for dialect in DIALECTS:
        assert dialect.POOL.level(squares(0.0), 4).item() == 0


@pytest.mark.parametrize(("sampling", "aligned"), [(2, False), (0, True)])
def test_every_box_is_pooled_from_its_level_alone(sampling: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, side, side, generator=generator) for side in (160, 80, 40, 20)]
    boxes = squares(20, 130, 300, 520, 130, 0.0)
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    pool = PyramidPool((4, 8, 16, 32), LevelRule(), sampling, aligned)
    found = pool(maps, boxes.unflatten(0, (2, 3)), 7)
    for i, level in enumerate(pool.level(boxes, 4).long().tolist()):
        alone = roi_align(maps[level], boxes[i : i + 1], rows[i : i + 1], 1 / (4 << level), 7, sampling, aligned)
        assert torch.equal(found[i], alone[0])


def test_a_single_map_needs_no_rule() -> None:
    generator = torch.Generator().manual_seed(0)
    single = torch.randn(1, 3, 40, 40, generator=generator)
    boxes, rows = squares(20, 500), torch.zeros(2, dtype=torch.int64)
    found = PyramidPool((16,), LevelRule(), 0, True)([single], boxes[None], 14)
    assert torch.equal(found, roi_align(single, boxes, rows, 1 / 16, 14, 0, True))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_levels_never_fall_as_boxes_grow(dialect) -> None:
    levels = dialect.POOL.level(squares(*torch.linspace(1, 1200, 3000).tolist()), 4).tolist()
    assert all(before <= after for before, after in pairwise(levels))
