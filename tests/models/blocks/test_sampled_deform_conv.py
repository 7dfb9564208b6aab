from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.blocks.deform_conv import DeformConv2d, deform_conv2d
from models.blocks.sampled_deform_conv import sampled_deform_conv2d
from tests.models.blocks.exported import FREE, Outputs, exported
from tests.models.blocks.test_deform_conv import SHAPES, scene


@pytest.mark.parametrize("spread", [0.0, 2.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_deformable_convolution(shape: tuple[int, int, int, int, int], spread: float) -> None:
    """Offsets that reach far beyond the map among them; modulated or not, with a bias or not."""
    x, offset, mask, weight, bias = scene(shape, batch=3, seed=1, spread=spread)
    for counts, added in ((mask, bias), (None, None)):
        wanted = deform_conv2d(x, offset, counts, weight, added, *shape)
        assert torch.allclose(sampled_deform_conv2d(x, offset, counts, weight, added, *shape), wanted, atol=2e-5)


def test_a_layer_takes_either_operator() -> None:
    torch.manual_seed(0)
    native = DeformConv2d(8, 12, deform_groups=2)
    torch.nn.init.normal_(native.offset.weight, std=0.3)
    twin = DeformConv2d(8, 12, deform_groups=2, operator=sampled_deform_conv2d)
    twin.load_state_dict(native.state_dict())
    x = torch.randn(2, 8, 9, 11)
    assert torch.allclose(twin(x), native(x), atol=1e-4)


def test_pytorch_and_onnx_runtime_agree_and_a_picture_does_not_see_the_others() -> None:
    shape = SHAPES[3]

    def convolve(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return sampled_deform_conv2d(x, offset, mask, weight, bias, *shape)

    free = [{0: FREE}, {0: FREE}, {0: FREE}, {}, {}]
    run, operators = exported(Outputs(convolve), scene(shape, 2, seed=3), free)
    assert operators.count("GridSample") == 4
    assert "DeformConv" not in operators
    inputs = scene(shape, 3, seed=4, spread=4.0)
    (together,) = run(*inputs)
    assert np.abs(together - convolve(*inputs).numpy()).max() < 1e-4
    for row in range(3):
        (alone,) = run(*(tensor[row : row + 1] for tensor in inputs[:3]), *inputs[3:])
        assert np.array_equal(alone[0], together[row])
