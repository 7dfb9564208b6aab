"""Run-length strings: laws, one drawn mask, and pycocotools to the bit."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco

from server.rle import counts_to_mask, counts_to_strings, encode, patches_to_counts, string_to_counts
from server.segments import Patch, patch_to_box
from tests.shared_data import shared

Size = tuple[int, int]

unhurried = settings(deadline=None)  # a busy machine is no failure


def paste(patch: Patch, size: Size) -> NDArray[np.bool_]:
    """The patch in its full frame."""
    frame = np.zeros(size, np.bool_)
    h, w = patch.bits.shape
    frame[patch.y : patch.y + h, patch.x : patch.x + w] = patch.bits
    return frame


def cocoapi_encode(patches: Sequence[Patch], size: Size) -> list[str]:
    """What pycocotools writes for the full frames."""
    frames = np.zeros((*size, len(patches)), np.uint8, order="F")
    for i, patch in enumerate(patches):
        h, w = patch.bits.shape
        frames[patch.y : patch.y + h, patch.x : patch.x + w, i] = patch.bits
    return [rle["counts"].decode() for rle in coco.encode(frames)]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Patch], Size]:
    """Up to four patches anywhere in a frame of up to 12 x 12."""
    height, width = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    patches = []
    for _ in range(draw(st.integers(0, 4))):
        h, w = draw(st.integers(0, height)), draw(st.integers(0, width))
        y, x = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
        patches.append(Patch(y, x, draw(arrays(np.bool_, (h, w)))))
    return patches, (height, width)


def random_scene(random: np.random.Generator, masks: int) -> tuple[list[Patch], Size]:
    """Many patches in one frame of up to 40 x 40; whole sides, borders, empty and full masks come often."""
    height, width = (int(side) for side in random.choice([1, *range(1, 41)], size=2))
    hs, ws = (
        np.where(random.random(masks) < 0.3, side, random.integers(0, side + 1, masks)) for side in (height, width)
    )
    ys, xs = ((random.choice([0.0, 0.3, 0.7, 1.0], masks) * room).astype(int) for room in (height - hs, width - ws))
    shares = random.choice([0.0, 0.02, 0.2, 0.5, 0.8, 0.98, 1.0], masks)
    coarse = random.random(masks) < 0.5  # a coarse mask has parts and holes of several pixels
    patches = []
    for h, w, y, x, share, blow_up in zip(hs, ws, ys, xs, shares, 1 + 2 * coarse, strict=True):
        bits = random.random((-(-h // blow_up), -(-w // blow_up))) < share
        if blow_up > 1:
            bits = bits.repeat(blow_up, axis=0).repeat(blow_up, axis=1)[:h, :w]
        patches.append(Patch(int(y), int(x), bits))
    return patches, (height, width)


# Laws


@unhurried
@given(scenes())
def test_runs_add_up_to_the_frame(scene: tuple[list[Patch], Size]) -> None:
    patches, (height, width) = scene
    assert [runs.sum() for runs in patches_to_counts(patches, (height, width))] == [height * width] * len(patches)


@unhurried
@given(scenes())
def test_only_the_first_run_may_be_empty(scene: tuple[list[Patch], Size]) -> None:
    assert all((runs[1:] > 0).all() for runs in patches_to_counts(*scene))


@unhurried
@given(scenes())
def test_a_mask_survives_the_round_trip(scene: tuple[list[Patch], Size]) -> None:
    patches, size = scene
    for patch, text in zip(patches, encode(patches, size), strict=True):
        np.testing.assert_array_equal(counts_to_mask(string_to_counts(text), size), paste(patch, size))


@unhurried
@given(scenes())
def test_a_patch_encodes_as_its_full_frame(scene: tuple[list[Patch], Size]) -> None:
    patches, size = scene
    assert encode(patches, size) == encode([Patch(0, 0, paste(patch, size)) for patch in patches], size)


@unhurried
@given(scenes())
def test_masks_encoded_together_encode_as_each_alone(scene: tuple[list[Patch], Size]) -> None:
    patches, size = scene
    assert encode(patches, size) == [encode([patch], size)[0] for patch in patches]


@unhurried
@given(st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8), max_size=4))
def test_runs_of_any_length_survive_the_string(counts: list[list[int]]) -> None:
    texts = counts_to_strings([np.array(runs, np.int64) for runs in counts])
    assert [string_to_counts(text).tolist() for text in texts] == counts


# Examples

RING = np.array(
    [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 1, 1, 0],
    ],
    np.bool_,
)


def runs_of(patch: Patch, size: Size) -> list[int]:
    return [int(run) for run in patches_to_counts([patch], size)[0]]


@pytest.mark.parametrize("patch", [Patch(0, 0, RING), Patch(1, 1, RING[1:, 1:4]), Patch(0, 1, RING[:, 1:])])
def test_a_ring_is_written_as_the_module_draws_it(patch: Patch) -> None:
    assert runs_of(patch, (4, 5)) == [5, 3, 1, 1, 1, 1, 1, 3, 4]
    assert encode([patch], (4, 5)) == ["531N00023"]


def test_a_run_goes_on_from_the_bottom_of_a_column_to_the_top_of_the_next() -> None:
    bits = np.array(
        [
            [0, 0, 1, 0],
            [0, 1, 1, 0],
            [0, 1, 0, 0],
        ],
        np.bool_,
    )
    assert runs_of(Patch(0, 0, bits), (3, 4)) == [4, 4, 4]


def test_no_empty_run_stands_at_the_end() -> None:
    corner = np.ones((1, 1), np.bool_)
    assert runs_of(Patch(2, 3, corner), (3, 4)) == [11, 1]
    assert runs_of(Patch(0, 0, corner), (3, 4)) == [0, 1, 11]
    assert runs_of(Patch(0, 0, np.ones((3, 4), np.bool_)), (3, 4)) == [0, 12]
    assert runs_of(Patch(1, 1, np.zeros((0, 0), np.bool_)), (3, 4)) == [12]


def test_a_last_pixel_leaves_the_next_mask_alone() -> None:
    full = Patch(0, 0, np.ones((3, 4), np.bool_))
    assert [runs.tolist() for runs in patches_to_counts([full, full, full], (3, 4))] == [[0, 12]] * 3


def test_an_image_without_masks_has_no_strings() -> None:
    assert encode([], (3, 4)) == []


def test_a_view_encodes_as_its_copy() -> None:
    bits = np.random.default_rng(0).random((30, 40)) < 0.5
    views = [bits.T, bits[::2, 1::3], bits[::-1, ::-1]]
    patches, copies = ([Patch(2, 3, each) for each in group] for group in (views, [view.copy() for view in views]))
    assert encode(patches, (50, 60)) == encode(copies, (50, 60))


@pytest.mark.parametrize("text", ["", "53X", "5 3", "5p", "/", "é"])
def test_a_malformed_string_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="numbers in the characters"):
        string_to_counts(text)


@pytest.mark.parametrize("runs", [[], [11], [13], [-1, 13]])
def test_runs_that_miss_the_frame_are_refused(runs: list[int]) -> None:
    with pytest.raises(ValueError, match="3 \\* 4 = 12"):
        counts_to_mask(np.array(runs, np.int64), (3, 4))


# Oracle


def test_a_hundred_thousand_random_masks_equal_pycocotools() -> None:
    random = np.random.default_rng(0)
    for _ in range(500):
        patches, size = random_scene(random, masks=200)
        assert encode(patches, size) == cocoapi_encode(patches, size)


@pytest.mark.parametrize(
    ("patch", "size"),
    [
        pytest.param(Patch(0, 0, np.zeros((5, 7), np.bool_)), (5, 7), id="empty"),
        pytest.param(Patch(0, 0, np.ones((5, 7), np.bool_)), (5, 7), id="full"),
        pytest.param(Patch(3, 4, np.zeros((0, 0), np.bool_)), (5, 7), id="patch of 0 x 0"),
        pytest.param(Patch(5, 7, np.zeros((0, 0), np.bool_)), (5, 7), id="patch of 0 x 0 in the far corner"),
        pytest.param(Patch(0, 2, np.zeros((0, 3), np.bool_)), (5, 7), id="patch of 0 x 3"),
        pytest.param(Patch(1, 7, np.zeros((3, 0), np.bool_)), (5, 7), id="patch of 3 x 0"),
        pytest.param(Patch(2, 2, np.ones((1, 1), np.bool_)), (5, 7), id="one pixel"),
        pytest.param(Patch(0, 0, np.ones((1, 1), np.bool_)), (1, 1), id="frame of one pixel"),
        pytest.param(Patch(0, 2, np.array([[1, 0, 1, 1]], np.bool_)), (1, 9), id="1 x N"),
        pytest.param(Patch(2, 0, np.array([[1], [0], [1]], np.bool_)), (9, 1), id="N x 1"),
        pytest.param(Patch(0, 0, np.ones((2, 3), np.bool_)), (5, 7), id="top left"),
        pytest.param(Patch(3, 4, np.ones((2, 3), np.bool_)), (5, 7), id="bottom right"),
        pytest.param(Patch(0, 2, np.ones((5, 3), np.bool_)), (5, 7), id="whole columns"),
        pytest.param(Patch(0, 4, np.ones((5, 3), np.bool_)), (5, 7), id="whole columns to the end"),
        pytest.param(Patch(2, 0, np.ones((2, 7), np.bool_)), (5, 7), id="whole rows"),
        pytest.param(Patch(0, 0, np.pad(RING, 3)), (12, 13), id="empty margins and a hole"),
        pytest.param(Patch(1, 2, np.tile(RING, (3, 4))), (14, 23), id="several parts"),
        pytest.param(Patch(0, 0, np.indices((6, 8)).sum(axis=0) % 2 == 0), (6, 8), id="chessboard"),
    ],
)
def test_a_border_case_equals_pycocotools(patch: Patch, size: Size) -> None:
    assert encode([patch], size) == cocoapi_encode([patch], size)


def test_large_masks_among_small_ones_equal_pycocotools() -> None:
    random = np.random.default_rng(0)
    size = (700, 900)
    patches = [
        Patch(0, 0, random.random(size) < 0.5),
        Patch(0, 0, np.ones((1, 1), np.bool_)),
        Patch(0, 300, np.ones((700, 600), np.bool_)),
        Patch(100, 0, random.random((600, 900)) < 0.001),
        Patch(699, 899, np.ones((1, 1), np.bool_)),
    ]
    assert encode(patches, size) == cocoapi_encode(patches, size)


@pytest.mark.parametrize("size", [(1, 2_000_003), (2_000_003, 1), (3, 700_001), (700_001, 3)])
def test_the_longest_rows_and_columns_are_written_as_cocoapi_does(size: Size) -> None:
    random = np.random.default_rng(0)
    height, width = size
    whole = Patch(0, 0, random.random(size) < 0.01)
    inner = Patch(height // 3, width // 3, random.random((height - height // 3, width - width // 3)) < 0.01)
    assert encode([whole, inner], size) == cocoapi_encode([whole, inner], size)


def test_a_walk_through_more_pixels_than_32_bits_count_is_that_of_each_mask_alone() -> None:
    size = (6000, 8000)
    random = np.random.default_rng(0)
    patches = [Patch(90 * i, 120 * i, random.random((40, 50)) < 0.5) for i in range(60)]
    assert len(patches) * size[0] * size[1] > 2**31
    assert encode(patches, size) == [encode([patch], size)[0] for patch in patches]
    assert [runs.sum() for runs in patches_to_counts(patches, size)] == [48_000_000] * 60


def test_runs_of_fifty_megapixels_are_written_as_cocoapi_does() -> None:
    size = (5000, 10000)
    counts = [[50_000_000], [0, 50_000_000], [1, 24_999_999, 1, 24_999_998, 1], [20_000_000, 1, 1, 29_999_997, 1]]
    expected = [
        rle["counts"].decode() for rle in coco.frPyObjects([{"counts": c, "size": size} for c in counts], *size)
    ]
    assert counts_to_strings([np.array(runs, np.int64) for runs in counts]) == expected


# Golden: what pycocotools wrote, recorded


def test_recorded_masks_have_the_recorded_strings_and_back() -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    folder = shared("golden/conventions_rle_polygon")
    masks = numpy_files.load_file(folder / "a.safetensors")
    recorded = json.loads((folder / "a.meta.json").read_text())["rle"]
    assert len(recorded) >= 20
    for each in recorded:
        bits, size = masks[f"det/{each['id']}"].astype(bool), tuple(each["size"])
        assert encode([Patch(0, 0, bits)], size) == [each["counts"]], each["id"]
        (runs,) = patches_to_counts([Patch(0, 0, bits)], size)
        assert runs.tolist() == each["uncompressed"] == string_to_counts(each["counts"]).tolist()
        np.testing.assert_array_equal(counts_to_mask(string_to_counts(each["counts"]), size), bits)
        x1, y1, x2, y2 = patch_to_box(Patch(0, 0, bits))
        assert [x1, y1, x2 - x1, y2 - y1] == each["bbox"]
        assert np.count_nonzero(bits) == each["area"]


# Cost


def test_memory_follows_the_objects_and_not_the_frame() -> None:
    disc = np.hypot(*(np.indices((300, 300)) - 149.5)) < 150
    patches = [Patch(130 * i, 180 * i, disc) for i in range(20)]
    tracemalloc.start()
    encode(patches, (3000, 4000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # a frame is 12 MB
