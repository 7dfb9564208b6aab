"""An answer as it leaves: status, headers and body, all known before the first byte is written."""

from __future__ import annotations

from typing import NamedTuple

from starlette.types import Send

Headers = list[tuple[bytes, bytes]]


class Reply(NamedTuple):
    """
    Args:
        headers: as they go over the wire, `content-length` among them.
    """

    status: int
    headers: Headers
    body: bytes

    async def send(self, send: Send, more_body: bool = False) -> None:
        """
        Args:
            more_body: the connection is to stay as it is for a moment; an empty body follows.
        """
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": more_body})
