"""Bodies: raw, forms and base64, taken or refused by name."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadParameter, BadRequest, RequestError, TooManyImages
from server.http.bodies import is_raw, unpack

JSON = "application/json"
FORM = "multipart/form-data; boundary=XX"


def form(*parts: tuple[str, bytes], end: bytes = b"--XX--\r\n") -> bytes:
    pieces = [
        b'--XX\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n%s\r\n'
        % (name.encode(), data)
        for name, data in parts
    ]
    return b"".join(pieces) + end


@pytest.mark.parametrize("media", ["", "image/png", "application/octet-stream", "text/html", "application/x-json"])
def test_all_but_forms_and_json_are_the_picture_itself(media: str) -> None:
    assert is_raw(media)


@pytest.mark.parametrize("media", [JSON, "Application/JSON; charset=utf-8", FORM, "multipart/mixed"])
def test_forms_and_json_are_unpacked(media: str) -> None:
    assert not is_raw(media)


@given(pictures=st.lists(st.binary(max_size=300).filter(lambda data: b"--XX" not in data), min_size=1, max_size=5))
def test_a_form_gives_its_pictures_in_order(pictures: list[bytes]) -> None:
    body = form(*(("image", data) for data in pictures))
    assert unpack(body, FORM, max_images=5) == pictures


@given(picture=st.binary(max_size=300))
def test_base64_gives_the_picture(picture: bytes) -> None:
    body = json.dumps({"image": base64.b64encode(picture).decode()}).encode()
    assert unpack(body, JSON, max_images=1) == [picture]


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (form(("image", b"a"), ("image", b"b"), ("image", b"c")), TooManyImages, "more than 2"),
        (form(("file", b"a")), BadParameter, "'file'"),
        (form(("../image", b"a")), BadParameter, "../image"),
        (form(), BadRequest, "no picture"),
        (form(("image", b"a"), end=b""), BadRequest, "closing boundary"),
        (b"no form at all", BadRequest, "malformed"),
        (b"", BadRequest, "closing"),
        (b"--XX\r\nContent-Type: image/png\r\n\r\na\r\n--XX--\r\n", BadRequest, "no name"),
        (b"--XX\r\nX: " + b"y" * 5000 + b"\r\n\r\na\r\n--XX--\r\n", BadRequest, "malformed"),
        (b"\r\n" * 100_000, BadRequest, "closing"),
    ],
)
def test_a_wrong_form_is_refused(body: bytes, error: type[RequestError], says: str) -> None:
    with pytest.raises(error, match=says):
        unpack(body, FORM, max_images=2)


@pytest.mark.parametrize("media", ["multipart/form-data", "multipart/mixed; boundary=XX", f"{FORM[:-2]}{'X' * 300}"])
def test_a_form_without_a_proper_boundary_is_refused(media: str) -> None:
    with pytest.raises(BadRequest, match="boundary"):
        unpack(form(("image", b"a")), media, max_images=2)


def test_a_hundred_thousand_parts_are_refused_after_the_first_too_many() -> None:
    with pytest.raises(TooManyImages):
        unpack(form(*[("image", b"")] * 100_000), FORM, max_images=16)


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (b"", BadRequest, "not JSON"),
        (b"{", BadRequest, "not JSON"),
        (b"\xff\xfe", BadRequest, "not JSON"),
        (b"[" * 100_000, BadRequest, "not JSON"),
        (b"1" * 1_000_000, BadRequest, "not JSON"),
        (b"NaN", BadRequest, "not JSON"),
        (b'{"image": "aGk=", "image": "aGk="}', BadRequest, "not JSON"),
        (b'["aGk="]', BadRequest, "should be"),
        (b"{}", BadRequest, "string of base64"),
        (b'{"image": 7}', BadRequest, "string of base64"),
        (b'{"image": "aGk"}', BadRequest, "not base64"),
        (b'{"image": "aG\\nk="}', BadRequest, "not base64"),
        (b'{"image": "data:image/png;base64,aGk="}', BadRequest, "not base64"),
        (b'{"image": "\\ud800"}', BadRequest, "not base64"),
        (b'{"image": "aGk=", "threshold": 0.5}', BadParameter, "'threshold'"),
        (b'{"url": "http://127.0.0.1/a.png"}', BadParameter, "no input by URL"),
    ],
)
def test_wrong_json_is_refused(body: bytes, error: type[RequestError], says: str) -> None:
    with pytest.raises(error, match=says):
        unpack(body, JSON, max_images=1)
