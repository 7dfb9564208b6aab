"""An answer as it leaves: status, headers and body, all known before the first byte is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

Headers = list[tuple[bytes, bytes]]


class Reply(NamedTuple):
    """
    Args:
        headers: as they go over the wire, `content-length` among them.
    """

    status: int
    headers: Headers
    body: bytes

    def wire(self, default_headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
        """All of it, as HTTP/1.1."""
        lines = [STATUS_LINE[self.status]]
        for name, value in (*default_headers, *self.headers):
            lines += (name, b": ", value, b"\r\n")
        return b"".join((*lines, b"\r\n", self.body))

    async def send(self, send: Send, more_body: bool = False) -> None:
        """
        Args:
            more_body: the connection is to stay as it is for a moment; an empty body follows.
        """
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": more_body})
