"""Weighted sums of shared planes: each implementation's own rule, painted in full frames, is the oracle."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.geometry import Frame
from server.masks import PrototypeMasks, bind, grid
from server.segments import Segment
from tests.shared_data import shared

COMMON = PrototypeMasks()
YOLACT = PrototypeMasks(cells="corner", padding=1)
YOLO = PrototypeMasks(cells="corner", interpolate="logits")
YOLO_NATIVE = PrototypeMasks(cells="corner", interpolate="logits", crop="image")

unhurried = settings(deadline=None, max_examples=60)

Outputs = dict[str, NDArray[Any]]
Size = tuple[int, int]


def stretched(size: Size, input_size: Size) -> Frame:
    return Frame(size=size, input_size=input_size, content=input_size)


def random_outputs(seed: int, input_size: Size, grid: Size, rows: int = 6, planes: int = 4) -> Outputs:
    """Blobs and boxes anywhere, partly outside the input; scores fall from row to row."""
    random = np.random.default_rng(seed)
    prototypes = random.normal(0, 1, (planes, *grid)).astype(np.float32)
    if min(grid) > 4:
        prototypes = np.stack([cv2.GaussianBlur(plane, (0, 0), 1.0) for plane in prototypes]) * 3
    height, width = input_size
    corners = np.sort(random.uniform(-0.2, 1.2, (rows, 2, 2)), axis=1) * [width, height]  # (N, 2, xy)
    return {
        "boxes": corners.reshape(rows, 4).astype(np.float32),
        "scores": np.linspace(0.9, 0.6, rows, dtype=np.float32),
        "labels": random.integers(0, 5, rows).astype(np.int32),
        "coefficients": random.normal(0, 2, (rows, planes)).astype(np.float32),
        "prototypes": prototypes,
    }


def paste(segment: Segment, size: Size) -> NDArray[np.bool_]:
    frame = np.zeros(size, np.bool_)
    patch = segment.patch
    window = frame[patch.y : patch.y + patch.bits.shape[0], patch.x : patch.x + patch.bits.shape[1]]
    assert window.shape == patch.bits.shape, "the patch reaches outside the picture"
    window[:] = patch.bits
    return frame


def decoded(masks: PrototypeMasks, outputs: Outputs, frame: Frame) -> Iterator[NDArray[np.bool_]]:
    for segment in masks.decode(outputs, frame, 0.0):
        yield paste(segment, frame.size)


def same(found: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> bool:
    """But for single pixels whose value is the threshold to the last bits."""
    return bool(np.count_nonzero(found != wanted) <= max(1, wanted.size // 20_000))


def sums(outputs: Outputs) -> NDArray[np.float32]:
    """Logits (N, h, w)."""
    return np.tensordot(outputs["coefficients"], outputs["prototypes"], 1)


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    return 1 / (1 + np.exp(-logits))


def sampled(plane: NDArray[Any], frame: Frame) -> NDArray[np.float64]:
    """Every original pixel's value, written out: where its centre lies among the cells, and the four cells around."""
    axes = []
    for i in range(2):
        cells = (np.arange(frame.size[i]) + 0.5) * frame.scale[i] / frame.input_size[i] * plane.shape[i] - 0.5
        cells = np.round(cells, 9)
        low = np.floor(cells).astype(int)
        axes.append((low.clip(0), (low + 1).clip(0, plane.shape[i] - 1), cells - low))
    (top, bottom, down), (left, right, along) = axes
    above = plane[top][:, left] * (1 - along) + plane[top][:, right] * along
    below = plane[bottom][:, left] * (1 - along) + plane[bottom][:, right] * along
    return above * (1 - down)[:, None] + below * down[:, None]


def kept(masks: PrototypeMasks, box: NDArray[np.floating], size: Size) -> NDArray[np.bool_]:
    """The cells of a grid that a crop keeps, asked one by one."""
    x1, y1, x2, y2 = (box + np.array([-1, -1, 1, 1]) * masks.padding).tolist()
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])
    if masks.cells == "corner":
        return (x1 <= columns) & (columns < x2) & (y1 <= rows) & (rows < y2)
    return (np.floor(x1) <= columns) & (columns < np.ceil(x2)) & (np.floor(y1) <= rows) & (rows < np.ceil(y2))


def written_out(masks: PrototypeMasks, outputs: Outputs, frame: Frame) -> Iterator[NDArray[np.bool_]]:
    """The rule in full frames, step by step."""
    for logits, box in zip(sums(outputs), outputs["boxes"].astype(np.float64), strict=True):
        odds = np.log(masks.threshold / (1 - masks.threshold))
        plane, level = (logits - odds, 0.0) if masks.interpolate == "logits" else (sigmoid(logits), masks.threshold)
        if masks.crop == "grid":
            to_cells = np.array([logits.shape[1] / frame.input_size[1], logits.shape[0] / frame.input_size[0]] * 2)
            plane = plane * kept(masks, box * to_cells, logits.shape)
        bits = sampled(plane, frame) > level
        if masks.crop == "image":
            bits &= kept(masks, frame.to_original(box[None])[0], frame.size)
        yield bits


RULES = [
    {"crop": crop, "cells": cells, "padding": padding, "interpolate": what, "threshold": threshold}
    for crop, cells, padding, what, threshold in product(
        ["grid", "image", "none"], ["touched", "corner"], [0, 1.5], ["probabilities", "logits"], [0.5, 0.3]
    )
]


# Laws


@settings(deadline=None, max_examples=200)
@given(
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 10_000),
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    padded=st.booleans(),
)
def test_every_rule_gives_what_full_frames_give(rule: dict, seed: int, grid: Size, size: Size, padded: bool) -> None:
    input_size = (64, 48)
    content = (40, 48) if padded else input_size
    frame = Frame(size=size, input_size=input_size, content=content)
    outputs = random_outputs(seed, input_size, grid)
    masks = PrototypeMasks.model_validate(rule)
    found = list(decoded(masks, outputs, frame))
    for bits, wanted in zip(found, written_out(masks, outputs, frame), strict=True):
        assert same(bits, wanted)


@unhurried
@given(seed=st.integers(0, 10_000), size=st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_masks_of_many_rows_are_those_of_each_row_alone(seed: int, size: Size) -> None:
    frame = stretched(size, (64, 64))
    outputs = random_outputs(seed, (64, 64), (16, 16), rows=5)
    together = list(decoded(COMMON, outputs, frame))
    for row, bits in enumerate(together):
        alone = {name: tensor if name == "prototypes" else tensor[row : row + 1] for name, tensor in outputs.items()}
        assert same(next(decoded(COMMON, alone, frame)), bits)


@pytest.mark.parametrize("masks", [COMMON, YOLO, YOLO_NATIVE])
def test_a_mask_that_is_made_some_rows_at_a_time_is_the_same(
    masks: PrototypeMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, frame = random_outputs(5, (128, 160), (16, 20)), stretched((301, 203), (128, 160))
    whole = list(decoded(masks, outputs, frame))
    monkeypatch.setattr(grid, "PIXELS_AT_ONCE", 700)
    parts = list(decoded(masks, outputs, frame))
    assert sum(map(np.count_nonzero, whole)) > 5_000
    assert all(same(part, mask) for part, mask in zip(parts, whole, strict=True))


# Oracles: the rules of others, in their own libraries


@pytest.mark.parametrize("size", [(480, 640), (213, 97), (31, 17), (64, 64)])
def test_zeroing_cells_outside_the_box_and_resizing_with_opencv_gives_the_same(size: Size) -> None:
    outputs = random_outputs(0, (256, 256), (64, 64), rows=20, planes=8)
    for bits, logits, box in zip(
        decoded(COMMON, outputs, stretched(size, (256, 256))), sums(outputs), outputs["boxes"] / 4, strict=True
    ):
        x1, y1, x2, y2 = box.clip(0)
        inside = np.zeros((64, 64), np.float32)
        window = np.s_[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
        inside[window] = sigmoid(logits)[window]
        assert same(bits, cv2.resize(inside, size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5)


@pytest.mark.parametrize("masks", [YOLACT, YOLO, YOLO_NATIVE], ids=["yolact", "yolo", "yolo native"])
@pytest.mark.parametrize("size", [(150, 200), (33, 21)])
def test_the_rules_of_yolact_and_of_the_yolo_family_are_kept(masks: PrototypeMasks, size: Size) -> None:
    torch = pytest.importorskip("torch")
    outputs = random_outputs(1, (144, 144), (36, 36), rows=20, planes=8)
    planes = torch.from_numpy(sums(outputs))
    planes = torch.sigmoid(planes) if masks is YOLACT else planes

    def cut(planes: Any, fractions: NDArray[np.floating], padding: int) -> Any:
        """`planes` (N, h, w), zero outside boxes given in fractions of the picture."""
        height, width = planes.shape[1:]
        low = (fractions[:, :2] * [width, height] - padding).clip(0)[..., None, None]
        high = (fractions[:, 2:] * [width, height] + padding).clip(None, [width, height])[..., None, None]
        rows, columns = np.arange(height)[:, None], np.arange(width)
        inside = (columns >= low[:, 0]) & (columns < high[:, 0]) & (rows >= low[:, 1]) & (rows < high[:, 1])
        return planes * torch.from_numpy(inside)

    fractions = outputs["boxes"].astype(np.float64) / 144
    if masks is not YOLO_NATIVE:
        planes = cut(planes, fractions, padding=1 if masks is YOLACT else 0)
    planes = torch.nn.functional.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]
    if masks is YOLO_NATIVE:
        planes = cut(planes, fractions, padding=0)
    wanted = (planes > (0.5 if masks is YOLACT else 0.0)).numpy()
    for bits, expected in zip(decoded(masks, outputs, stretched(size, (144, 144))), wanted, strict=True):
        assert same(bits, expected)


@pytest.mark.parametrize("case", ["yolact_r50", "yolactpp_r50"])
def test_the_masks_of_yolact_itself_come_back(case: str) -> None:
    """Its planes and coefficients of one picture, recorded, and the masks it made of them."""
    numpy_files = pytest.importorskip("safetensors.numpy")
    folder = shared(f"golden/{case}")
    height, width = json.loads((folder / "a.meta.json").read_text())["ori"]
    tensors = numpy_files.load_file(folder / "a.safetensors")
    packed = tensors["det/masks_packed"]
    recorded = np.unpackbits(packed, axis=1, count=height * width).reshape(-1, height, width).astype(bool)
    outputs = {
        "boxes": tensors["raw/det_box"] * np.float32(138),
        "scores": tensors["raw/det_score"],
        "labels": tensors["raw/det_class"].astype(np.int32),
        "coefficients": tensors["raw/det_mask"],
        "prototypes": np.ascontiguousarray(tensors["raw/proto"][0].transpose(2, 0, 1)),
    }
    bind(outputs, YOLACT.legend)
    segments = list(YOLACT.decode(outputs, stretched((height, width), (138, 138)), 0.0))
    assert len(segments) == len(recorded)
    for segment, bits in zip(segments, recorded, strict=True):
        assert np.count_nonzero(paste(segment, (height, width)) != bits) <= 2


# Examples


def one(prototypes: list[list[float]], box: tuple[float, float, float, float], score: float = 0.9) -> Outputs:
    """One row over one plane of probabilities; an input pixel for every cell."""
    probabilities = np.array([prototypes], np.float32).clip(1e-6, 1 - 1e-6)
    return {
        "boxes": np.array([box], np.float32),
        "scores": np.array([score], np.float32),
        "labels": np.array([3], np.int32),
        "coefficients": np.ones((1, 1), np.float32),
        "prototypes": np.log(probabilities / (1 - probabilities)),
    }


def test_a_mask_grows_as_the_module_draws_it() -> None:
    outputs = one([[0.8, 0.8, 0.4, 0], [0.8, 0.8, 0.4, 0.8]], (0, 0, 2, 2))
    (segment,) = COMMON.decode(outputs, stretched((2, 8), (2, 4)), 0.0)
    assert paste(segment, (2, 8)).tolist() == [[True] * 4 + [False] * 4] * 2
    assert (segment.label, segment.box) == (3, (0.0, 0.0, 4.0, 2.0))
    assert segment.score == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("rule", "columns"),
    [
        ({"cells": "touched"}, [1, 2, 3, 4]),  # of 6: the box reaches from 1.5 to 4.5
        ({"cells": "corner"}, [2, 3, 4]),
        ({"cells": "corner", "padding": 1}, [1, 2, 3, 4, 5]),
        ({"cells": "touched", "padding": 1}, [0, 1, 2, 3, 4, 5]),
        ({"crop": "none"}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_crop_keeps_the_cells_that_its_rule_says(rule: dict, columns: list[int]) -> None:
    outputs = one([[0.9] * 6], (1.5, 0, 4.5, 1))
    (segment,) = PrototypeMasks.model_validate(rule).decode(outputs, stretched((1, 6), (1, 6)), 0.0)
    assert np.flatnonzero(paste(segment, (1, 6))[0]).tolist() == columns


def test_padding_of_a_letterbox_is_no_part_of_the_picture() -> None:
    outputs = one([[0.9] * 4] * 4, (0, 0, 4, 4))
    frame = Frame(size=(20, 40), input_size=(4, 4), content=(2, 4))
    (segment,) = COMMON.decode(outputs, frame, 0.0)
    assert segment.patch.bits.shape == (20, 40)
    assert segment.patch.bits.all()
    assert segment.box == (0, 0, 40, 20)


def test_rows_without_a_score_are_unused_even_at_threshold_zero() -> None:
    outputs = random_outputs(0, (64, 64), (16, 16), rows=4)
    outputs["scores"] = np.array([1.5, 0.5, 0.0, -1.0], np.float32)
    frame = stretched((30, 40), (64, 64))
    assert [segment.score for segment in COMMON.decode(outputs, frame, 0.0)] == [1.5, 0.5]
    assert [segment.score for segment in COMMON.decode(outputs, frame, 0.5)] == [1.5, 0.5]
    assert [segment.score for segment in COMMON.decode(outputs, frame, 0.6)] == [1.5]
    assert not list(COMMON.decode(outputs, frame, 1.6))


@pytest.mark.parametrize("box", [(9, 9, 20, 20), (3, 3, 1, 1), (-9, -9, -2, -2), (1e30, 0, 2e30, 1), (2, 2, 2, 2)])
@pytest.mark.parametrize("crop", ["grid", "image"])
def test_a_box_beside_the_picture_or_inside_out_has_a_mask_without_pixels(box: Any, crop: Any) -> None:
    masks = PrototypeMasks(crop=crop, cells="corner")
    (segment,) = masks.decode(one([[0.9] * 4] * 4, box), stretched((8, 8), (4, 4)), 0.0)
    assert segment.area == 0
    assert segment.patch.y + segment.patch.bits.shape[0] <= 8
    assert segment.patch.x + segment.patch.bits.shape[1] <= 8
    assert all(0 <= side <= 8 for side in segment.box)


def test_the_largest_sums_are_no_overflow() -> None:
    outputs = one([[0.9] * 4] * 4, (0, 0, 4, 4))
    outputs["prototypes"] = np.array([[[3e38, -3e38, 0.1, -1e4]] * 4], np.float32)
    (segment,) = COMMON.decode(outputs, stretched((4, 4), (4, 4)), 0.0)
    assert segment.patch.bits.all(axis=0).tolist() == [True, False, True]


# Cost


def test_memory_follows_the_boxes_and_not_the_picture() -> None:
    outputs = random_outputs(0, (256, 256), (64, 64), rows=60)
    corners = np.random.default_rng(0).uniform(0, 230, (60, 2))
    outputs["boxes"] = np.hstack([corners, corners + 20]).astype(np.float32)
    frame = stretched((3000, 4000), (256, 256))
    tracemalloc.start()
    boxes = sum(segment.patch.bits.size for segment in COMMON.decode(outputs, frame, 0.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert boxes < 60 * 400 * 500
    assert peak < 6_000_000  # one frame of float32 is 48 MB
