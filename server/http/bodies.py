"""What a request body holds: one picture as it is, several in a form, or one as base64 in JSON.

    b"\\x89PNG..."                                    ->  [b"\\x89PNG..."]
    multipart/form-data with parts named `image`     ->  their bytes, in order
    {"image": "iVBORw0KGgo..."}                      ->  [b"\\x89PNG..."]

There is no input by URL: nothing is ever fetched. Forms are parsed by python-multipart, in memory, from a body that is
bounded already.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from server.errors import BadParameter, BadRequest, TooManyImages

FIELD = "image"


def is_raw(content_type: str) -> bool:
    """Whether the body is the picture itself, whatever kind of picture the header says."""
    return not content_type.lower().startswith(("multipart/", "application/json"))


def unpack(body: bytes, content_type: str, max_images: int) -> list[bytes]:
    """The pictures of a form or of JSON, at least one.

    Raises:
        BadRequest: malformed, or without a picture.
        BadParameter: a field that is not `image`.
        TooManyImages: more than `max_images`.
    """
    if content_type.lower().startswith("multipart/"):
        return _unpack_form(body, content_type, max_images)
    return [_unpack_json(body)]


def _unpack_form(body: bytes, content_type: str, max_images: int) -> list[bytes]:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary or len(boundary) > 256:
        raise BadRequest("a form should be 'multipart/form-data' with a boundary of at most 256 characters")
    form = _Form(max_images)
    parser = MultipartParser(boundary, callbacks=form.callbacks())  # type: ignore[arg-type]  # its TypedDict names fewer
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise BadRequest("the form is malformed; let your client library write it") from None
    if not form.complete:
        raise BadRequest("the form ends before its closing boundary; send the whole body")
    if not form.images:
        raise BadRequest(f"the form holds no picture; name its parts '{FIELD}'")
    return [bytes(image) for image in form.images]


class _Form:
    """Collects the parts that the parser finds."""

    def __init__(self, max_images: int) -> None:
        self.images: list[bytearray] = []
        self.complete = False
        self._max_images = max_images
        self._name = bytearray()
        self._value = bytearray()
        self._named = False

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": lambda data, start, end: self.images[-1].extend(memoryview(data)[start:end]),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._named = False

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            name = options.get(b"name", b"").decode("utf-8", "replace")
            if name != FIELD:
                raise BadParameter(
                    f"the form has a part named '{name[:80]}'; name pictures '{FIELD}', and nothing else"
                )
            self._named = True
        self._name.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        if not self._named:
            raise BadRequest(f"a part of the form has no name; name it '{FIELD}'")
        if len(self.images) >= self._max_images:
            raise TooManyImages(f"the form holds more than {self._max_images} images (MASKSERVE_MAX_IMAGES)")
        self.images.append(bytearray())

    def _end(self) -> None:
        self.complete = True


def _unpack_json(body: bytes) -> bytes:
    try:
        content = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        raise BadRequest(f'the body is not JSON; send {{"{FIELD}": "<base64>"}}') from None
    if not isinstance(content, dict):
        raise BadRequest(f'the body should be {{"{FIELD}": "<base64>"}}')
    unknown = [name for name in content if name != FIELD]
    if unknown:
        hint = "; there is no input by URL, send the picture itself" if "url" in unknown[0].lower() else ""
        raise BadParameter(f"'{unknown[0][:80]}' is not known here; the body should have '{FIELD}' alone{hint}")
    text = content.get(FIELD)
    if not isinstance(text, str):
        raise BadRequest(f"'{FIELD}' should be a string of base64")
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise BadRequest(f"'{FIELD}' is not base64 (no line breaks, no 'data:' prefix, padded with '=')") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(name)
