"""The detectors' resize rule: the sizes and the pixels of each code base."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter
from safetensors.numpy import load_file

from server.geometry import Picture, Resample
from server.preprocess import AnyInput, FixedInput, InputSpec, ShortestEdgeInput, place
from tests.shared_data import shared

Rounding = Literal["floor", "nearest", "short_first"]


def spec(short: int, long: int, rounding: Rounding = "nearest", resample: Resample = "linear") -> ShortestEdgeInput:
    return ShortestEdgeInput(short_side=short, long_side=long, multiple=32, rounding=rounding, resample=resample)


def whole(pixels: np.ndarray) -> Picture:
    return Picture(pixels, (0, 0, pixels.shape[1], pixels.shape[0]))


@pytest.mark.parametrize(
    ("size", "rounding", "content"),
    [
        ((60, 47), "floor", (122, 95)),
        ((60, 47), "nearest", (123, 96)),
        ((60, 47), "short_first", (122, 96)),
        ((400, 1000), "floor", (49, 123)),
        ((1000, 400), "short_first", (122, 49)),
        ((2, 900), "nearest", (1, 123)),
    ],
)
def test_the_short_side_rules_unless_the_long_one_grows_too_long(
    size: tuple[int, int], rounding: Rounding, content: tuple[int, int]
) -> None:
    assert spec(96, 123, rounding).frame(size).content == content


@given(
    size=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    rounding=st.sampled_from(["floor", "nearest", "short_first"]),
)
def test_every_picture_fits_the_largest_input(size: tuple[int, int], rounding: Rounding) -> None:
    chosen = spec(800, 1333, rounding)
    frame = chosen.frame(size)
    for inner, outer, largest in zip(frame.content, frame.input_size, chosen.max_size, strict=True):
        assert 1 <= inner <= outer <= largest
        assert outer % 32 == 0
        assert outer - inner < 32


def test_a_manifest_tells_the_three_kinds_of_input_apart() -> None:
    read: TypeAdapter[AnyInput] = TypeAdapter(AnyInput)
    for one in (
        spec(800, 1333),
        FixedInput(size=(64, 64), resize="stretch"),
        InputSpec(multiple=16, max_size=(64, 64), short_side=32, max_scale=2.0),
    ):
        assert read.validate_json(read.dump_json(one)) == one


def test_a_short_side_longer_than_the_long_one_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than long_side"):
        spec(900, 800)


@pytest.mark.parametrize("size", [(37, 61), (8, 9), (20, 24)])
def test_triangle_is_what_pillow_calls_bilinear(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 61, 3)).astype(np.uint8)
    chosen = spec(min(size), max(size), resample="triangle")
    frame = chosen.frame((37, 61))
    height, width = frame.content
    wanted = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    assert (place(whole(pixels), frame)[:height, :width] == wanted).all()


def test_triangle_leaves_out_what_a_reduced_picture_shows_beyond_the_original() -> None:
    """Seven columns decoded at half their size are four, and half of the last one is not the picture's."""
    reduced = np.repeat(np.array([[[0] * 3, [80] * 3, [160] * 3, [240] * 3]], np.uint8), 8, axis=0)
    frame = ShortestEdgeInput(short_side=2, long_side=2, multiple=1, resample="triangle").frame((16, 7))
    assert frame.content == (2, 1)
    cut = place(Picture(reduced, (0, 0, 8, 16)), frame)
    assert cut.mean() < 120  # less than the mean of all four columns


def test_pixels_are_those_of_the_code_bases() -> None:
    tensors = load_file(shared("golden/conventions_resize") / "a.safetensors")
    picture = whole(tensors["in/image_u8"])
    rules: list[tuple[str, Rounding, Resample]] = [
        ("detectron2_PIL", "nearest", "triangle"),
        ("mmcv_imrescale_cv2", "nearest", "linear"),
    ]
    for name, rounding, resample in rules:
        frame = spec(64, 90, rounding, resample).frame((75, 101))
        height, width = frame.content
        assert (place(picture, frame)[:height, :width] == tensors[f"det/{name}"]).all()
