"""Every output format, and the way back from it to the same mask."""

from __future__ import annotations

import json

import numpy as np
import orjson
import pytest
from pycocotools import mask as coco_mask

from server.formats import FORMATS
from server.manifest import ClassName
from server.segments import Patch, Segment, patch_to_box

CLASSES = [ClassName(id=4, name="cell"), ClassName(id=9, name="debris")]
SIZE = (20, 30)


def segment(label: int, y: int, x: int, bits: np.ndarray) -> Segment:
    patch = Patch(y, x, bits.astype(bool))
    return Segment(label=label, score=0.5, box=patch_to_box(patch), patch=patch)


@pytest.fixture
def segments() -> list[Segment]:
    ring = np.ones((5, 6))
    ring[2, 2:4] = 0
    parts = np.array([[1, 0, 1], [1, 0, 1]])
    return [segment(0, 3, 4, ring), segment(1, 18, 27, parts), segment(0, 0, 0, np.ones(SIZE))]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_tells_what_an_instance_is_and_survives_json(name: str, segments: list[Segment]) -> None:
    content = json.loads(orjson.dumps(FORMATS[name](segments, SIZE, CLASSES)))
    assert [i["category_id"] for i in content["instances"]] == [4, 9, 4]
    assert [i["category"] for i in content["instances"]] == ["cell", "debris", "cell"]
    assert [i["area"] for i in content["instances"]] == [28, 4, 600]
    assert [i["bbox"] for i in content["instances"]] == [[4, 3, 6, 5], [27, 18, 3, 2], [0, 0, 30, 20]]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_takes_no_segments_at_all(name: str) -> None:
    assert FORMATS[name]([], SIZE, CLASSES)["instances"] == []


def test_rle_comes_back_as_the_same_mask_through_pycocotools(segments: list[Segment]) -> None:
    content = json.loads(orjson.dumps(FORMATS["rle"](segments, SIZE, CLASSES)))
    for instance, wanted in zip(content["instances"], segments, strict=True):
        found = coco_mask.decode(instance["segmentation"])
        frame = np.zeros(SIZE, np.uint8)
        patch = wanted.patch
        frame[patch.y : patch.y + patch.bits.shape[0], patch.x : patch.x + patch.bits.shape[1]] = patch.bits
        assert (found == frame).all()


def test_none_has_no_segmentation(segments: list[Segment]) -> None:
    assert all("segmentation" not in i for i in FORMATS["none"](segments, SIZE, CLASSES)["instances"])
