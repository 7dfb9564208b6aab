from __future__ import annotations

import torch

from models.blocks.colours import ColourSpec, Normalise


def test_the_mean_goes_and_the_channels_turn() -> None:
    spec = ColourSpec(mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 5.0), order=(2, 1, 0))
    image = torch.tensor([[[[12, 26, 40]]]], dtype=torch.uint8)  # one pixel
    assert Normalise(spec)(image, torch.tensor([[1, 1]]))[0, :, 0, 0].tolist() == [2.0, 3.0, 2.0]


def test_beyond_the_picture_is_zero_after_the_mean_is_gone() -> None:
    images = torch.full((2, 4, 6, 3), 255, dtype=torch.uint8)
    x = Normalise(ColourSpec())(images, torch.tensor([[3, 6], [4, 2]], dtype=torch.int32))
    assert x.shape == (2, 3, 4, 6)
    assert (x[0, :, :3] != 0).all()
    assert not x[0, :, 3:].any()
    assert (x[1, :, :, :2] != 0).all()
    assert not x[1, :, :, 2:].any()
