"""One HTTP/1.1 connection: a request's bytes go out, its answer comes back with the moment it was complete.

    build_request(b"POST", "/v1/segment", "127.0.0.1:8000", [], payload)  ->  all bytes of the request

A connection carries one request at a time and is kept for the next. Everything here runs once per request while the
clock is ticking, so it does little: parsing is httptools' (C), and what an answer says is looked at elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, cast

import httptools

Header = tuple[str, str]


class Owner(Protocol):
    """Who is told what happens on a connection."""

    def replied(self, connection: Connection, status: int, body: bytes, at: float) -> None: ...

    def lost(self, connection: Connection, why: str) -> None: ...


def build_request(method: str, path: str, host: str, headers: list[Header], payload: bytes = b"") -> bytes:
    """The whole request, head and body, to be written in one go."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Accept: application/json"]
    if method == "POST":
        lines += ["Content-Type: application/octet-stream", f"Content-Length: {len(payload)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + payload


class Connection(asyncio.Protocol):
    """`owner.replied` for every answer, `owner.lost` once when it is over, unless `hang_up` ended it."""

    __slots__ = ("_body", "_owner", "_parser", "_transport", "answering", "busy", "open", "used")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self.open = False
        self.busy = False
        self.answering = False  # some of the answer is here
        self.used = False  # it has carried an answer before

    def send(self, request: bytes) -> None:
        assert self._transport is not None
        self.busy = True
        self.answering = False
        self._body.clear()
        self._transport.write(request)

    def hang_up(self) -> None:
        """Ends it at once; the owner hears no more of it."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        self.answering = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self.open:
                self.hang_up()
                self._owner.lost(self, f"not HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        if self.open:
            self.open = False
            self._owner.lost(self, str(error) if error else "the server closed the connection")

    # httptools calls these

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        at = time.perf_counter()
        status = self._parser.get_status_code()
        if status < 200 or not self.open:  # 100 Continue: the answer proper is still to come
            self._body.clear()
            return
        if not self.busy:  # an answer nobody asked for, such as a 408 before the connection is closed
            self.hang_up()
            self._owner.lost(self, "an answer without a question")
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self.busy = False
        self.used = True
        assert self._transport is not None
        # A server that answers before it has read the request, or says so, leaves a connection that is of no more use.
        if not self._parser.should_keep_alive() or self._transport.get_write_buffer_size():
            self.hang_up()
        self._owner.replied(self, status, body, at)
