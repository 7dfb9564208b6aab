"""Decoding: laws about damage, pictures drawn here in every format and pixel type, limits, a pool of real files."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from server import images
from server.errors import BadImage, ImageTooLarge, RequestError, TruncatedImage, UnsupportedMedia
from tests.shared_data import SHARED, shared

LIMIT = 50_000_000

# Pictures that the tests draw -----------------------------------------------------------------------------------------


def scene(height: int = 61, width: int = 47) -> NDArray[np.uint8]:
    """Smooth, without symmetry, and nowhere black: a mirrored, turned or half-filled answer shows."""
    y, x = np.mgrid[:height, :width]
    planes = [40 + x * 200 / width, 40 + y * 200 / height, 40 + (x + 2 * y) % 97]
    return np.stack(planes, axis=2).astype(np.uint8)


def grey_scene() -> NDArray[np.uint8]:
    return np.ascontiguousarray(scene()[..., 1])


def encode(pixels: NDArray[Any] | Image.Image, kind: str, **options: object) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, interlaced: bool = False) -> bytes:
    """A PNG made by hand, for what Pillow cannot write. Each row of `rows` begins with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(tags: dict[int, int], pixels: bytes) -> bytes:
    """A TIFF of one strip or tile made by hand: header, directory, pixels."""
    offset, length = (324, 325) if 322 in tags else (273, 279)
    tags = {**tags, offset: 8 + 2 + 12 * (len(tags) + 2) + 4, length: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def drawn() -> dict[str, bytes]:
    """One file for each way in, all of the same scene."""
    palette = Image.fromarray(scene()).quantize(64)
    return {
        "jpeg": encode(scene(), "JPEG", quality=95),
        "progressive jpeg": encode(scene(), "JPEG", quality=95, progressive=True),
        "png": encode(scene(), "PNG"),
        "palette png": encode(palette, "PNG"),
        "lossy webp": encode(scene(), "WEBP", quality=95),
        "lossless webp": encode(scene(), "WEBP", lossless=True),
        "bmp": encode(scene(), "BMP"),
        "gif": encode(palette, "GIF"),
        "tiff": encode(scene(), "TIFF"),
        "lzw tiff": encode(scene(), "TIFF", compression="tiff_lzw"),
        "big tiff": encode(scene(), "TIFF", compression="tiff_adobe_deflate", big_tiff=True),
        "jpeg tiff": encode(scene(), "TIFF", compression="jpeg", quality=95),
    }


DRAWN = drawn()


def decode(payload: bytes) -> NDArray[np.uint8]:
    pixels = images.decode(images.survey(payload, LIMIT)).pixels
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.flags.c_contiguous
    return pixels


def assert_close(pixels: NDArray[np.uint8], expected: NDArray[np.uint8], tolerance: float) -> None:
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(float) - expected).mean() <= tolerance


# Laws -----------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(name=st.sampled_from(sorted(DRAWN)), share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_gives_no_picture_or_the_whole_one(name: str, share: float) -> None:
    """A GIF may lose its last byte and a TIFF the pointer to its next page: nothing of the picture is missing then."""
    payload = DRAWN[name]
    try:
        pixels = decode(payload[: int(len(payload) * share)])
    except (TruncatedImage, BadImage):
        return
    np.testing.assert_array_equal(pixels, decode(payload))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), name=st.sampled_from(sorted(DRAWN)))
def test_a_damaged_file_gives_a_picture_or_a_clean_refusal(data: st.DataObject, name: str) -> None:
    payload = bytearray(DRAWN[name])
    for _ in range(data.draw(st.integers(1, 4))):
        first, last = data.draw(st.sampled_from(((0, 64), (0, len(payload)), (len(payload) - 200, len(payload)))))
        at = data.draw(st.integers(first, last))  # headers, and directories at the end, are where it hurts
        payload[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    refusal = None
    try:
        images.decode(images.survey(bytes(payload), 1_000_000))
    except RequestError as error:
        refusal = error
    if refusal:
        assert refusal.__suppress_context__ or refusal.__context__ is None
        assert not any(leak in str(refusal) for leak in ("PIL", "0x", "/", "Error", "Traceback"))


# Examples: pixels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_every_format_gives_the_scene_back(name: str) -> None:
    exact = name in {"png", "lossless webp", "bmp", "tiff", "lzw tiff", "big tiff"}
    assert_close(decode(DRAWN[name]), scene(), tolerance=0 if exact else 8)


STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {  # how a camera stores an upright scene
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_comes_out_upright(orientation: int, kind: str) -> None:
    upright = scene(700, 500)  # more than one band of rows
    stored = np.ascontiguousarray(STORED[orientation](upright))
    options = {"WEBP": {"lossless": True, "method": 0}, "PNG": {"compress_level": 1}, "JPEG": {"quality": 95}}
    payload = encode(stored, kind, exif=exif(orientation), **options.get(kind, {}))
    assert_close(decode(payload), upright, tolerance=3 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_ignored(orientation: int) -> None:
    np.testing.assert_array_equal(decode(encode(scene(), "PNG", exif=exif(orientation))), scene())


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"II*\0", id="short"),
        pytest.param(b"MM\0*\xff\xff\xff\xff", id="far away"),
        pytest.param(b"II*\0\x08\0\0\0\xff\xff", id="cut"),
        pytest.param(b"nonsense" * 8000, id="nonsense"),
        pytest.param(b"II+\0" + b"\xff" * 60000, id="huge"),
    ],
)
def test_broken_exif_is_no_reason_to_refuse_a_picture(block: bytes) -> None:
    payload = DRAWN["jpeg"]
    segment = b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(block)) + b"Exif\0\0" + block
    np.testing.assert_array_equal(decode(payload[:2] + segment * 3 + payload[2:]), decode(payload))
    payload = DRAWN["png"]
    np.testing.assert_array_equal(decode(payload[:33] + png_chunk(b"eXIf", block) + payload[33:]), scene())


def test_metadata_that_pillow_warns_about_or_refuses_is_left_aside() -> None:
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8 << 20)))
    animation = png_chunk(b"acTL", bytes(8))
    payload = DRAWN["png"]
    np.testing.assert_array_equal(decode(payload[:33] + text * 20 + animation + payload[33:]), scene())
    exif_beyond_the_end = {34665: 1 << 30}
    payload = tiff({256: 1, 257: 1, 258: 8, 259: 1, 262: 1, **exif_beyond_the_end}, b"\x99")
    np.testing.assert_array_equal(decode(payload), [[[0x99, 0x99, 0x99]]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_upper_byte(kind: str) -> None:
    deep = grey_scene().astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(encode(deep, kind)), np.repeat(grey_scene()[..., None], 3, axis=2))


def test_16_bit_colour_keeps_its_upper_byte() -> None:
    rows = scene().astype(">u2") * 256 + 255
    payload = png(47, 61, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows.astype(">u2")))
    np.testing.assert_array_equal(decode(payload), scene())


def test_tiff_samples_of_12_bit_are_scaled_by_their_range() -> None:
    """Two samples in three bytes: 0xABC and 0x123."""
    payload = tiff({256: 2, 257: 1, 258: 12, 259: 1, 262: 1}, bytes((0xAB, 0xC1, 0x23)))
    np.testing.assert_array_equal(decode(payload)[0, :, 0], [0xAB, 0x12])


@pytest.mark.parametrize(("bits", "stored"), [(8, b"\x00\xf0"), (16, b"\x12\x00\x34\xf0")])
def test_a_tiff_where_white_is_zero_is_not_a_negative(bits: int, stored: bytes) -> None:
    payload = tiff({256: 2, 257: 1, 258: bits, 259: 1, 262: 0}, stored)
    np.testing.assert_array_equal(decode(payload)[0, :, 0], [255, 255 - 0xF0])


@pytest.mark.parametrize("compression", [1, 8], ids=["raw", "deflate"])
def test_a_tiff_may_come_in_tiles(compression: int) -> None:
    tile = np.zeros((64, 64), np.uint8)
    tile[:61, :47] = grey_scene()
    pixels = tile.tobytes() if compression == 1 else zlib.compress(tile.tobytes())
    payload = tiff({256: 47, 257: 61, 258: 8, 259: compression, 262: 1, 322: 64, 323: 64}, pixels)
    np.testing.assert_array_equal(decode(payload)[..., 1], grey_scene())


def test_cmyk_jpeg_is_not_a_negative() -> None:
    payload = encode(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95)
    assert_close(decode(payload), scene(), tolerance=3)


def test_cmyk_and_ycbcr_tiff_keep_their_colours() -> None:
    picture = Image.fromarray(scene())
    assert_close(decode(encode(picture.convert("CMYK"), "TIFF")), scene(), tolerance=1)
    assert_close(decode(encode(picture.convert("YCbCr"), "TIFF")), scene(), tolerance=2)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_alpha_is_dropped_and_the_colour_beneath_it_stays(kind: str, options: dict[str, Any]) -> None:
    alpha = np.tile(np.linspace(0, 255, 47, dtype=np.uint8), (61, 1))
    payload = encode(np.dstack([scene(), alpha]), kind, **options)
    np.testing.assert_array_equal(decode(payload), scene())


def test_grey_with_alpha_becomes_grey() -> None:
    grey = Image.fromarray(grey_scene())
    grey.putalpha(Image.fromarray(255 - grey_scene()))
    np.testing.assert_array_equal(decode(encode(grey, "PNG")), np.repeat(grey_scene()[..., None], 3, axis=2))


def test_a_transparent_colour_of_a_palette_is_that_colour() -> None:
    palette = Image.fromarray(scene()).quantize(16)
    opaque = decode(encode(palette, "PNG"))
    for transparency in (3, bytes(range(0, 160, 10))):
        np.testing.assert_array_equal(decode(encode(palette, "PNG", transparency=transparency)), opaque)
    np.testing.assert_array_equal(decode(encode(palette, "GIF", transparency=3)), opaque)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {"compression": "group4"})])
def test_one_bit_becomes_black_and_white(kind: str, options: dict[str, Any]) -> None:
    bits = grey_scene() > 140
    expected = np.repeat(bits[..., None] * np.uint8(255), 3, axis=2)
    np.testing.assert_array_equal(decode(encode(bits, kind, **options)), expected)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_answered(kind: str) -> None:
    first, second = (Image.fromarray(pixels).quantize(64) for pixels in (scene(), 255 - scene()))
    if kind != "GIF":
        first, second = first.convert("RGB"), second.convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    payload = encode(first, kind, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(decode(payload), np.asarray(first.convert("RGB")))


# Examples: what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", sorted(DRAWN))
def test_a_truncated_file_is_called_truncated(name: str, share: float) -> None:
    payload = DRAWN[name]
    cut = payload[: int(len(payload) * share)]
    with pytest.raises(TruncatedImage, match="send the whole file"):
        decode(cut)


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_with_rows_missing_is_truncated_and_a_black_one_is_not(interlaced: bool) -> None:
    black = bytes(8 * (1 + 8 * 3)) if not interlaced else bytes(8 * 8 * 3 + 1 + 1 + 1 + 2 + 2 + 4 + 4)
    assert not decode(png(8, 8, 8, 2, black, interlaced)).any()
    with pytest.raises(TruncatedImage):
        decode(png(8, 8, 8, 2, black[:-25], interlaced))
    with pytest.raises((TruncatedImage, BadImage)):
        decode(png(8, 8, 8, 2, black[:-1], interlaced))


@pytest.mark.parametrize("payload", [b"", b"\x89", b"<html>503</html>", b"hello" * 99, bytes(1000), b"\x1f\x8b\x08"])
def test_what_is_no_picture_is_a_bad_image(payload: bytes) -> None:
    with pytest.raises(BadImage, match="send JPEG, PNG, WebP, BMP, TIFF or GIF"):
        decode(payload)


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b"\0\0\0\x20ftypavif\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b'<?xml version="1.0"?>\n<!-- a drawing -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"8BPS\0\1", "PSD"),
        (b"\0\0\1\0\1\0", "ICO"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS"),
        (b"%PDF-1.7", "PDF"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"P6\n2 2\n255\n", "PNM"),
        (bytes(128) + b"DICM", "DICOM"),
    ],
)
def test_a_format_outside_the_list_is_named_with_the_list(payload: bytes, name: str) -> None:
    with pytest.raises(UnsupportedMedia, match=f"{name}.* is not supported; send JPEG, PNG, WebP, BMP, TIFF or GIF"):
        decode(payload)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_samples_that_have_no_8_bit_meaning_are_unsupported(dtype: type) -> None:
    with pytest.raises(UnsupportedMedia, match="save unsigned 8 or 16 bit"):
        decode(encode(scene()[..., 0].astype(dtype), "TIFF"))


def test_lab_tiff_is_unsupported() -> None:
    with pytest.raises(UnsupportedMedia, match="colour space"):
        decode(encode(Image.fromarray(scene()).convert("LAB"), "TIFF"))


def test_a_flipped_bit_in_a_png_is_noticed() -> None:
    payload = bytearray(DRAWN["png"])
    payload[len(payload) // 2] ^= 1
    with pytest.raises(BadImage, match="checksum"):
        decode(bytes(payload))


# Examples: limits -----------------------------------------------------------------------------------------------------


def test_the_limit_itself_is_allowed_and_one_pixel_more_is_not() -> None:
    assert images.survey(DRAWN["png"], 61 * 47).size == (61, 47)
    with pytest.raises(ImageTooLarge):
        images.survey(DRAWN["png"], 61 * 47 - 1)


def test_a_refused_size_is_told_with_the_limit_and_its_setting() -> None:
    with pytest.raises(ImageTooLarge) as caught:
        decode(png(9000, 7000, 8, 2, b""))
    message = "image is 9000 x 7000 (63.0 megapixels); the limit is 50 megapixels (MASKSERVE_MAX_MEGAPIXELS)"
    assert str(caught.value) == message


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that announce 65,000 x 65,000 pixels."""
    side = 65_000
    jpeg = DRAWN["jpeg"]
    at = jpeg.index(b"\xff\xc0") + 5
    yield "jpeg", jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :]
    yield "png", png(side, side, 1, 0, bytes(1 << 20))
    extended = b"VP8X\x0a\0\0\0\0\0\0\0" + 2 * (side - 1).to_bytes(3, "little")
    yield "webp", b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended
    yield "bmp", DRAWN["bmp"][:18] + struct.pack("<ii", side, -side) + DRAWN["bmp"][26:]
    yield "gif", DRAWN["gif"][:6] + struct.pack("<HH", side, side) + DRAWN["gif"][10:]
    yield "tiff", tiff({256: side, 257: side, 258: 8, 259: 8, 262: 1}, zlib.compress(bytes(1 << 20)))


@pytest.mark.parametrize("bomb", [pytest.param(bomb, id=name) for name, bomb in bombs()])
def test_a_bomb_is_refused_from_its_header(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge, match="65000 x 65000"):
            decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_bombs_leave_the_memory_of_the_process_as_it_was(root: Path) -> None:
    program = """
import resource, sys
from server import images
from server.errors import ImageTooLarge
sizes = [int(size) for size in sys.argv[1:]]
bombs = [sys.stdin.buffer.read(size) for size in sizes]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in bombs:
    try:
        images.survey(bomb, 50_000_000)
    except ImageTooLarge:
        continue
    sys.exit("a bomb got through")
unit = 1 if sys.platform == "darwin" else 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit)
"""
    files = [bomb for _, bomb in bombs()]
    sizes = [str(len(file)) for file in files]
    command = [sys.executable, "-c", program, *sizes]
    done = subprocess.run(command, cwd=root, input=b"".join(files), capture_output=True, check=True)
    assert int(done.stdout) < 10_000_000


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xd8" + b"\xff" * 4_000_000,
        b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000,
        DRAWN["png"][:33] + png_chunk(b"teXt", b"") * 300_000 + DRAWN["png"][33:],
        DRAWN["gif"][:13] + b"!\xfe" + b"\1a" * 2_000_000 + b"\0" + DRAWN["gif"][13:],
        DRAWN["progressive jpeg"][:-2] + DRAWN["progressive jpeg"][-200:-2].join([b"\xff\xda"] * 5000) + b"\xff\xd9",
        tiff({256: 9, 257: 9, 258: 8, 259: 8, 262: 1, 322: 60_000, 323: 60_000}, bytes(99)),
        tiff({256: 9, 257: 9, 258: 8, 259: 5, 262: 1, 278: 60_000, 322: 60_000}, bytes(99)),
    ],
    ids=["padding", "segments", "chunks", "sub-blocks", "scans", "tile", "strip that is a tile"],
)
def test_a_file_made_to_waste_time_or_memory_is_refused(payload: bytes) -> None:
    with pytest.raises((BadImage, TruncatedImage)):
        decode(payload)


def test_threads_decode_the_same_bytes_to_the_same_picture() -> None:
    payloads = list(DRAWN.values()) * 8
    alone = [decode(payload).tobytes() for payload in DRAWN.values()] * 8
    with ThreadPoolExecutor(8) as threads:
        together = threads.map(decode, payloads)
        assert [pixels.tobytes() for pixels in together] == alone


# Oracle: the pool of real files ---------------------------------------------------------------------------------------

REFUSALS: dict[str, type[RequestError]] = {
    "not_an_image": BadImage,
    "empty": BadImage,
    "corrupt": BadImage,
    "invalid_dimensions": BadImage,
    "truncated": TruncatedImage,
    "too_many_pixels": ImageTooLarge,
    "too_large": ImageTooLarge,
    "unsupported_format": UnsupportedMedia,
    "unsupported_pixel_type": UnsupportedMedia,
}


def pool() -> dict[str, dict[str, Any]]:
    manifest = SHARED / "data/images/manifest.json"
    return {entry["file"]: entry for entry in json.loads(manifest.read_bytes())["files"]} if manifest.exists() else {}


POOL = pool()


@pytest.mark.parametrize("name", sorted(POOL) or ["manifest.json"])
def test_every_file_of_the_pool_is_answered_as_its_manifest_says(name: str) -> None:
    payload = (shared("data/images") / name).read_bytes()
    entry = POOL[name]
    pixels, refusal = None, None
    try:
        pixels = decode(payload)
    except RequestError as error:
        refusal = type(error)
    if entry["strict"]:
        assert refusal is (REFUSALS[entry["reason"]] if entry["expect"] == "reject" else None)
    if pixels is None:
        return
    if "expected_size" in entry:
        assert [pixels.shape[1], pixels.shape[0]] == entry["expected_size"]
    if entry.get("expected_mean_rgb"):
        mean = pixels.mean(axis=(0, 1))
        np.testing.assert_allclose(mean, entry["expected_mean_rgb"], rtol=0, atol=entry["mean_tolerance"] + 0.01)
