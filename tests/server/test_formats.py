"""Every output format, and the way back from it to the same mask."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from server.errors import BadParameter, ImageTooLarge
from server.formats import FORMATS
from server.formats.polygons import Polygon, Ring, patch_to_polygons
from server.manifest import ClassName
from server.segments import Patch, Segment, patch_to_box

Mask = NDArray[np.bool_]
Size = tuple[int, int]

CLASSES = [ClassName(id=4, name="cell"), ClassName(id=9, name="debris")]
SIZE = (20, 30)

unhurried = settings(deadline=None)  # a busy machine is no failure


def segment(label: int, y: int, x: int, bits: np.ndarray) -> Segment:
    patch = Patch(y, x, bits.astype(bool))
    return Segment(label=label, score=0.5, box=patch_to_box(patch), patch=patch)


def drawn(*rows: str) -> Mask:
    """A mask from lines of text: `#` is in."""
    return np.array([[character == "#" for character in row.replace(" ", "")] for row in rows])


def paste(patch: Patch, size: Size) -> Mask:
    """The patch in its full frame."""
    frame = np.zeros(size, np.bool_)
    h, w = patch.bits.shape
    frame[patch.y : patch.y + h, patch.x : patch.x + w] = patch.bits
    return frame


def render(name: str, segments: Sequence[Segment], size: Size) -> Any:
    """A format's content as a client gets it."""
    return json.loads(orjson.dumps(FORMATS[name](segments, size, CLASSES)))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Segment], Size]:
    """Up to four masks anywhere in a frame of up to 12 x 12; they may be empty, touch its borders and overlap."""
    height, width = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    segments = []
    for _ in range(draw(st.integers(0, 4))):
        h, w = draw(st.integers(0, height)), draw(st.integers(0, width))
        y, x = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
        segments.append(segment(0, y, x, draw(arrays(np.bool_, (h, w)))))
    return segments, (height, width)


# The way back, one reader for each format: (content, size) -> a mask per instance.


def read_rle(content: Any, size: Size) -> list[Mask]:
    return [coco_mask.decode(instance["segmentation"]).astype(bool) for instance in content["instances"]]


def read_rle_counts(content: Any, size: Size) -> list[Mask]:
    runs = [instance["segmentation"] for instance in content["instances"]]
    return [coco_mask.decode(coco_mask.frPyObjects(run, *run["size"])).astype(bool) for run in runs]


def read_polygons(content: Any, size: Size) -> list[Mask]:
    return [fill(instance["segmentation"], size) for instance in content["instances"]]


def read_png(content: Any, size: Size) -> list[Mask]:
    image = Image.open(io.BytesIO(base64.b64decode(content["label_map"])))
    assert image.mode == "I;16"
    labels = np.asarray(image)
    assert labels.shape == size
    assert labels.max() <= len(content["instances"])
    return [labels == position + 1 for position in range(len(content["instances"]))]


READERS: dict[str, Callable[[Any, Size], list[Mask]]] = {
    "rle": read_rle,
    "rle_counts": read_rle_counts,
    "polygons": read_polygons,
    "png": read_png,
}


def fill(polygons: Sequence[Polygon], size: Size) -> Mask:
    """Pixels whose centre is inside an exterior and in none of its holes; polygons may not overlap."""
    frame = np.zeros(size, bool)
    for polygon in polygons:
        part = fill_ring(polygon["exterior"], size)
        for hole in polygon["holes"]:
            inside = fill_ring(hole, size)
            assert (part | ~inside).all(), "a hole lies in its part"
            part &= ~inside
        assert not (frame & part).any(), "parts are apart"
        frame |= part
    return frame


def fill_ring(ring: Ring, size: Size) -> Mask:
    """Pixels whose centre lies right of an odd number of the ring's edges."""
    centres_y, centres_x = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.zeros(size, bool)
    for (x1, y1), (x2, y2) in edges(ring):
        if y1 != y2:
            crosses = (y1 < centres_y) != (y2 < centres_y)
            inside ^= crosses & (centres_x > x1 + (centres_y - y1) * (x2 - x1) / (y2 - y1))
    return inside


def edges(ring: Ring) -> Iterator[tuple[list[int], list[int]]]:
    return zip(ring, ring[1:] + ring[:1], strict=True)


def signed_area(ring: Ring) -> float:
    """Positive when the ring goes clockwise as one sees it."""
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in edges(ring)) / 2


@pytest.fixture
def segments() -> list[Segment]:
    ring = np.ones((5, 6))
    ring[2, 2:4] = 0
    parts = np.array([[1, 0, 1], [1, 0, 1]])
    return [segment(0, 3, 4, ring), segment(1, 18, 27, parts), segment(0, 0, 0, np.ones(SIZE))]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_tells_what_an_instance_is_and_survives_json(name: str, segments: list[Segment]) -> None:
    content = render(name, segments, SIZE)
    assert [i["category_id"] for i in content["instances"]] == [4, 9, 4]
    assert [i["category"] for i in content["instances"]] == ["cell", "debris", "cell"]
    assert [i["area"] for i in content["instances"]] == [28, 4, 600]
    assert [i["bbox"] for i in content["instances"]] == [[4, 3, 6, 5], [27, 18, 3, 2], [0, 0, 30, 20]]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_takes_no_segments_at_all(name: str) -> None:
    assert FORMATS[name]([], SIZE, CLASSES)["instances"] == []


def test_every_format_but_none_has_a_way_back() -> None:
    assert READERS.keys() | {"none"} == FORMATS.keys()


@pytest.mark.parametrize("name", READERS)
@given(scene=scenes())
@unhurried
def test_every_format_gives_back_the_same_masks(name: str, scene: tuple[list[Segment], Size]) -> None:
    segments, size = scene
    found = READERS[name](render(name, segments, size), size)
    covered = np.zeros(size, bool)
    for mask, wanted in zip(found, segments, strict=True):
        frame = paste(wanted.patch, size)
        visible = frame & ~covered
        covered |= frame
        assert (mask == (visible if name == "png" else frame)).all()


# docs/formats.md: its examples are what the server writes, and its Python reads them.


def blocks(root: Path, name: str) -> dict[str, str]:
    """Language -> code of a format's section in docs/formats.md."""
    page = (root / "docs" / "formats.md").read_text()
    section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"```(\w+)\n(.*?)```", section, flags=re.DOTALL))


SHOWN_SIZE = (4, 6)
SHOWN = [segment(0, 1, 1, drawn("###", "#.#", "###")), segment(1, 2, 4, drawn(".#", "#."))]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_documented_as_it_is(name: str, root: Path) -> None:
    shown, rendered = json.loads(blocks(root, name)["json"]), render(name, SHOWN, SHOWN_SIZE)
    assert shown.keys() == rendered.keys()
    for shown_instance, instance in zip(shown["instances"], rendered["instances"], strict=True):
        if name == "polygons":  # in no order
            instance["segmentation"].sort(key=lambda polygon: -polygon["exterior"][0][0])
        assert shown_instance == {key: instance[key] for key in shown_instance}
        assert ("segmentation" in shown_instance) == ("segmentation" in instance)


@pytest.mark.parametrize("name", READERS)
def test_every_format_is_read_back_by_the_python_in_its_documentation(name: str, root: Path) -> None:
    shown, code = blocks(root, name)["json"], blocks(root, name)["python"]
    for content in (json.loads(shown), render(name, SHOWN, SHOWN_SIZE)):
        names: dict[str, Any] = {"answer": content | {"image": {"width": 6, "height": 4}}}
        exec(code, names)
        for mask, wanted in zip(names["masks"], SHOWN, strict=True):
            assert mask.dtype == bool
            assert (mask == paste(wanted.patch, SHOWN_SIZE)).all()


# rle, rle_counts, none


def test_rle_comes_back_as_the_same_mask_through_pycocotools(segments: list[Segment]) -> None:
    for found, wanted in zip(read_rle(render("rle", segments, SIZE), SIZE), segments, strict=True):
        assert (found == paste(wanted.patch, SIZE)).all()


@given(scenes())
@unhurried
def test_rle_counts_are_what_pycocotools_packs_into_the_string_of_rle(scene: tuple[list[Segment], Size]) -> None:
    segments, size = scene
    plain, packed = render("rle_counts", segments, size), render("rle", segments, size)
    for plainly, packedly in zip(plain["instances"], packed["instances"], strict=True):
        assert plainly["segmentation"]["size"] == list(size)
        string = coco_mask.frPyObjects(plainly["segmentation"], *size)["counts"].decode()
        assert string == packedly["segmentation"]["counts"]


def test_rle_counts_begin_with_zeros_and_go_down_the_columns() -> None:
    content = render("rle_counts", [segment(0, 0, 0, drawn("##", "#."))], (2, 3))
    assert content["instances"][0]["segmentation"] == {"size": [2, 3], "counts": [0, 3, 3]}


def test_none_has_no_segmentation(segments: list[Segment]) -> None:
    assert all("segmentation" not in i for i in render("none", segments, SIZE)["instances"])


# polygons


def well_made(polygons: Sequence[Polygon], bits: Mask) -> None:
    """Assert what docs/formats.md promises of outlines, and that they are as many and as large as they should be."""
    assert len(polygons) == cv2.connectedComponents(bits.astype(np.uint8), connectivity=4)[0] - 1
    assert all(signed_area(polygon["exterior"]) > 0 for polygon in polygons)
    assert all(signed_area(hole) < 0 for polygon in polygons for hole in polygon["holes"])
    rings = [ring for polygon in polygons for ring in (polygon["exterior"], *polygon["holes"])]
    assert sum(map(signed_area, rings)) == np.count_nonzero(bits)
    for ring in rings:
        assert len(set(map(tuple, ring))) == len(ring), "no ring meets itself"
        levels = [y1 == y2 for (_, y1), (_, y2) in edges(ring)]
        uprights = [x1 == x2 for (x1, _), (x2, _) in edges(ring)]
        assert levels == uprights[1:] + uprights[:1], "level and upright in turn"
        assert levels != uprights


def test_a_pixel_is_a_square_of_its_edges() -> None:
    square = Polygon(exterior=[[0, 0], [1, 0], [1, 1], [0, 1]], holes=[])
    assert patch_to_polygons(Patch(0, 0, drawn("#"))) == [square]


def test_a_mask_without_pixels_has_no_polygons() -> None:
    for shape in ((0, 0), (0, 3), (3, 0), (2, 3)):
        assert patch_to_polygons(Patch(5, 5, np.zeros(shape, bool))) == []


@pytest.mark.parametrize(
    ("bits", "holes"),
    [
        pytest.param(drawn("####"), [0], id="a line"),
        pytest.param(drawn("#.", ".#"), [0, 0], id="pixels that touch at a corner"),
        pytest.param(drawn("####", "#.##", "##.#", "####"), [2], id="holes that touch at a corner"),
        pytest.param(drawn("###", "#.#", "##."), [1], id="a hole that touches the outside at a corner"),
        pytest.param(drawn("##.", "#.#", ".##"), [0, 0], id="two parts that close a ring at two corners"),
        pytest.param(drawn("#####", "#...#", "#.#.#", "#...#", "#####"), [0, 1], id="an island in a hole"),
        pytest.param(drawn("####", "##.#", "#.##", "#..#", "####"), [2], id="holes of two shapes at a corner"),
        pytest.param(drawn("#####", "#..##", "#.#.#", "##..#", "#####"), [0, 1], id="an island that hangs in corners"),
        pytest.param(drawn("#.#", ".#.", "#.#"), [0, 0, 0, 0, 0], id="a chessboard"),
    ],
)
def test_parts_and_holes_of(bits: Mask, holes: list[int]) -> None:
    polygons = patch_to_polygons(Patch(2, 1, bits))
    assert sorted(len(polygon["holes"]) for polygon in polygons) == holes
    assert (fill(polygons, (9, 8)) == paste(Patch(2, 1, bits), (9, 8))).all()
    well_made(polygons, bits)


def test_every_mask_of_3_by_4_pixels_has_exact_and_well_made_polygons() -> None:
    for pixels in itertools.product([False, True], repeat=12):
        bits = np.array(pixels).reshape(3, 4)
        polygons = patch_to_polygons(Patch(0, 0, bits))
        assert (fill(polygons, (3, 4)) == bits).all()
        well_made(polygons, bits)


@given(arrays(np.bool_, st.tuples(st.integers(1, 15), st.integers(1, 15))))
@example(np.indices((15, 15)).sum(axis=0) % 2 == 0)
@unhurried
def test_outlines_are_well_made_and_pycocotools_fills_them_exactly(bits: Mask) -> None:
    polygons = patch_to_polygons(Patch(0, 0, bits))
    well_made(polygons, bits)
    rings = [np.ravel(ring).tolist() for polygon in polygons for ring in (polygon["exterior"], *polygon["holes"])]
    if rings:
        layers = coco_mask.decode(coco_mask.frPyObjects(rings, *bits.shape))
        assert (layers.sum(axis=2) % 2 == bits).all()


@pytest.mark.parametrize("share", [0.05, 0.4, 0.5, 0.6, 0.95])
def test_noise_with_thousands_of_parts_comes_back_exactly(share: float) -> None:
    bits = np.random.default_rng(0).random((120, 160)) < share
    polygons = patch_to_polygons(Patch(0, 0, bits))
    well_made(polygons, bits)
    rings = [np.ravel(ring).tolist() for polygon in polygons for ring in (polygon["exterior"], *polygon["holes"])]
    assert (coco_mask.decode(coco_mask.frPyObjects(rings, 120, 160)).sum(axis=2) % 2 == bits).all()


def test_outlines_move_with_the_patch_and_the_frame_costs_nothing() -> None:
    bits = drawn("##.", "#.#", "###")
    here, there = patch_to_polygons(Patch(0, 0, bits)), patch_to_polygons(Patch(10**9, 2 * 10**9, bits))
    for near, far in zip(here, there, strict=True):
        assert [[x + 2 * 10**9, y + 10**9] for x, y in near["exterior"]] == far["exterior"]


def test_bits_in_any_memory_order_have_the_same_outlines() -> None:
    bits = np.random.default_rng(1).random((9, 14)) < 0.6
    wanted = patch_to_polygons(Patch(0, 0, bits))
    assert patch_to_polygons(Patch(0, 0, np.asfortranarray(bits))) == wanted
    assert patch_to_polygons(Patch(0, 0, np.repeat(np.repeat(bits, 2, 0), 3, 1)[::2, ::3])) == wanted


# png


def test_in_the_label_map_the_better_score_is_on_top() -> None:
    square, bar = segment(0, 1, 1, np.ones((2, 2))), segment(1, 1, 0, np.ones((2, 5)))
    file = base64.b64decode(render("png", [square, bar], (4, 5))["label_map"])
    assert np.asarray(Image.open(io.BytesIO(file))).tolist() == [
        [0, 0, 0, 0, 0],
        [2, 1, 1, 2, 2],
        [2, 1, 1, 2, 2],
        [0, 0, 0, 0, 0],
    ]


def test_a_label_map_numbers_65535_instances_and_refuses_one_more_by_the_parameter_that_helps() -> None:
    pixel = np.ones((1, 1))
    many = [segment(0, place // 256, place % 256, pixel) for place in range(65_535)]
    content = FORMATS["png"](many, (256, 256), CLASSES)
    labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content["label_map"]))))
    assert labels.ravel().tolist() == [*range(1, 65_536), 0]
    with pytest.raises(BadParameter, match="65536 were found; ask for 'max_instances' of 65535"):
        FORMATS["png"]([*many, many[0]], (256, 256), CLASSES)


def test_a_label_map_longer_than_png_readers_take_is_refused() -> None:
    assert FORMATS["png"]([], (1, 1_000_000), CLASSES)["label_map"]
    with pytest.raises(ImageTooLarge, match="1000001 x 1"):
        FORMATS["png"]([], (1, 1_000_001), CLASSES)
