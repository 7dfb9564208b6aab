from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.fpn import FPN
from models.blocks.norm import BatchNorm, GroupNorm, Norm


def maps(*sizes: tuple[int, int], batch: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, 4 << i, *size) for i, size in enumerate(sizes)]


def test_every_level_has_its_size_and_the_extra_one_every_second_cell() -> None:
    levels = FPN((4, 8, 16), 6)(maps((16, 24), (8, 12), (4, 6)))
    assert [tuple(x.shape) for x in levels] == [(2, 6, 16, 24), (2, 6, 8, 12), (2, 6, 4, 6), (2, 6, 2, 3)]
    assert torch.equal(levels[3], F.max_pool2d(levels[2], 1, stride=2))


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_as_many_extra_levels_as_wanted(extra: int) -> None:
    levels = FPN((4, 8), 6, extra=extra)(maps((10, 14), (5, 7)))
    assert [x.shape[-2] for x in levels] == [10, 5, 3, 2, 1][: 2 + extra]


def test_a_coarse_map_is_enlarged_to_the_odd_size_of_the_finer_one() -> None:
    fpn = FPN((4, 8), 6)
    fine, coarse = maps((5, 7), (3, 4))
    lateral, above = fpn.laterals[0](fine), fpn.laterals[1](coarse)
    rows, columns = torch.arange(5) * 3 // 5, torch.arange(7) * 4 // 7  # nearest, rounded down
    expected = fpn.outputs[0](lateral + above[:, :, rows][:, :, :, columns])
    assert torch.allclose(fpn([fine, coarse])[0], expected, atol=1e-6)


def test_coarse_maps_reach_fine_levels_and_fine_maps_reach_no_coarse_one() -> None:
    fpn = FPN((4, 8, 16), 6)
    before = maps((8, 8), (4, 4), (2, 2))
    first = fpn(before)
    changed_top = fpn([*before[:2], before[2] + 1])
    changed_bottom = fpn([before[0] + 1, *before[1:]])
    assert not any(torch.allclose(a, b) for a, b in zip(first, changed_top, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[1:], changed_bottom[1:], strict=True))


@pytest.mark.parametrize("norm", [BatchNorm(), GroupNorm(groups=2)])
def test_a_norm_takes_the_place_of_the_bias(norm: Norm) -> None:
    """torchvision's second version, and group norm in the others."""
    plain, normed = set(FPN((4, 8), 6).state_dict()), set(FPN((4, 8), 6, norm=norm).state_dict())
    assert {"laterals.0.conv.weight", "laterals.0.conv.bias", "outputs.1.conv.bias"} <= plain
    assert {"laterals.0.norm.weight", "outputs.1.norm.bias"} <= normed
    assert not any(name.endswith("conv.bias") for name in normed)
    assert [x.shape[1] for x in FPN((4, 8), 6, norm=norm)(maps((8, 8), (4, 4)))] == [6, 6, 6]
