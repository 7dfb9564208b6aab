"""What a connection writes, and when its timer runs: uvicorn's protocol on a transport that only remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server.http.reply import Reply
from server.http.serving import HandsOn, protocol_with_header_timeout
from server.http.transport import Joined

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"


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


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    await Reply(200, [(b"content-length", b"%d" % len(body))], body).send(send)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def connected(timeout_s: float = 10.0, hands_on: HandsOn = lambda transport, read: False) -> tuple[Any, Remembering]:
    config = uvicorn.Config(echo, log_config=None, lifespan="off", server_header=False, date_header=False)
    protocol: Any = protocol_with_header_timeout(timeout_s, hands_on)(config, ServerState(), {})
    transport = Remembering()
    protocol.connection_made(transport)
    return protocol, transport


def test_an_answer_leaves_in_one_write() -> None:
    async def run() -> None:
        protocol, transport = connected()
        for answers in (1, 2):
            protocol.data_received(REQUEST)
            await turns()
            assert transport.writes == [b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"] * answers
        protocol.connection_lost(None)

    asyncio.run(run())


def test_headers_are_timed_from_the_connections_start_and_only_while_they_are_incomplete() -> None:
    async def run() -> None:
        protocol, _ = connected()

        def timed() -> bool:
            return protocol._patience is not None

        assert timed()
        protocol.data_received(REQUEST)
        assert not timed()
        await turns()
        assert not timed()  # nor when it is answered
        protocol.data_received(REQUEST[:20])
        assert timed()
        patience = protocol._patience
        protocol.data_received(REQUEST[20:30])
        assert protocol._patience is patience  # more bytes are no more time
        protocol.data_received(REQUEST[30:])
        assert not timed()
        protocol.data_received(REQUEST[:20])
        protocol.connection_lost(None)
        assert not timed()

    asyncio.run(run())


def test_the_headers_of_a_second_request_that_never_end_get_a_408() -> None:
    async def run() -> None:
        protocol, transport = connected(timeout_s=0.05)
        protocol.data_received(REQUEST)
        await turns()
        protocol.data_received(REQUEST[:20])
        await asyncio.sleep(0.1)
        assert transport.writes[-1].startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in transport.writes[-1]
        assert transport.closed

    asyncio.run(run())


def test_a_connection_is_offered_only_between_requests_and_when_its_answer_has_left() -> None:
    offered: list[bytes] = []

    def stays(transport: asyncio.Transport, read: bytes) -> bool:
        offered.append(read)
        return False

    async def run() -> None:
        protocol, transport = connected(hands_on=stays)
        protocol.data_received(REQUEST[:-1])
        protocol.data_received(REQUEST[-1:])
        await turns()
        assert offered == [REQUEST[:-1]]
        transport.unsent = 1
        protocol.data_received(REQUEST)
        await turns()
        assert len(offered) == 1, "the rest of the answer would be lost"
        transport.unsent = 0
        protocol.data_received(REQUEST)
        protocol.data_received(REQUEST)
        await turns()
        assert offered[1:] == [REQUEST], "the second came before the first was answered"
        assert len(transport.writes) == 4
        protocol.connection_lost(None)

    asyncio.run(run())


@pytest.mark.parametrize("lost_at_once", [True, False])
def test_a_request_whose_client_hung_up_while_it_was_handed_on_is_heard_and_ends(lost_at_once: bool) -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not heard or heard[-1] != "http.disconnect":
            heard.append((await receive())["type"])

    async def run() -> None:
        config = uvicorn.Config(app, log_config=None, lifespan="off", server_header=False, date_header=False)
        protocol: Any = protocol_with_header_timeout(10.0, lambda transport, read: False)(config, ServerState(), {})
        protocol.read = REQUEST[:-1]  # the last byte never comes
        transport = Remembering()
        protocol.connection_made(transport)
        transport.closed = True
        if not lost_at_once:
            await turns()
        protocol.connection_lost(None)
        await turns()
        assert heard == (["http.disconnect"] if lost_at_once else ["http.request", "http.disconnect"])

    asyncio.run(run())
