from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.deform_conv import DeformConv2d, deform_conv2d
from tests.models.blocks.exported import FREE, Outputs, exported

# stride, padding, dilation, groups, deform_groups
SHAPES = [(1, 1, 1, 1, 1), (2, 1, 1, 1, 1), (1, 2, 2, 2, 1), (1, 1, 1, 4, 2), (2, 2, 2, 1, 4)]


def scene(
    shape: tuple[int, int, int, int, int], batch: int, seed: int, spread: float = 2.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Maps of 8 channels, 9 x 11 cells, to 12 channels: x, offset, mask, weight, bias."""
    stride, padding, dilation, groups, deform_groups = shape
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 8, 9, 11, generator=draw)
    h, w = ((side + 2 * padding - 2 * dilation - 1) // stride + 1 for side in (9, 11))
    offset = torch.randn(batch, deform_groups * 18, h, w, generator=draw) * spread
    mask = torch.rand(batch, deform_groups * 9, h, w, generator=draw)
    return x, offset, mask, torch.randn(12, 8 // groups, 3, 3, generator=draw), torch.randn(12, generator=draw)


@pytest.mark.parametrize("shape", SHAPES)
def test_with_no_offsets_it_is_a_convolution(shape: tuple[int, int, int, int, int]) -> None:
    stride, padding, dilation, groups, _ = shape
    x, offset, mask, weight, bias = scene(shape, batch=2, seed=0, spread=0.0)
    expected = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    assert torch.allclose(deform_conv2d(x, offset, None, weight, bias, *shape), expected, atol=1e-5)
    assert torch.allclose(deform_conv2d(x, offset, torch.ones_like(mask), weight, bias, *shape), expected, atol=1e-5)
    halved = F.conv2d(x, weight / 2, None, stride, padding, dilation, groups)
    assert torch.allclose(deform_conv2d(x, offset, mask * 0 + 0.5, weight, None, *shape), halved, atol=1e-5)


def test_offsets_of_a_cell_are_a_shifted_picture() -> None:
    """Down by 1 and right by 2: first y, then x."""
    x, offset, _, weight, _ = scene(SHAPES[0], batch=1, seed=1)
    offset = torch.tensor([1.0, 2.0]).repeat(9)[None, :, None, None].expand_as(offset)
    shifted = F.pad(x, (0, 2, 0, 1))[:, :, 1:, 2:]
    moved = deform_conv2d(x, offset, None, weight, None, *SHAPES[0])
    expected = F.conv2d(shifted, weight, None, 1, 1)
    assert torch.allclose(moved[:, :, 1:, 1:], expected[:, :, 1:, 1:], atol=1e-5)


def test_only_the_tap_that_is_told_to_moves_and_half_a_cell_is_the_mean_of_two() -> None:
    x, offset, _, weight, _ = scene(SHAPES[0], batch=1, seed=2)
    offset = torch.zeros_like(offset)
    offset[:, 2 * 5 + 1] = 0.5  # tap 5 is the middle row's right one; x
    right = torch.zeros_like(weight)
    right[:, :, 1, 2] = weight[:, :, 1, 2]
    halfway = F.conv2d((x + F.pad(x, (0, 1))[:, :, :, 1:]) / 2, right, None, 1, 1)
    expected = F.conv2d(x, weight - right, None, 1, 1) + halfway
    assert torch.allclose(deform_conv2d(x, offset, None, weight, None, *SHAPES[0]), expected, atol=1e-5)


@pytest.mark.parametrize("modulated", [True, False])
def test_eager_code_and_onnx_runtime_agree(modulated: bool) -> None:
    """All shapes in one graph; offsets reach far beyond the map."""

    def convolve(*tensors: Tensor) -> tuple[Tensor, ...]:
        scenes = [tensors[i : i + 5] for i in range(0, len(tensors), 5)]
        return tuple(
            deform_conv2d(x, offset, mask if modulated else None, weight, bias if modulated else None, *shape)
            for shape, (x, offset, mask, weight, bias) in zip(SHAPES, scenes, strict=True)
        )

    def inputs(batch: int, seed: int) -> tuple[Tensor, ...]:
        return tuple(tensor for shape in SHAPES for tensor in scene(shape, batch, seed, spread=4.0))

    free = [{0: FREE}, {0: FREE}, {0: FREE}, {}, {}] * len(SHAPES)
    run, operators = exported(Outputs(convolve), inputs(2, seed=3), free)
    assert operators.count("DeformConv") == len(SHAPES)
    for batch in (1, 3):
        values = inputs(batch, seed=4 + batch)
        for shape, ours, theirs in zip(SHAPES, convolve(*values), run(*values), strict=True):
            assert np.abs(ours.numpy() - theirs).max() < 2e-5, shape


def test_offsets_come_first_and_modulation_last() -> None:
    """As detectron2 and mmdetection have it: 18 channels of offsets, then 9 logits of how much each tap counts."""
    layer = DeformConv2d(8, 12)
    assert layer.offset.weight.shape == (27, 8, 3, 3)
    x = torch.randn(2, 8, 9, 11)
    assert torch.allclose(layer(x), F.conv2d(x, layer.weight / 2, padding=1), atol=1e-5)  # sigmoid of 0
    with torch.no_grad():
        layer.offset.bias[:18] = torch.tensor([0.0, 1.0]).repeat(9)  # type: ignore[index]
        layer.offset.bias[18:] = 100.0  # type: ignore[index]
    expected = F.conv2d(F.pad(x, (0, 1))[:, :, :, 1:], layer.weight, padding=1)
    assert torch.allclose(layer(x)[..., 1:], expected[..., 1:], atol=1e-5)


def test_the_first_version_has_offsets_alone() -> None:
    layer = DeformConv2d(8, 12, stride=2, groups=2, deform_groups=2, modulated=False)
    assert layer.offset.weight.shape == (36, 8, 3, 3)
    assert layer.weight.shape == (12, 4, 3, 3)
    x = torch.randn(2, 8, 9, 11)
    assert torch.allclose(layer(x), F.conv2d(x, layer.weight, None, 2, 1, 1, 2), atol=1e-5)


def test_a_picture_does_not_see_the_others() -> None:
    x, offset, mask, weight, bias = scene(SHAPES[3], batch=3, seed=8)
    together = deform_conv2d(x, offset, mask, weight, bias, *SHAPES[3])
    for row in range(3):
        alone = deform_conv2d(x[row][None], offset[row][None], mask[row][None], weight, bias, *SHAPES[3])
        assert torch.equal(alone[0], together[row])
