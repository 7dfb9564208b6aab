"""What comes is read into memory that is used again at once, and nobody notices."""

from __future__ import annotations

import asyncio
import importlib
import socket
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from server.http.protocol import connection_class
from server.http.reading import SIZE, Reader, readers
from tests.server.test_protocol import echo_all, lets_in, stays, turns
from tests.server.test_transport import Remembering


def make_reader(make: Any, **options: Any) -> tuple[Reader, Remembering]:
    config = uvicorn.Config(echo_all, log_config=None, lifespan="off", server_header=False, date_header=False)
    reader = make(config=config, server_state=ServerState(), app_state={}, **options)
    transport = Remembering()
    reader.connection_made(transport)
    return reader, transport


def come(reader: Reader, data: bytes) -> None:
    """As an event loop does it; whatever comes next lies in the same place."""
    memory = reader.get_buffer(-1)
    memory[: len(data)] = data
    reader.buffer_updated(len(data))
    memory[: len(data)] = b"\0" * len(data)


def request(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize("size", [1, 40, 60, 100, 200])
def test_a_request_that_comes_in_parts_is_what_was_sent(size: int) -> None:
    body = bytes(range(1, 200))

    async def run() -> None:
        reader, transport = make_reader(readers(connection_class(10.0, stays, lets_in)))
        sent = request(body)
        for start in range(0, len(sent), size):
            come(reader, sent[start : start + size])
            if start % 3:
                await turns(1)
        await turns()
        assert transport.writes[0].endswith(b"\r\n\r\n" + body)
        reader.eof_received()
        reader.connection_lost(None)

    asyncio.run(run())


def test_what_another_process_has_read_comes_before_the_rest() -> None:
    body = b"abcdefghi"

    async def run() -> None:
        sent = request(body)
        reader, transport = make_reader(readers(connection_class(10.0, stays, lets_in)), read=sent[:-5])
        come(reader, sent[-5:])
        await turns()
        assert transport.writes[0].endswith(b"\r\n\r\n" + body)
        reader.connection_lost(None)

    asyncio.run(run())


def test_two_event_loops_do_not_read_into_one_memory() -> None:
    make = connection_class(10.0, stays, lets_in)

    async def run() -> None:
        one, other = readers(make), readers(make)
        memories = [make_reader(maker)[0].get_buffer(-1) for maker in (one, one, other)]
        assert memories[0].obj is memories[1].obj
        assert memories[0].obj is not memories[2].obj

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_many_connections_at_once_get_their_own_bodies(kind: str) -> None:
    """On a real event loop, with bodies of several reads."""
    bodies = [bytes([number]) * (3 * SIZE + number) for number in range(1, 9)]

    async def ask(port: int, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for start in range(0, len(sent := request(body)), SIZE // 2):
            writer.write(sent[start : start + SIZE // 2])
            await writer.drain()
            await asyncio.sleep(0)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        answer = await reader.readexactly(len(body))
        writer.close()
        return answer

    async def run() -> None:
        config = uvicorn.Config(
            echo_all,
            http=readers(connection_class(10.0, stays, lets_in)),  # type: ignore[arg-type]
            log_config=None,
            lifespan="off",
            ws="none",
        )
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as sock:
            serving = asyncio.create_task(server.serve([sock]))
            answers = await asyncio.wait_for(
                asyncio.gather(*(ask(sock.getsockname()[1], body) for body in bodies)), timeout=60
            )
            server.should_exit = True
            await serving
        assert answers == bodies

    with asyncio.Runner(loop_factory=importlib.import_module(kind).new_event_loop) as runner:
        runner.run(run())
