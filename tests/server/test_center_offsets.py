"""Objects from votes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.geometry import Frame
from server.masks import CenterOffsetMasks

MASKS = CenterOffsetMasks(threshold=0.5, min_votes=4, min_area=1)


def planes(labels: NDArray[np.integer]) -> dict[str, NDArray[np.float32]]:
    """What a perfect network says of a label map (0 is background)."""
    inside = (labels > 0).astype(np.float32)
    offsets = np.zeros((2, *labels.shape), np.float32)
    for label in range(1, labels.max() + 1):
        rows, columns = np.nonzero(labels == label)
        if rows.size:
            offsets[0, rows, columns] = rows.mean() - rows
            offsets[1, rows, columns] = columns.mean() - columns
    return {"inside": inside, "offsets": offsets}


def frame_of(labels: NDArray[np.integer], scale: float = 1.0) -> Frame:
    size = (round(labels.shape[0] / scale), round(labels.shape[1] / scale))
    return Frame(size=size, input_size=labels.shape, content=labels.shape)


def drawn(segments: list, size: tuple[int, int]) -> NDArray[np.integer]:
    """Segments back into a label map; they must not overlap."""
    canvas = np.zeros(size, int)
    for number, segment in enumerate(segments, start=1):
        patch = segment.patch
        region = canvas[patch.y : patch.y + patch.bits.shape[0], patch.x : patch.x + patch.bits.shape[1]]
        assert region.shape == patch.bits.shape, "the patch reaches outside the picture"
        assert not region[patch.bits].any(), "two segments share a pixel"
        region[patch.bits] = number
    return canvas


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(6, 15), st.integers(6, 15)), min_size=0, max_size=6
    ),
    scale=st.sampled_from([0.5, 0.7, 1.0, 4 / 3, 1.97, 2.0]),
)
def test_perfect_planes_give_back_every_object(boxes: list[tuple[int, int, int, int]], scale: float) -> None:
    labels = np.zeros((64, 96), int)
    for number, (y, x, height, width) in enumerate(boxes):
        top, left = 2 * y + 32 * (number // 3), 2 * x + 32 * (number % 3)
        labels[top : min(top + height, 64), left : min(left + width, 32 * (number % 3) + 31)] = number + 1
    frame = frame_of(labels, scale)
    segments = list(MASKS.decode(planes(labels), frame, 0.0))
    assert len(segments) == len({int(label) for label in np.unique(labels)} - {0})
    canvas = drawn(segments, frame.size)
    assert ((canvas > 0).sum() > 0) == bool(boxes)
    if scale == 1.0:
        assert ((canvas > 0) == (labels > 0)).all()
    for segment in segments:
        assert 0.0 <= segment.score <= 1.0
        assert segment.area > 0


def test_two_touching_squares_are_two_objects() -> None:
    labels = np.zeros((16, 32), int)
    labels[4:12, 4:14] = 1
    labels[4:12, 14:24] = 2
    segments = sorted(MASKS.decode(planes(labels), frame_of(labels), 0.0), key=lambda s: s.box)
    assert [segment.box for segment in segments] == [(4, 4, 14, 12), (14, 4, 24, 12)]
    assert [segment.area for segment in segments] == [80, 80]


@pytest.mark.parametrize("scale", [0.7, 1.0, 4 / 3, 1.97, 2.0])
def test_touching_objects_never_share_a_pixel_and_leave_none_out(scale: float) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:384, :512]
    middles = [(y + rng.uniform(0, 14), x + rng.uniform(0, 14)) for y in range(6, 384, 32) for x in range(6, 512, 32)]
    labels = np.argmin([(rows - y) ** 2 + (columns - x) ** 2 for y, x in middles], axis=0) + 1  # cells, wall to wall
    frame = frame_of(labels, scale)
    segments = list(MASKS.decode(planes(labels), frame, 0.0))
    assert len(segments) == len(middles)
    assert (drawn(segments, frame.size) > 0).all()


def test_an_empty_picture_has_no_objects() -> None:
    labels = np.zeros((16, 16), int)
    assert not list(MASKS.decode(planes(labels), frame_of(labels), 0.0))


def test_what_lies_in_the_padding_is_not_seen() -> None:
    labels = np.zeros((32, 32), int)
    labels[4:12, 4:12] = 1
    labels[20:30, 4:12] = 2
    frame = Frame(size=(16, 32), input_size=(32, 32), content=(16, 32))
    assert [segment.box for segment in MASKS.decode(planes(labels), frame, 0.0)] == [(4, 4, 12, 12)]


def test_disagreeing_votes_cost_score_and_the_threshold_drops_them() -> None:
    labels = np.zeros((32, 32), int)
    labels[8:24, 8:24] = 1
    sure = planes(labels)
    rng = np.random.default_rng(0)
    unsure = sure | {"offsets": sure["offsets"] + rng.normal(0, 2.0, (2, 32, 32)).astype(np.float32)}
    wide = CenterOffsetMasks(threshold=0.5, min_votes=4, min_area=1, apart=31)
    (clear,) = list(wide.decode(sure, frame_of(labels), 0.0))
    vague = max(wide.decode(unsure, frame_of(labels), 0.0), key=lambda segment: segment.area)
    assert clear.score > 0.99
    assert vague.score < 0.8
    assert not list(wide.decode(unsure, frame_of(labels), 0.9))


def test_a_picture_seen_at_twice_its_size_comes_back_at_its_own() -> None:
    labels = np.zeros((64, 64), int)
    labels[20:40, 10:30] = 1
    (segment,) = list(MASKS.decode(planes(labels), frame_of(labels, 2.0), 0.0))
    assert segment.box == (5.0, 10.0, 15.0, 20.0)
    assert segment.area == 100


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_the_smallest_pictures_work(size: tuple[int, int]) -> None:
    labels = np.ones(size, int)
    frame = Frame(size=size, input_size=size, content=size)
    for segment in CenterOffsetMasks(min_votes=1, min_area=1).decode(planes(labels), frame, 0.0):
        assert segment.area <= size[0] * size[1]
