"""Frames and placing: the way in and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from server.geometry import Picture
from server.pixels import SPARE
from server.preprocess import InputSpec, place

SPEC = InputSpec(multiple=16, max_size=(1408, 1408), short_side=512, max_scale=2.0)
sides = st.integers(1, 20_000)


@given(height=sides, width=sides)
def test_every_picture_fits_the_input_in_multiples(height: int, width: int) -> None:
    frame = SPEC.frame((height, width))
    for inner, outer, largest in zip(frame.content, frame.input_size, SPEC.max_size, strict=True):
        assert 1 <= inner <= outer <= largest
        assert outer % SPEC.multiple == 0
        assert outer - inner < SPEC.multiple


@given(height=sides, width=sides, box=st.tuples(*[st.floats(0, 1)] * 4))
def test_boxes_come_back_from_the_input(height: int, width: int, box: tuple[float, ...]) -> None:
    frame = SPEC.frame((height, width))
    boxes = np.array([box]) * [width, height, width, height]
    np.testing.assert_allclose(frame.to_original(frame.to_input(boxes)), boxes, rtol=1e-9, atol=1e-9)


@given(
    pixels=arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3))),
    reduction=st.sampled_from([2, 4]),
    beyond=st.tuples(*[st.integers(0, 3)] * 4),
    largest=st.integers(1, 24),
)
def test_a_reduced_picture_is_placed_like_its_pixels_at_full_size(
    pixels: NDArray[np.uint8], reduction: int, beyond: tuple[int, int, int, int], largest: int
) -> None:
    """Each of its pixels is `reduction` pixels square, and those beyond the original, first or last, do not count."""
    top, left, bottom, right = (length % reduction for length in beyond)
    bottom, right = (0 if top else bottom), (0 if left else right)
    large = pixels.repeat(reduction, axis=0).repeat(reduction, axis=1)
    rows, columns = large.shape[:2]
    original = large[top : rows - bottom, left : columns - right]
    height, width = original.shape[:2]
    frame = InputSpec(multiple=1, max_size=(largest, largest), short_side=1, max_scale=1.0).frame((height, width))
    assume(max(frame.scale) * reduction <= 1 / SPARE)  # as decoding chooses; nearer to 1 OpenCV may not scale at all
    reduced = place(Picture(pixels, (-left, -top, columns - left, rows - top)), frame)
    full = place(Picture(original, (0, 0, width, height)), frame)
    assert np.abs(reduced.astype(int) - full).max() <= 1  # rounding


@pytest.mark.parametrize(
    ("size", "content"),
    [
        ((256, 256), (512, 512)),  # enlarged to the short side
        ((100, 300), (200, 600)),  # but not by more than two
        ((520, 696), (520, 696)),  # large enough already
        ((3000, 4000), (1056, 1408)),  # shrunk to the largest input
        ((1, 20_000), (1, 1408)),
    ],
)
def test_the_scale_rule(size: tuple[int, int], content: tuple[int, int]) -> None:
    assert SPEC.frame(size).content == content


def test_a_placed_picture_lies_top_left_with_zeros_beyond() -> None:
    image = np.full((513, 600, 3), 200, np.uint8)
    frame = SPEC.frame((513, 600))
    tensor = place(Picture(image, (0, 0, 600, 513)), frame)
    assert tensor.shape == (528, 608, 3)
    assert frame.content == (513, 600)
    assert (tensor[:513, :600] == 200).all()
    assert not tensor[513:].any()
    assert not tensor[:, 600:].any()


def test_enlarging_keeps_pixel_centres_aligned() -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    image[10, 20] = 255
    tensor = place(Picture(image, (0, 0, 256, 256)), SPEC.frame((256, 256)))
    rows, columns = np.nonzero(tensor[..., 0])
    assert (rows.mean(), columns.mean()) == (20.5, 40.5)  # the middle of pixels 20..21 and 40..41


def test_a_spec_whose_largest_size_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        InputSpec(multiple=16, max_size=(1000, 1408), short_side=512, max_scale=2.0)
