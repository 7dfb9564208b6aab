"""Squares over boxes: what the code bases themselves made of them, and their rules painted in full frames."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.geometry import Frame
from server.masks import RoiMasks, bind
from server.masks.roi import RULES, Paste, boxes_to_original, paste_masks
from server.segments import Patch
from tests.shared_data import shared

Box = tuple[float, float, float, float]
Floats = NDArray[np.float32]
Outputs = dict[str, NDArray[Any]]
Size = tuple[int, int]

EVERY_RULE = pytest.mark.parametrize("paste", RULES)


def paint(patch: Patch, size: Size) -> NDArray[np.bool_]:
    frame = np.zeros(size, np.bool_)
    window = frame[patch.y : patch.y + patch.bits.shape[0], patch.x : patch.x + patch.bits.shape[1]]
    assert window.shape == patch.bits.shape, "the patch reaches outside the picture"
    window[:] = patch.bits
    return frame


def pasted(probabilities: Floats, box: Box | Floats, size: Size, paste: Paste, threshold: float = 0.5) -> Any:
    """One mask in its full frame, (H, W) bool."""
    (patch,) = paste_masks(probabilities[None], np.array([box], np.float32), size, paste, threshold)
    return paint(patch, size)


def as_it_is(size: Size) -> Frame:
    return Frame(size=size, input_size=size, content=size)


def one(logits: Floats, box: Box) -> Outputs:
    """One row."""
    return {
        "boxes": np.array([box], np.float32),
        "scores": np.array([0.9], np.float32),
        "labels": np.array([3], np.int32),
        "mask_logits": logits[None],
    }


# Laws


def tents(places: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """(pixels, cells): the share of every cell in every pixel."""
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(cells)))


def written_out(probabilities: Floats, box: Floats, size: Size, paste: Paste) -> NDArray[np.float64]:
    """Every pixel's value in a full frame, in float64. What is cut down to whole numbers is float32 before."""
    side = len(probabilities)
    framed = np.pad(probabilities.astype(np.float64), 1)
    axes = []
    for low, high, pixels in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        if paste == "detectron2":
            places = (np.arange(pixels) + 0.5 - float(low)) / (float(high) - float(low)) * side - 0.5
            axes.append(tents(places.clip(-1, side) + 1, side + 2))
            continue
        half = (high - low) * np.float32(0.5) * np.float32((side + 2) / side)
        centre = (high + low) * np.float32(0.5)
        first, last = int(centre - half), int(centre + half)
        inside = np.arange(pixels) - first
        places = (inside + 0.5) * (side + 2) / max(last - first + 1, 1) - 0.5
        axes.append(
            tents(places.clip(0, side + 1), side + 2) * ((inside >= 0) & (inside <= last - first))[:, None],
        )
    return np.asarray(axes[0] @ framed @ axes[1].T)


corner = st.one_of(
    st.floats(-80, 200, width=32), st.integers(-20, 120).map(lambda half: half / 2), st.floats(-1e6, 1e6, width=32)
)


@settings(deadline=None, max_examples=400)
@given(
    paste=st.sampled_from(sorted(RULES)),
    box=st.tuples(corner, corner, corner, corner),
    side=st.sampled_from([1, 2, 7, 14, 28, 56, 112]),
    size=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    threshold=st.sampled_from([0.5, 0.25, 0.9]),
    seed=st.integers(0, 10_000),
)
def test_any_box_gives_what_the_full_frame_gives(
    paste: Paste, box: Box, side: int, size: Size, threshold: float, seed: int
) -> None:
    x1, y1, x2, y2 = box
    corners = np.array([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], np.float32)
    probabilities = np.random.default_rng(seed).random((side, side), np.float32)
    found = pasted(probabilities, corners, size, paste, threshold)
    extent = float((corners[2:] - corners[:2]).min())
    if extent == 0 and paste == "detectron2":
        assert not found.any()
        return
    values = written_out(probabilities, corners, size, paste)
    cells_off = 1e-6 * side * (1 + np.abs(corners).max() / max(extent, 1.0 if paste == "torchvision" else 1e-20))
    clear = np.abs(values - threshold) > 4 * cells_off + 1e-6
    np.testing.assert_array_equal(found[clear], values[clear] > threshold)


@EVERY_RULE
def test_many_masks_are_those_of_each_alone(paste: Paste) -> None:
    random = np.random.default_rng(0)
    rows, side = 20, 112  # more cells than are worked on at once
    boxes = np.sort(random.uniform(-10, 60, (rows, 2, 2)), axis=1).reshape(rows, 4).astype(np.float32)
    outputs: Outputs = {
        "boxes": boxes,
        "scores": np.linspace(1, 0.1, rows, dtype=np.float32),
        "labels": np.arange(rows, dtype=np.int32),
        "mask_logits": random.normal(0, 3, (rows, side, side)).astype(np.float32),
    }
    frame = Frame(size=(60, 40), input_size=(64, 64), content=(64, 43))
    masks = RoiMasks(paste=paste)
    together = list(masks.decode(outputs, frame, 0.0))
    assert [segment.label for segment in together] == list(range(rows))
    for row, segment in enumerate(together):
        (alone,) = masks.decode({name: tensor[row : row + 1] for name, tensor in outputs.items()}, frame, 0.0)
        np.testing.assert_array_equal(paint(segment.patch, frame.size), paint(alone.patch, frame.size))


# Golden: what the code bases themselves made, to the pixel


def unpacked(packed: NDArray[np.uint8], size: Size) -> NDArray[np.bool_]:
    return np.unpackbits(packed, axis=1, count=size[0] * size[1]).reshape(-1, *size).astype(bool)


def flipped(probabilities: Floats, boxes: Floats, paste: Paste, wanted: NDArray[np.bool_]) -> int:
    size = (wanted.shape[1], wanted.shape[2])
    patches = paste_masks(probabilities, boxes, size, paste, 0.5)
    return sum(int(np.count_nonzero(paint(patch, size) != mask)) for patch, mask in zip(patches, wanted, strict=True))


def tensors_of(case: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    numpy_files = pytest.importorskip("safetensors.numpy")
    folder = shared("golden")
    return numpy_files.load_file(folder / f"{case}.safetensors"), json.loads((folder / f"{case}.meta.json").read_text())


@pytest.mark.parametrize(
    ("recorded", "paste", "wrong"),
    [
        ("detectron2", "detectron2", 0),
        ("mmdet_ge_0.5", "detectron2", 0),
        ("torchvision_gt_0.5", "torchvision", 0),
        ("detectron2", "torchvision", 890),
        ("torchvision_gt_0.5", "detectron2", 890),
    ],
)
def test_pasted_squares_are_those_of_each_code_base_and_not_those_of_the_other(
    recorded: str, paste: Paste, wrong: int
) -> None:
    tensors, meta = tensors_of("conventions_mask_paste/a")
    wanted = unpacked(tensors[f"det/{recorded}"], tuple(meta["HW"]))
    assert flipped(tensors["in/soft_masks"], tensors["in/boxes"], paste, wanted) == wrong


@pytest.mark.parametrize(
    ("case", "paste"),
    [
        ("torchvision_maskrcnn_r50_fpn/a", "torchvision"),
        ("torchvision_maskrcnn_r50_fpn/c1", "torchvision"),
        ("torchvision_maskrcnn_r50_fpn/c2", "torchvision"),
        ("torchvision_maskrcnn_r50_fpn_v2/a", "torchvision"),
        ("mmdet_mask_rcnn_r50_fpn/c1", "detectron2"),
        ("mmdet_mask_rcnn_r50_fpn/c2", "detectron2"),
    ],
)
def test_logits_and_input_boxes_become_the_recorded_masks(case: str, paste: Paste) -> None:
    tensors, meta = tensors_of(case)
    wanted = unpacked(tensors["det/masks_packed"], tuple(meta["det_masks_shape"][1:]))
    labels = tensors["det/labels"]
    logits = tensors.get("raw/mask_logits", tensors.get("raw/roi_head.mask_head#0"))
    assert logits is not None
    size = (wanted.shape[1], wanted.shape[2])
    frame, boxes = as_it_is(size), tensors["det/boxes"]
    if "raw/mask_rois" in tensors:
        height, width = meta["img_shape"]
        frame = Frame(size=size, input_size=(height + 7, width), content=(height, width))
        boxes = tensors["raw/mask_rois"]
    outputs: Outputs = {
        "boxes": boxes,
        "scores": tensors["det/scores"],
        "labels": labels.astype(np.int32),
        "mask_logits": logits[np.arange(len(labels)), labels],
    }
    bind(outputs, RoiMasks.legend)
    segments = list(RoiMasks(paste=paste).decode(outputs, frame, 0.0))
    assert len(segments) == len(wanted)
    for segment, mask, box in zip(segments, wanted, tensors["det/boxes"], strict=True):
        np.testing.assert_array_equal(paint(segment.patch, size), mask)
        np.testing.assert_allclose(segment.box, box.clip(0, [*size[::-1], *size[::-1]]), rtol=1e-6)


@pytest.mark.parametrize(
    ("case", "paste"),
    [
        ("d2_mask_rcnn_R_50_FPN/a", "detectron2"),
        ("d2_mask_rcnn_R_50_FPN/c1", "detectron2"),
        ("d2_mask_rcnn_R_50_FPN/c2", "detectron2"),
        ("d2_mask_rcnn_R_50_C4/a", "detectron2"),
        ("d2_mask_rcnn_R_50_DC5/a", "detectron2"),
        ("d2_mask_rcnn_R_50_FPN_dconv/a", "detectron2"),
        ("mrb_mask_rcnn_r50_fpn/a", "torchvision"),
        ("orig_maskscoring_rcnn_r50_fpn/a", "torchvision"),
    ],
)
def test_recorded_probabilities_become_the_recorded_masks(case: str, paste: Paste) -> None:
    tensors, meta = tensors_of(case)
    wanted = unpacked(tensors["det/masks_packed"], tuple(meta["det_masks_shape"][1:]))
    probabilities = tensors.get("raw/mask_prob_28", tensors.get("raw/roi_heads.mask_head#0.0.pred_masks"))
    assert probabilities is not None
    assert flipped(probabilities[:, 0], tensors["det/boxes"], paste, wanted) == 0
    other: Paste = "detectron2" if paste == "torchvision" else "torchvision"
    assert flipped(probabilities[:, 0], tensors["det/boxes"], other, wanted) > 0.002 * np.count_nonzero(wanted)


@pytest.mark.parametrize(
    ("case", "rois"),
    [
        ("torchvision_maskrcnn_r50_fpn/c1", "raw/mask_rois"),
        ("torchvision_maskrcnn_r50_fpn/c2", "raw/mask_rois"),
        ("d2_mask_rcnn_R_50_FPN/c1", "raw/roi_heads.mask_head#0.0.pred_boxes"),
        ("d2_mask_rcnn_R_50_FPN/c2", "raw/roi_heads.mask_head#0.0.pred_boxes"),
        ("mmdet_mask_rcnn_r50_fpn/c1", "raw/mask_rois"),
        ("mmdet_mask_rcnn_r50_fpn/c2", "raw/mask_rois"),
    ],
)
def test_boxes_come_to_the_original_bit_for_bit(case: str, rois: str) -> None:
    tensors, meta = tensors_of(case)
    size, content = tuple(meta["det_masks_shape"][1:]), tuple(meta["img_shape"])
    found = boxes_to_original(tensors[rois], Frame(size=size, input_size=(640, 640), content=content))
    assert found.dtype == np.float32
    units = 2 if case.startswith("mmdet") else 0  # it divides by the inverse
    np.testing.assert_array_max_ulp(found, tensors["det/boxes"], units)


# Oracle: PyTorch, which the code bases paste with


@EVERY_RULE
def test_the_functions_of_pytorch_give_the_same_pixels(paste: Paste) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def theirs(probabilities: Floats, box: Floats, size: Size) -> NDArray[np.bool_]:
        square = torch.from_numpy(probabilities)[None, None]
        if paste == "detectron2":
            y, x = (
                (torch.arange(pixels, dtype=torch.float32) + 0.5 - box[i]) / (box[i + 2] - box[i]) * 2 - 1
                for i, pixels in ((1, size[0]), (0, size[1]))
            )
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
            return np.asarray(functional.grid_sample(square, grid, align_corners=False)[0, 0] >= 0.5)
        half = (box[2:] - box[:2]) * np.float32(0.5) * np.float32((len(probabilities) + 2) / len(probabilities))
        centre = (box[2:] + box[:2]) * np.float32(0.5)
        (left, top), (right, bottom) = (centre - half).astype(int), (centre + half).astype(int)
        shape = (bottom - top + 1, right - left + 1)
        grown = functional.interpolate(functional.pad(square, (1, 1, 1, 1)), shape, mode="bilinear")[0, 0] > 0.5
        margin = 900
        frame = np.zeros((size[0] + 2 * margin, size[1] + 2 * margin), np.bool_)
        frame[margin + top : margin + bottom + 1, margin + left : margin + right + 1] = grown
        return frame[margin:-margin, margin:-margin]

    random = np.random.default_rng(5)
    differing = painted = 0
    for _ in range(300):
        side, size = int(random.choice([1, 7, 14, 28, 56])), tuple(random.integers(1, 150, 2).tolist())
        probabilities = random.random((side, side), np.float32)
        box = np.sort(random.uniform(-60, 200, (2, 2)), axis=0).reshape(4).astype(np.float32)
        found, wanted = pasted(probabilities, box, size, paste), theirs(probabilities, box, size)
        differing += int(np.count_nonzero(found != wanted))
        painted += int(np.count_nonzero(wanted))
    assert painted > 100_000
    assert differing == 0


# Examples


@pytest.mark.parametrize(("paste", "columns"), [("detectron2", [3, 4, 5, 6]), ("torchvision", [2, 3, 4, 5, 6, 7])])
def test_a_row_comes_out_as_the_module_draws_it(paste: Paste, columns: list[int]) -> None:
    outputs = one(np.full((4, 4), 40, np.float32), (2.6, 0, 7.4, 4))
    (segment,) = RoiMasks(paste=paste).decode(outputs, as_it_is((4, 10)), 0.0)
    assert np.flatnonzero(paint(segment.patch, (4, 10))[2]).tolist() == columns
    assert segment.label == 3
    assert segment.score == pytest.approx(0.9)
    assert segment.box == pytest.approx((2.6, 0, 7.4, 4))


def test_a_square_with_a_cell_for_each_pixel_is_copied() -> None:
    drawn = np.random.default_rng(0).random((28, 28), np.float32)
    found = pasted(drawn, (10, 20, 38, 48), (60, 50), "detectron2")
    np.testing.assert_array_equal(found[20:48, 10:38], drawn >= 0.5)
    assert found.sum() == (drawn >= 0.5).sum()


@pytest.mark.parametrize(("paste", "counts"), [("detectron2", True), ("torchvision", False)])
def test_the_rules_disagree_about_a_value_of_just_the_threshold(paste: Paste, counts: bool) -> None:
    outputs = one(np.zeros((4, 4), np.float32), (0, 0, 16, 16))
    (segment,) = RoiMasks(paste=paste).decode(outputs, as_it_is((16, 16)), 0.0)
    assert paint(segment.patch, (16, 16))[4:12, 4:12].all() == counts
    assert bool(segment.area) == counts


@EVERY_RULE
def test_a_lower_threshold_gives_a_larger_mask(paste: Paste) -> None:
    logits = (4 - np.hypot(*np.mgrid[-7:8, -7:8])).astype(np.float32)
    areas = []
    for threshold in (0.2, 0.5, 0.8):
        masks = RoiMasks(paste=paste, threshold=threshold)
        (segment,) = masks.decode(one(logits, (3, 4, 50, 60)), as_it_is((64, 64)), 0.0)
        areas.append(segment.area)
    assert areas[0] > areas[1] > areas[2] > 0


def test_rows_without_a_score_are_unused_even_at_threshold_zero() -> None:
    outputs: Outputs = {
        "boxes": np.array([[0, 0, 8, 8]] * 4, np.float32),
        "scores": np.array([1.5, 0.5, 0.0, -1.0], np.float32),
        "labels": np.zeros(4, np.int32),
        "mask_logits": np.ones((4, 7, 7), np.float32),
    }
    masks, frame = RoiMasks(), as_it_is((8, 8))
    for min_score, scores in ((0.0, [1.5, 0.5]), (0.5, [1.5, 0.5]), (0.6, [1.5]), (1.6, [])):
        assert [segment.score for segment in masks.decode(outputs, frame, min_score)] == scores
    nothing = {name: tensor[:0] for name, tensor in outputs.items()}
    assert not list(masks.decode(nothing, frame, 0.0))


INF, NAN = float("inf"), float("nan")


@EVERY_RULE
@pytest.mark.parametrize(
    "box",
    [
        (19, 19, 30, 30),
        (6, 6, 1, 1),
        (-19, -19, -12, -12),
        (2e9, 0, 2.1e9, 8),
        (-3e38, -3e38, -3e37, -3e37),
        (INF, INF, INF, INF),
        (INF, 0, -INF, 8),
    ],
)
def test_a_box_beside_the_picture_or_inside_out_has_a_mask_without_pixels(box: Box, paste: Paste) -> None:
    (segment,) = RoiMasks(paste=paste).decode(one(np.ones((7, 7), np.float32), box), as_it_is((8, 8)), 0.0)
    assert segment.area == 0
    assert not paint(segment.patch, (8, 8)).any()
    assert all(0 <= side <= 8 for side in segment.box)


@EVERY_RULE
@pytest.mark.parametrize(
    "box", [(NAN, 0, 8, NAN), (-INF, -INF, INF, INF), (0, 0, 1e-40, 1e-40), (2, 2, 2, 2), (-3e38, 0, 3e38, 8)]
)
def test_strange_boxes_and_logits_fail_nothing(box: Box, paste: Paste) -> None:
    logits = np.array([[3e38, -3e38], [1e4, -1e4]], np.float32)
    (segment,) = RoiMasks(paste=paste).decode(one(logits, box), as_it_is((8, 8)), 0.0)
    assert all(0 <= side <= 8 for side in segment.box)
    paint(segment.patch, (8, 8))


@pytest.mark.parametrize(("paste", "area"), [("detectron2", 0), ("torchvision", 1)])
def test_a_box_of_no_size_is_a_pixel_to_torchvision_alone(paste: Paste, area: int) -> None:
    (segment,) = RoiMasks(paste=paste).decode(one(np.ones((14, 14), np.float32), (2, 2, 2, 2)), as_it_is((8, 8)), 0.0)
    assert segment.area == area


@EVERY_RULE
def test_a_picture_of_one_pixel_has_masks_too(paste: Paste) -> None:
    outputs = one(np.ones((28, 28), np.float32), (0, 0, 32, 32))
    (segment,) = RoiMasks(paste=paste).decode(outputs, Frame(size=(1, 1), input_size=(32, 32), content=(32, 32)), 0.0)
    assert (segment.patch.y, segment.patch.x, segment.patch.bits.tolist()) == (0, 0, [[True]])


# Cost


@EVERY_RULE
def test_memory_follows_one_box_at_a_time_and_not_the_picture(paste: Paste) -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 900, (60, 2))
    outputs: Outputs = {
        "boxes": np.hstack([corners, corners + 60]).astype(np.float32),
        "scores": np.full(60, 0.9, np.float32),
        "labels": np.zeros(60, np.int32),
        "mask_logits": random.normal(1, 3, (60, 28, 28)).astype(np.float32),
    }
    frame = Frame(size=(4000, 4000), input_size=(1000, 1000), content=(1000, 1000))
    masks = RoiMasks(paste=paste)
    tracemalloc.start()
    largest = max(segment.patch.bits.size for segment in masks.decode(outputs, frame, 0.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 50_000 < largest < 280 * 280
    assert peak < 2_000_000  # one frame of float32 is 64 MB, all masks are 4 MB of bits
