"""Writes that leave together, on a transport that only remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from server.http.transport import Joined


class Remembering(asyncio.Transport):
    """Every write, each a list of what went together."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = self.aborted = False
        self.unsent = 0  # bytes

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: Any) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def on_a_loop(story: Callable[[Remembering, Joined], Coroutine[Any, Any, None]]) -> Remembering:
    transport = Remembering()

    async def run() -> None:
        await story(transport, Joined(transport, asyncio.get_running_loop()))
        await asyncio.sleep(0)

    asyncio.run(run())
    return transport


def test_two_writes_of_one_turn_are_one() -> None:
    async def story(transport: Remembering, joined: Joined) -> None:
        joined.write(b"head")
        assert transport.writes == []
        joined.write(b"body")
        assert transport.writes == [b"headbody"]
        joined.write(b"next head")
        joined.write(b"next body")

    assert on_a_loop(story).writes == [b"headbody", b"next headnext body"]


def test_what_nothing_follows_leaves_with_the_next_turn_and_only_once() -> None:
    async def story(transport: Remembering, joined: Joined) -> None:
        joined.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0)
        assert transport.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
        joined.write(b"")

    assert len(on_a_loop(story).writes) == 1


def test_closing_writes_what_is_held_and_aborting_drops_it() -> None:
    async def closing(transport: Remembering, joined: Joined) -> None:
        joined.write(b"last words")
        joined.close()
        assert transport.closed

    async def aborting(transport: Remembering, joined: Joined) -> None:
        joined.write(b"last words")
        joined.abort()

    async def ending(transport: Remembering, joined: Joined) -> None:
        joined.write(b"last words")
        transport.close()  # by the other side; a write would be refused

    assert on_a_loop(closing).writes == [b"last words"]
    assert on_a_loop(aborting).writes == []
    assert on_a_loop(ending).writes == []
