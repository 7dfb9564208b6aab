"""The quick decoder of ordinary JPEG files against Pillow: the same pixels, and nothing it should leave alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from server import images, jpeg

RANDOM = np.random.default_rng(4)


def photograph(height: int, width: int) -> Image.Image:
    rough = RANDOM.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def saved(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


def lean(payload: bytes) -> bytes:
    return images.survey(payload, 10**9).survey.body


def by_pillow(payload: bytes, reduction: int = 1) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(payload)) as picture:
        if reduction > 1:
            picture.draft(None, (picture.width // reduction, picture.height // reduction))
        return np.asarray(picture.convert("RGB"))


@given(
    height=st.integers(8, 90),
    width=st.integers(8, 90),
    mode=st.sampled_from(["RGB", "L"]),
    options=st.fixed_dictionaries(
        {
            "quality": st.integers(5, 100),
            "progressive": st.booleans(),
            "subsampling": st.sampled_from([0, 1, 2]),
            "optimize": st.booleans(),
        }
    ),
    reduction=st.sampled_from([1, 2, 4]),
)
def test_pixels_are_those_of_pillow(
    height: int, width: int, mode: str, options: dict[str, object], reduction: int
) -> None:
    payload = saved(photograph(height, width).convert(mode), **options)
    body = lean(payload)
    assert jpeg.is_ordinary(body)
    assert np.array_equal(jpeg.decode(body, (width, height), reduction), by_pillow(payload, reduction))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright_as_pillow_would(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    payload = saved(photograph(30, 47), exif=exif.tobytes())
    turned = images.decode(images.survey(payload, 10**9)).pixels
    with Image.open(io.BytesIO(payload)) as picture:
        transposes = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
        upright = picture.transpose(Image.Transpose(transposes[orientation])) if orientation > 1 else picture
        assert np.array_equal(turned, np.asarray(upright))
    assert turned.flags.c_contiguous


def test_cmyk_is_left_to_pillow() -> None:
    payload = saved(photograph(40, 40).convert("CMYK"))
    assert not jpeg.is_ordinary(lean(payload))
    assert images.decode(images.survey(payload, 10**9)).pixels.shape == (40, 40, 3)


@pytest.mark.parametrize(("marker", "precision"), [(0xC0, 12), (0xC3, 8), (0xC9, 8), (0xCA, 8), (0xCB, 8), (0xC5, 8)])
def test_kinds_that_nobody_takes_photographs_with_are_left_to_pillow(marker: int, precision: int) -> None:
    frame = bytes((0xFF, marker, 0, 17, precision, 0, 8, 0, 8, 3)) + bytes(9)
    tables = b"\xff\xdb\x00\x04\x00\x00\xff\xc4\x00\x04\x00\x00"
    assert not jpeg.is_ordinary(b"\xff\xd8" + tables + frame + b"\xff\xda\x00\x02")
    assert jpeg.is_ordinary(
        b"\xff\xd8" + tables + frame.replace(frame[:5], b"\xff\xc0\x00\x11\x08") + b"\xff\xda\x00\x02"
    )


def test_a_size_that_the_data_does_not_have_is_told() -> None:
    with pytest.raises(ValueError, match="decoded to"):
        jpeg.decode(lean(saved(photograph(30, 40))), (41, 30), 1)


def test_it_says_nothing_on_stderr_about_damage(capfd: pytest.CaptureFixture[str]) -> None:
    payload = bytearray(saved(photograph(200, 200), quality=95))
    payload[len(payload) // 2 : len(payload) // 2 + 40] = bytes(range(40))
    images.decode(images.survey(bytes(payload), 10**9))
    assert capfd.readouterr().err == ""
