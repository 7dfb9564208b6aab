"""A connection that writes the head of an answer together with its body.

uvicorn writes the two apart, and uvloop hands every write to the kernel at once: two system calls, each of which costs
more than most of what is written here in Python, and may make two packets.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Joined(asyncio.Transport):
    """Holds what is written until more is, or until the event loop's next turn; then writes both at once.

    Args:
        transport: does all the rest.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._held = b""
        self._turn: asyncio.Handle | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._held:
            held = self._let_go()
            self._transport.writelines((held, data))
        elif data:
            self._held = bytes(data)
            self._turn = self._loop.call_soon(self._flush)

    def write_whole(self, data: bytes) -> None:
        """Without waiting for more."""
        if self._held:
            self._transport.writelines((self._let_go(), data))
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._let_go()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_write_buffer_size(self) -> int:
        return len(self._held) + self._transport.get_write_buffer_size()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def _flush(self) -> None:
        held = self._let_go()
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def _let_go(self) -> bytes:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        held, self._held = self._held, b""
        return held
