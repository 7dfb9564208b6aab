"""JPEGs decoded at a reduced size: nothing about an answer may change but the time it takes."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from time import sleep

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from server import images
from server.engines.choice import Wanted
from server.errors import RequestError, TruncatedImage
from server.geometry import Frame, Picture
from server.http.app import create_app
from server.loading import Loaded
from server.manifest import Bundle, read_bundle
from server.masks import CenterOffsetMasks
from server.preprocess import InputSpec, place
from server.segments import Segment
from server.settings import Settings
from tests.server.fakes import FakeEngine, FakeLoader
from tests.server.test_images import DRAWN, STORED, encode, exif

LIMIT = 50_000_000


def spec(largest: int) -> InputSpec:
    """For a network that sees pictures with sides of at most `largest`."""
    return InputSpec(multiple=1, max_size=(largest, largest), short_side=1, max_scale=1.0)


def decode(payload: bytes, content: tuple[int, int] | None) -> Picture:
    return images.decode(images.survey(payload, LIMIT), content)


def tensors(payload: bytes, largest: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Frame]:
    """The network's input after reduced decoding, the same after full decoding, and the frame, which they share."""
    frame = spec(largest).frame(images.survey(payload, LIMIT).size)
    reduced = decode(payload, frame.content)
    assert reduced.pixels.shape[0] < frame.size[0]
    return place(reduced, frame), place(decode(payload, None), frame), frame


def texture(height: int, width: int, grain: float) -> NDArray[np.uint8]:
    """Noise blurred over `grain` pixels: everywhere different, and changing in every direction."""
    noise = np.random.default_rng(0).normal(size=(height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), grain, borderType=cv2.BORDER_REFLECT)
    return np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def shift(moved: NDArray[np.uint8], still: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(down, right) in pixels by which one picture lies beside another, by least squares over the gradients."""
    grey = still.mean(axis=2)
    slopes = np.stack([slope.ravel() for slope in np.gradient(grey)], axis=1)  # (h * w, 2)
    return np.linalg.lstsq(slopes, (grey - moved.mean(axis=2)).ravel())[0]


# Laws -----------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    share=st.floats(0.01, 1.2),
    orientation=st.sampled_from(sorted(STORED)),
)
def test_a_picture_is_reduced_as_far_as_the_network_allows(
    size: tuple[int, int], share: float, orientation: int
) -> None:
    content = max(1, round(size[0] * share)), max(1, round(size[1] * share))
    stored = STORED[orientation](np.full((*size, 3), 128, np.uint8))
    file = images.survey(encode(stored, "JPEG", exif=exif(orientation)), LIMIT)
    assert file.size == size
    ratio = min(size[0] / content[0], size[1] / content[1])
    reduction = 4 if ratio >= 16 / 3 else 2 if ratio >= 8 / 3 else 1
    picture = images.decode(file, content)
    assert picture.pixels.shape == (-(-size[0] // reduction), -(-size[1] // reduction), 3)
    left, top, right, bottom = picture.covers
    assert (bottom - top, right - left) == tuple(side * reduction for side in picture.pixels.shape[:2])
    assert top <= 0 < size[0] <= bottom
    assert left <= 0 < size[1] <= right


@pytest.mark.parametrize("largest", [450, 300, 225, 150])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_lies_where_full_decoding_puts_it(orientation: int, largest: int) -> None:
    """At half size 1203 x 901 ends inside a pixel in both directions. Taken for whole ones, these would move the far
    sides by a third of an input pixel."""
    upright = texture(1203, 901, grain=2400 / largest)
    payload = encode(np.ascontiguousarray(STORED[orientation](upright)), "JPEG", quality=95, exif=exif(orientation))
    reduced, full, _ = tensors(payload, largest)
    assert np.abs(reduced.astype(int) - full).mean() < 1
    halves = [(slice(None, side // 2), slice(side // 2, None)) for side in full.shape[:2]]
    for corner in product(*halves):
        assert np.abs(shift(reduced[corner], full[corner])).max() < 0.03


@pytest.mark.parametrize("largest", [450, 225])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("RGB", {"subsampling": "4:2:0"}),
        ("RGB", {"progressive": True}),
        ("L", {}),
    ],
)
def test_every_kind_of_jpeg_keeps_its_colours(mode: str, options: dict[str, object], largest: int) -> None:
    picture = Image.fromarray(texture(1203, 901, grain=20)).convert(mode)
    reduced, full, _ = tensors(encode(picture, "JPEG", quality=95, **options), largest)
    assert np.abs(reduced.astype(int) - full).mean() < 1
    assert np.abs(reduced.mean(axis=(0, 1)) - full.mean(axis=(0, 1))).max() < 0.5


def test_cmyk_comes_whole() -> None:
    picture = Image.fromarray(texture(301, 201, grain=20)).convert("CMYK")
    assert decode(encode(picture, "JPEG", quality=95), (20, 20)).pixels.shape == (301, 201, 3)


@pytest.mark.parametrize("name", sorted(DRAWN.keys() - {"jpeg", "progressive jpeg"}))
def test_other_formats_have_one_size(name: str) -> None:
    reduced, full = decode(DRAWN[name], (5, 5)), decode(DRAWN[name], None)
    assert reduced.covers == full.covers == (0, 0, 47, 61)
    np.testing.assert_array_equal(reduced.pixels, full.pixels)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), name=st.sampled_from(["jpeg", "progressive jpeg"]), least=st.sampled_from([5, 10, 20]))
def test_a_damaged_file_gives_a_reduced_picture_or_a_clean_refusal(data: st.DataObject, name: str, least: int) -> None:
    payload = bytearray(DRAWN[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload)))
        payload[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        decode(bytes(payload), (least, least))
    except RequestError as refusal:
        assert refusal.__suppress_context__ or refusal.__context__ is None


# Examples -------------------------------------------------------------------------------------------------------------


def lossless(width: int, height: int) -> bytes:
    """A grey lossless JPEG (ITU T.81, annex H) made by hand: each pixel is one bit that says "as predicted"."""
    frame = b"\xff\xc3" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0"
    table = b"\xff\xc4" + struct.pack(">HB", 20, 0) + b"\1" + bytes(15) + b"\0"
    scan = b"\xff\xda" + struct.pack(">H", 8) + b"\1\1\0\1\0\0"
    return b"\xff\xd8" + frame + table + scan + bytes(width * height // 8 + 1) + b"\xff\xd9"


def test_a_lossless_jpeg_is_decoded_in_full() -> None:
    """libjpeg knows no reduced sizes of it: whoever asks gets all pixels, where there is room for a few."""
    picture = decode(lossless(640, 480), (60, 80))
    assert picture.pixels.shape == (480, 640, 3)
    assert (picture.pixels == 128).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg"])
def test_a_truncated_file_is_called_truncated_at_every_size(name: str, share: float) -> None:
    with pytest.raises(TruncatedImage, match="send the whole file"):
        decode(DRAWN[name][: int(len(DRAWN[name]) * share)], (10, 10))


# The whole way: a photograph of 12 megapixels -------------------------------------------------------------------------

MASKS = CenterOffsetMasks(threshold=0.5, min_votes=16, min_area=12)


def photograph(size: tuple[int, int], unit: float) -> NDArray[np.uint8]:
    """Soft ellipses on a dim ground, 20 to 50 units long and one in each square of 72, and a camera's noise."""
    rng = np.random.default_rng(0)
    canvas: NDArray = np.full(size, 30, np.uint8)
    square = round(72 * unit)
    for y, x in product(*(range(0, side - square + 1, square) for side in size)):
        centre = round(x + square * rng.uniform(0.4, 0.6)), round(y + square * rng.uniform(0.4, 0.6))
        axes = round(unit * rng.uniform(10, 25)), round(unit * rng.uniform(10, 25))
        cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(120, 230)), cv2.FILLED)
    soft = cv2.GaussianBlur(canvas, (0, 0), unit / 2)
    noisy = np.clip(soft + rng.normal(0, 4, size), 0, 255).astype(np.uint8)
    return np.dstack([noisy] * 3)


def network(tensor: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """A stand-in: what is brighter than the ground is inside, and points at the middle of what it touches."""
    grey = cv2.GaussianBlur(tensor[..., 1].astype(np.float32), (0, 0), 1.0)
    inside = 1 / (1 + np.exp((70 - grey) / 8))
    _, parts, _, centres = cv2.connectedComponentsWithStats((inside > 0.25).astype(np.uint8))
    y, x = np.indices(parts.shape, np.float32)
    offsets = np.stack([centres[parts, 1] - y, centres[parts, 0] - x])
    return {"inside": inside.astype(np.float32), "offsets": offsets.astype(np.float32)}


def painted(segments: list[Segment], size: tuple[int, int]) -> NDArray[np.int32]:
    canvas = np.zeros(size, np.int32)
    for number, segment in enumerate(segments, start=1):
        height, width = segment.patch.bits.shape
        area = canvas[segment.patch.y :, segment.patch.x :][:height, :width]
        area[segment.patch.bits] = number
    return canvas


def ious(ours: list[Segment], theirs: list[Segment], size: tuple[int, int]) -> NDArray[np.float64]:
    """For each of our masks the intersection over union with the one of theirs that fits it best."""
    pairs = painted(ours, size) * (len(theirs) + 1) + painted(theirs, size)
    shared = np.bincount(pairs.ravel(), minlength=(len(ours) + 1) * (len(theirs) + 1))
    shared = shared.reshape(len(ours) + 1, len(theirs) + 1)
    either = shared.sum(axis=1)[:, None] + shared.sum(axis=0) - shared
    return (shared / np.maximum(either, 1))[1:, 1:].max(axis=1)


@pytest.mark.parametrize(
    ("size", "orientation", "largest"),
    [
        ((3024, 4032), 1, 1408),  # at 1/2
        ((3023, 4031), 3, 1408),
        ((3023, 4031), 7, 1511),  # at 1/2, as close to the network's input as it may be
        ((4031, 3023), 6, 755),  # at 1/4, the same
    ],
)
def test_masks_of_a_photograph_are_those_of_full_decoding(
    size: tuple[int, int], orientation: int, largest: int
) -> None:
    upright = photograph(size, unit=max(size) / largest)
    payload = encode(np.ascontiguousarray(STORED[orientation](upright)), "JPEG", quality=90, exif=exif(orientation))
    reduced, full, frame = tensors(payload, largest)
    assert frame.size == size
    ours, theirs = (list(MASKS.decode(network(tensor), frame, 0.5)) for tensor in (reduced, full))
    assert len(ours) == len(theirs) >= 70
    assert ious(ours, theirs, size).min() >= 0.99


class Witness(FakeEngine):
    """Keeps what it was shown."""

    seen: NDArray[np.uint8]

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        self.seen = inputs["images"][0]
        return super().run(inputs)


def test_the_server_reduces_a_photograph_and_answers_in_its_own_pixels(tiny_bundle: Path) -> None:
    payload = encode(photograph((3023, 4031), unit=3), "JPEG", quality=90, exif=exif(3))
    settings = Settings.model_validate({"bundles": tiny_bundle.parent.parent, "threads": 2})
    loader, engine = FakeLoader(), Witness()
    loader.engine = engine
    with TestClient(create_app(settings, loader)) as client:
        while client.get("/readyz").status_code != 200:
            sleep(0.01)
        answer = client.post("/v1/segment?score_threshold=0", content=payload).json()
    assert answer["image"] == {"width": 4031, "height": 3023}
    assert [instance["segmentation"]["size"] for instance in answer["instances"]] == [[3023, 4031]] * 3
    middles = sorted(x + width / 2 for x, _, width, _ in (instance["bbox"] for instance in answer["instances"]))
    np.testing.assert_allclose(middles, [4031 / 6, 4031 / 2, 4031 * 5 / 6], atol=3)  # a pixel of the network
    reduced, full, _ = tensors(payload, 1408)
    height, width = reduced.shape[:2]
    np.testing.assert_array_equal(engine.seen[:height, :width], reduced)
    assert (reduced != full).any()


def test_a_manifest_that_forbids_it_has_photographs_decoded_in_full(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    forbidding = bundle.manifest.input.model_copy(update={"reduced_decoding": False})
    manifest = bundle.manifest.model_copy(update={"input": forbidding})
    engine = Witness()

    def load(folder: Path, wanted: Wanted) -> Loaded:
        return Loaded(Bundle(folder, manifest), engine, pace_s=1e-9)

    payload = encode(photograph((3023, 4031), unit=3), "JPEG", quality=90)
    settings = Settings.model_validate({"bundles": tiny_bundle.parent.parent, "threads": 2})
    with TestClient(create_app(settings, load)) as client:
        while client.get("/readyz").status_code != 200:
            sleep(0.01)
        assert client.post("/v1/segment", content=payload).status_code == 200
    reduced, full, _ = tensors(payload, 1408)
    np.testing.assert_array_equal(engine.seen[: full.shape[0], : full.shape[1]], full)
    assert (reduced != full).any()


def test_the_nuclei_model_forbids_it(root: Path) -> None:
    assert not read_bundle(root / "bundles/nuclei/1").manifest.input.reduced_decoding


def test_reducing_a_photograph_spares_most_of_its_memory() -> None:
    payload = encode(photograph((3024, 4032), unit=3), "JPEG", quality=90)
    file = images.survey(payload, LIMIT)
    frame = spec(1408).frame(file.size)
    tracemalloc.start()
    try:
        place(images.decode(file, frame.content), frame)
        assert tracemalloc.get_traced_memory()[1] < 3024 * 4032 * 3 / 2  # half of what the picture would take
    finally:
        tracemalloc.stop()
