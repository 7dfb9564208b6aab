from __future__ import annotations

import numpy as np
import pytest
import torch

from models.blocks.anchors import (
    anchors_at,
    around_pixels,
    by_ratio,
    by_root,
    declared_stride,
    fitted_stride,
    rounded,
)

RATIOS = (0.5, 1.0, 2.0)


def test_anchors_lie_cell_by_cell_and_row_by_row() -> None:
    cells = torch.tensor([[-1.0, -2.0, 1.0, 2.0], [-3.0, -3.0, 3.0, 3.0]])
    anchors = anchors_at(torch.arange(12), cells, 3, (10, 100))
    assert anchors.shape == (12, 4)
    assert anchors[0].tolist() == [-1, -2, 1, 2]
    assert anchors[1].tolist() == [-3, -3, 3, 3]
    assert anchors[2].tolist() == [99, -2, 101, 2]  # the next cell of the row
    assert anchors[6].tolist() == [-1, 8, 1, 12]  # the next row


@pytest.mark.parametrize("shapes", [by_ratio, by_root])
def test_shapes_have_the_area_and_the_ratio(shapes) -> None:
    cells = np.array(shapes((16.0, 64.0), RATIOS))
    widths, heights = cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]
    np.testing.assert_allclose(sorted(widths * heights), [256.0] * 3 + [4096.0] * 3, rtol=1e-5)
    np.testing.assert_allclose(sorted(heights / widths), sorted([*RATIOS, *RATIOS]), rtol=1e-5)


def test_sizes_are_outermost_in_one_code_base_and_ratios_in_the_others() -> None:
    first, second = by_ratio((16, 64), RATIOS)[:2]
    assert second[2] == 8.0  # the same size in the next ratio
    assert by_root((16, 64), RATIOS)[1][2] == pytest.approx(4 * first[2])  # the next size in the same ratio


def test_torchvision_rounds_its_anchors() -> None:
    """The first three of torchvision's 32-pixel anchors."""
    wanted = ((-23.0, -11.0, 23.0, 11.0), (-16.0, -16.0, 16.0, 16.0), (-11.0, -23.0, 11.0, 23.0))
    assert rounded(by_root((32,), RATIOS)) == wanted


def test_detectron_s_anchors_lie_around_the_first_square() -> None:
    """The table in the source of Faster R-CNN's `generate_anchors`: sizes 128, 256 and 512, ratios 0.5 and 1."""
    wanted = (
        *((-84.0, -40.0, 99.0, 55.0), (-176.0, -88.0, 191.0, 103.0), (-360.0, -184.0, 375.0, 199.0)),
        *((-56.0, -56.0, 71.0, 71.0), (-120.0, -120.0, 135.0, 135.0), (-248.0, -248.0, 263.0, 263.0)),
    )
    assert around_pixels(16, (128, 256, 512), (0.5, 1.0)) == wanted


def test_a_fitted_stride_divides_the_input() -> None:
    assert fitted_stride(160, 3, 64) == 53
    assert declared_stride(160, 3, 64) == 64
