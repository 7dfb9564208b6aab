"""The overlay: what lies outside the masks stays, what lies inside is tinted, the best is on top."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from server.errors import ImageTooLarge
from server.overlay import draw, outline_thickness, position_to_colour
from server.segments import Patch, Segment, patch_to_box

Picture = NDArray[np.uint8]

unhurried = settings(deadline=None)  # a busy machine is no failure


def segment(y: int, x: int, bits: np.ndarray) -> Segment:
    patch = Patch(y, x, bits.astype(bool))
    return Segment(label=0, score=0.5, box=patch_to_box(patch), patch=patch)


def drawn(image: Picture, segments: Sequence[Segment]) -> Picture:
    """The overlay as a client sees it."""
    picture = Image.open(io.BytesIO(draw(image, segments)))
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    return np.asarray(picture)


def covered(image: Picture, segments: Sequence[Segment]) -> NDArray[np.bool_]:
    """(H, W): where there is any mask."""
    frame = np.zeros(image.shape[:2], bool)
    for patch in (each.patch for each in segments):
        frame[patch.y : patch.y + patch.bits.shape[0], patch.x : patch.x + patch.bits.shape[1]] |= patch.bits
    return frame


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Picture, list[Segment]]:
    """A picture of up to 9 x 9 and up to four masks anywhere in it."""
    height, width = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    image = draw(arrays(np.uint8, (height, width, 3)))
    segments = []
    for _ in range(draw(st.integers(0, 4))):
        h, w = draw(st.integers(0, height)), draw(st.integers(0, width))
        y, x = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
        segments.append(segment(y, x, draw(arrays(np.bool_, (h, w)))))
    return image, segments


@given(scenes())
@unhurried
def test_outside_the_masks_the_picture_is_what_it_was(scene: tuple[Picture, list[Segment]]) -> None:
    image, segments = scene
    before = image.copy()
    outside = ~covered(image, segments)
    assert (drawn(image, segments)[outside] == image[outside]).all()
    assert (image == before).all()


@given(scenes())
@unhurried
def test_what_lies_behind_does_not_shine_through(scene: tuple[Picture, list[Segment]]) -> None:
    image, segments = scene
    for last in range(len(segments)):
        in_front = covered(image, segments[: last + 1])
        assert (drawn(image, segments)[in_front] == drawn(image, segments[: last + 1])[in_front]).all()


def test_a_square_is_filled_and_has_a_solid_outline() -> None:
    image = np.full((7, 8, 3), 100, np.uint8)
    picture = drawn(image, [segment(1, 2, np.ones((5, 5)))])
    red = position_to_colour(0)
    solid, filled = np.zeros((7, 8), bool), np.zeros((7, 8), bool)
    solid[1:6, 2:7], filled[2:5, 3:6] = True, True
    solid &= ~filled
    assert (picture[solid] == red).all()
    assert (picture[filled] == np.round(0.55 * 100 + 0.45 * red)).all()
    assert (picture[~solid & ~filled] == 100).all()


def test_an_outline_follows_the_border_of_the_picture_and_of_holes() -> None:
    bits = np.ones((7, 7))
    bits[3, 3] = 0
    picture = drawn(np.zeros((7, 7, 3), np.uint8), [segment(0, 0, bits)])
    solid = (picture == position_to_colour(0)).all(axis=2)
    assert solid.astype(int).tolist() == [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 0, 1],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 1, 0, 1, 0, 1],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 0, 0, 0, 0, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ]


def test_outlines_grow_with_the_picture() -> None:
    assert [outline_thickness(size) for size in ((480, 640), (3000, 4000), (4000, 3000))] == [1, 5, 5]


def test_a_position_has_its_colour_in_every_picture() -> None:
    pixel = np.ones((1, 1))
    for image in (np.zeros((3, 9, 3), np.uint8), np.full((5, 9, 3), 200, np.uint8)):
        picture = drawn(image, [segment(2, x, pixel) for x in range(9)])
        assert picture[2].tolist() == [position_to_colour(position).tolist() for position in range(9)]


def test_colours_are_distinct_and_neighbours_in_the_list_far_apart() -> None:
    colours = np.array([position_to_colour(position) for position in range(100)], int)
    assert len(np.unique(colours, axis=0)) == 100
    assert (np.abs(np.diff(colours, axis=0)).sum(axis=1) > 150).all()
    assert (colours.max(axis=1) > 180).all()


def test_pictures_and_masks_in_any_memory_are_taken() -> None:
    random = np.random.default_rng(0)
    image, bits = random.integers(0, 256, (12, 10, 3), np.uint8), random.random((8, 7)) < 0.7
    wanted = drawn(image, [segment(2, 3, bits)])
    turned = np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1]
    turned.flags.writeable = False
    assert (drawn(turned, [segment(2, 3, np.asfortranarray(bits))]) == wanted).all()
    assert (drawn(image, [segment(2, 3, np.repeat(bits, 2, axis=1)[:, ::2])]) == wanted).all()


def test_a_picture_longer_than_png_readers_take_is_refused() -> None:
    with pytest.raises(ImageTooLarge, match="1000001 x 1"):
        draw(np.zeros((1, 1_000_001, 3), np.uint8), [])
