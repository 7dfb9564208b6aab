from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from models.blocks.atlas_roi_align import AtlasPool, atlas_pool
from models.blocks.pyramid_pool import LevelRule, PyramidPool
from models.dialects import detectron2, maskrcnn_benchmark, mmdetection, torchvision
from tests.models.blocks.exported import FREE, Outputs, exported

DIALECTS = (torchvision, detectron2, mmdetection, maskrcnn_benchmark)
SIZE = (256, 384)  # of the picture
ANY = LevelRule()


def maps_of(batch: int, seed: int, strides: tuple[int, ...] = (4, 8, 16, 32)) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 6, SIZE[0] // s, SIZE[1] // s, generator=draw) for s in strides]


def boxes_of(batch: int, count: int, seed: int) -> Tensor:
    """Inside the picture: of all shapes, thin as a pixel in both directions, empty, whole."""
    draw = torch.Generator().manual_seed(seed)
    far = torch.tensor([SIZE[1], SIZE[0]], dtype=torch.float32)
    first, second = torch.rand(2, batch, count, 2, generator=draw) * far
    boxes = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=-1)
    width, height = far.tolist()
    special = [
        [0, 0, 0, 0],
        [0, 0, width, height],
        [0, 3, width, 4],
        [0, 3, width, 24],
        [7, 0, 8.5, height],
        [9, 0, 40, height],
        [width, height, width, height],
        [width - 1, height - 1, width, height],
        [3, 3, 115, 115],
        [3, 3, 227, 227],
    ]
    boxes[:, : len(special)] = torch.tensor(special)
    return boxes


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialects_pooling_needs_no_plugin(dialect, size: int) -> None:
    maps, boxes = maps_of(2, seed=size), boxes_of(2, 150, seed=1)
    native, twin = dialect.POOL, atlas_pool(dialect.POOL, SIZE)
    assert torch.allclose(twin(maps, boxes, size), native(maps, boxes, size), atol=2e-6)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [0, 1, 3])
@pytest.mark.parametrize("strides", [(16,), (4, 8, 16, 32)])
def test_every_setting_and_boxes_that_leave_the_picture(strides: tuple[int, ...], sampling: int, aligned: bool) -> None:
    maps = maps_of(1, 2, strides)
    shift = torch.tensor([[-90.0, -70], [60, 90], [-300, 0], [1000, 1000]]).repeat(1, 2)[:, None]
    boxes = (boxes_of(1, 40, seed=3) + shift).flatten(0, 1)[None]
    native = PyramidPool(strides, ANY, sampling, aligned)
    twin = atlas_pool(native, SIZE)
    rounding = 2e-5 if strides == (16,) else 2e-6  # of bilinear lookups in a narrow map
    assert torch.allclose(twin(maps, boxes, 5), native(maps, boxes, 5), atol=rounding)


def test_the_lookups_hold_the_largest_need_of_any_box() -> None:
    """At every level, for boxes as wide and as high as the rule allows: none is cut off."""
    pool = AtlasPool((4, 8, 16, 32), ANY, 0, True, (800, 1344))
    assert pool.most_samples(7) == (29, 48)
    assert pool.most_lookups(7) == 98  # a box of a pixel by 1344: 2 rows of 49 cells
    assert pool.most_lookups(14) == 50
    assert AtlasPool((16,), ANY, 0, True, (800, 1344)).most_lookups(14) == 12  # 4 by 6 samples: 3 by 4 pairs of cells
    assert AtlasPool((4, 8, 16, 32), ANY, 2, False, (800, 1344)).most_lookups(7) == 16
    draw = torch.Generator().manual_seed(0)
    sides = torch.exp(torch.rand(200_000, 2, generator=draw) * math.log(1344)).clamp(max=torch.tensor([1344.0, 800.0]))
    level = pool.level(torch.cat([torch.zeros_like(sides), sides], dim=1), 4)
    counts = torch.ceil(sides / (4 * 2**level)[:, None] / 7)
    assert 60 < (counts + 1).prod(dim=1).max() <= 98


def test_many_boxes_are_pooled_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, boxes = maps_of(2, seed=4), boxes_of(2, 30, seed=4)
    twin = atlas_pool(detectron2.POOL, SIZE)
    at_once = twin(maps, boxes, 7)
    monkeypatch.setattr("models.blocks.atlas_roi_align.LOOKED_UP", 6 * 49 * twin.most_lookups(7) * 7)
    assert torch.equal(twin(maps, boxes, 7), at_once)


@pytest.mark.parametrize("sampling", [0, 2])
def test_pytorch_and_onnx_runtime_agree_and_a_picture_does_not_see_the_others(sampling: int) -> None:
    twin = AtlasPool((4, 8), LevelRule(canonical_size=112.0), sampling, True, SIZE)

    def pool(fine: Tensor, coarse: Tensor, boxes: Tensor) -> Tensor:
        return twin([fine, coarse], boxes, 7)

    inputs = (*maps_of(3, 5, (4, 8)), boxes_of(3, 40, seed=6))
    two = tuple(tensor[:2] for tensor in inputs)
    run, operators = exported(Outputs(pool), two, [{0: FREE, 2: FREE, 3: FREE}] * 2 + [{0: FREE}])
    assert operators.count("GridSample") == 1
    assert "RoiAlign" not in operators
    (together,) = run(*inputs)
    assert np.abs(together - pool(*inputs).numpy()).max() < 2e-6
    for row in range(3):
        (alone,) = run(*(tensor[row : row + 1] for tensor in inputs))
        assert np.array_equal(alone, together[40 * row : 40 * (row + 1)])


def test_a_full_map_is_pooled_in_seconds() -> None:
    draw = torch.Generator().manual_seed(7)
    maps = [torch.randn(1, 32, 800 // s, 1344 // s, generator=draw) for s in (4, 8, 16, 32)]
    first, second = torch.rand(2, 1, 200, 2, generator=draw) * torch.tensor([1344.0, 800.0])
    boxes = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=-1)
    started = time.process_time()
    found = AtlasPool((4, 8, 16, 32), ANY, 0, True, (1344, 1344))(maps, boxes, 7)
    assert time.process_time() - started < 30
    assert torch.allclose(found, PyramidPool((4, 8, 16, 32), ANY, 0, True)(maps, boxes, 7), atol=2e-6)
