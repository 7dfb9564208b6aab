"""A connection: what it writes and when its timers run, on a transport that only remembers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server.http.protocol import HandsOn, Refusal, connection_class
from server.http.reply import Reply
from tests.server.test_transport import Remembering

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    await Reply(200, [(b"content-length", b"%d" % len(body))], body).send(send)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def stays(transport: asyncio.Transport, read: bytes) -> bool:
    return False


def lets_in(scope: Scope) -> Reply | None:
    return None


def connected(
    timeout_s: float = 10.0, hands_on: HandsOn = stays, refusal: Refusal = lets_in, app: Any = echo
) -> tuple[Any, Remembering]:
    config = uvicorn.Config(app, log_config=None, lifespan="off", server_header=False, date_header=False)
    protocol: Any = connection_class(timeout_s, hands_on, refusal)(config, ServerState(), {})
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
        assert protocol.timeout_keep_alive_task is None  # nor is silence now what it is between requests
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

    def offer(transport: asyncio.Transport, read: bytes) -> bool:
        offered.append(read)
        return False

    async def run() -> None:
        protocol, transport = connected(hands_on=offer)
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
        protocol: Any = connection_class(10.0, stays, lets_in)(config, ServerState(), {})
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


def refuses(scope: Scope) -> Reply:
    body = b'{"code":"overloaded"}'
    return Reply(503, [(b"x-path", scope["path"].encode()), (b"content-length", b"%d" % len(body))], body)


def refused(path: str = "/") -> bytes:
    head = f"HTTP/1.1 503 Service Unavailable\r\nx-path: {path}\r\ncontent-length: 21\r\n\r\n"
    return head.encode() + b'{"code":"overloaded"}'


def test_a_refusal_is_written_before_the_call_returns_and_the_connection_goes_on() -> None:
    async def run() -> None:
        protocol, transport = connected(refusal=refuses)
        for answers in (1, 2):
            protocol.data_received(REQUEST)
            assert transport.writes == [refused()] * answers
        await turns()
        assert transport.writes == [refused()] * 2, "nobody else has answered"
        assert not transport.closed
        protocol.connection_lost(None)

    asyncio.run(run())


def test_the_body_of_a_refused_request_is_dropped_whenever_it_comes_and_silence_after_it_ends() -> None:
    async def run() -> None:
        protocol, transport = connected(refusal=refuses)
        protocol.timeout_keep_alive = 0.05
        protocol.data_received(REQUEST[:-3])
        assert transport.writes == [refused()]
        for byte in b"abc":
            protocol.data_received(bytes([byte]))
            assert protocol.timeout_keep_alive_task is not None
        protocol.data_received(REQUEST)
        assert transport.writes == [refused()] * 2
        assert not transport.closed
        await asyncio.sleep(0.1)
        assert transport.closed

    asyncio.run(run())


def test_requests_that_come_together_are_refused_in_order_however_many() -> None:
    count = 3000

    async def run() -> None:
        protocol, transport = connected(refusal=refuses)
        requests = [REQUEST.replace(b" / ", b" /%d " % number) for number in range(count)]
        protocol.data_received(b"".join(requests))
        assert transport.writes == [refused(f"/{number}") for number in range(count)]
        protocol.connection_lost(None)

    asyncio.run(run())


def test_refusals_wait_for_the_answer_before_them() -> None:
    def refuses_some(scope: Scope) -> Reply | None:
        return None if scope["path"] == "/" else refuses(scope)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reply = refuses_some(scope)
        if reply is not None:  # as the application does, where it is asked and not the entrance
            await reply.send(send)
        else:
            await echo(scope, receive, send)

    async def run() -> None:
        protocol, transport = connected(refusal=refuses_some, app=app)
        requests = [REQUEST, *(REQUEST.replace(b" / ", b" /%d " % number) for number in range(3))]
        protocol.data_received(b"".join(requests))
        assert transport.writes == []
        await turns(20)
        answers = [b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", *(refused(f"/{number}") for number in range(3))]
        assert b"".join(transport.writes) == b"".join(answers)
        protocol.connection_lost(None)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_line", "header"),
    [
        (b"HEAD / HTTP/1.1", b""),
        (b"POST / HTTP/1.0", b""),
        (b"POST / HTTP/1.1", b"Connection: close\r\n"),
        (b"POST / HTTP/1.1", b"Expect: 100-continue\r\n"),
    ],
)
def test_what_is_not_plain_is_left_to_the_application(request_line: bytes, header: bytes) -> None:
    async def run() -> None:
        protocol, transport = connected(refusal=refuses)
        protocol.data_received(request_line + b"\r\nHost: x\r\nContent-Length: 3\r\n" + header + b"\r\nabc")
        assert transport.writes == []
        await turns()
        assert b" 200 OK\r\n" in b"".join(transport.writes)
        protocol.connection_lost(None)

    asyncio.run(run())


def test_nothing_is_told_to_a_client_that_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    """It hung up while its request was handed on to this process."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await refuses(scope).send(send)

    async def run() -> None:
        protocol, transport = connected(refusal=refuses, app=app)
        protocol.read = REQUEST
        transport.closed = True
        protocol.connection_lost(None)
        await turns()
        assert transport.writes == []

    asyncio.run(run())
    assert not caplog.records, "a write that fails within the parser looks like a request that is no HTTP"


def test_who_does_not_read_the_refusals_gets_no_more_of_them() -> None:
    async def run() -> None:
        protocol, transport = connected(refusal=refuses)
        protocol.pause_writing()
        protocol.data_received(REQUEST)
        await turns()
        assert transport.writes == []
        protocol.resume_writing()
        await turns()
        assert len(transport.writes) == 1
        protocol.connection_lost(None)

    asyncio.run(run())
