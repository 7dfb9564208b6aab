"""Reading a request body, bounded in bytes and in time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from server.errors import BadRequest, BodyTooLarge, RequestTimeout


async def read_body(scope: Scope, receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """
    Raises:
        BodyTooLarge: announced or sent more than `max_bytes`; at most one chunk beyond the limit was read.
        RequestTimeout: not complete after `timeout_s`.
        ClientDisconnect: the client hung up.
    """
    too_large = f"the limit is {max_bytes / 1e6:g} MB (MASKSERVE_MAX_BODY_MB)"
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), None)
    if announced is not None:
        if not announced.isdigit():
            raise BadRequest("Content-Length is not a number")
        if int(announced) > max_bytes:
            raise BodyTooLarge(f"the body is {int(announced) / 1e6:.1f} MB; {too_large}")
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect()
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > max_bytes:
                    raise BodyTooLarge(f"the body is larger than that; {too_large}")
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise RequestTimeout(
            f"the body was not complete after {timeout_s:g} s (MASKSERVE_BODY_TIMEOUT_S); {size} bytes came"
        ) from None
