"""uvicorn, taught what it lacks: a limit on slow headers, exit code 0 after SIGTERM, an end when an engine is lost.

And one thing it does twice: an answer's head and its body leave in one write (`server.http.transport`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import RequestTimeout
from server.http.application import Application
from server.http.problems import problem
from server.http.transport import Joined
from server.settings import Settings

log = logging.getLogger("maskserve")

ENTERING_S = 0.02  # until who was let in last is among the connections that are ended


HandsOn = Callable[[asyncio.Transport, bytes], bool]  # see `Door`


def protocol_with_header_timeout(timeout_s: float, hands_on: HandsOn) -> type[HttpToolsProtocol]:
    """A protocol that gives headers `timeout_s` from the connection's start, or from the request's first byte.

    Args:
        hands_on: asked when a request comes.
    """

    class TimedHeaders(HttpToolsProtocol):
        read = b""  # by another process, before the connection came here
        _between = True  # all of the last request has come, and nothing of the next
        _in_headers = False
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(Joined(transport, self.loop))
            self._wait_for_headers()
            if self.read:
                self.loop.call_soon(self._go_on)

        def data_received(self, data: bytes) -> None:
            if self.read:
                data, self.read = self.read + data, b""
            elif self._between and self._answered() and data.startswith(b"POST ") and hands_on(self.transport, data):
                return
            super().data_received(data)
            if self._in_headers and self._patience is None:  # mostly they have come whole, and need no timer
                self._wait_for_headers()

        def _go_on(self) -> None:
            if self.read:
                self.data_received(b"")

        def _answered(self) -> bool:
            """Wholly: who sends on before the answer has left would lose the rest of it with the connection."""
            cycle: Any = self.cycle  # none before the first request
            if cycle is not None and not cycle.response_complete:
                return False
            return self.transport.get_write_buffer_size() == 0

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._stop_waiting()
            self._in_headers = True
            self._between = False

        def on_message_complete(self) -> None:
            self._between = True
            super().on_message_complete()

        def on_headers_complete(self) -> None:
            self._in_headers = False
            self._stop_waiting()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._go_on()  # whose client hung up on the way here is a request that was cancelled, like any other
            self._in_headers = False
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_headers(self) -> None:
            self._patience = self.loop.call_later(timeout_s, self._too_slow)

        def _stop_waiting(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def _too_slow(self) -> None:
            if self.transport.is_closing():
                return
            error = RequestTimeout(f"headers were not complete after {timeout_s:g} s (MASKSERVE_HEADER_TIMEOUT_S)")
            reply = problem(error, "-")
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in reply.headers)
            self.transport.write(b"HTTP/1.1 %d Request Timeout\r\n%s\r\n%s" % (reply.status, lines, reply.body))
            self.transport.close()

    return TimedHeaders


class Door(Protocol):
    """Lets connections in, and may let them go on."""

    def start(self, protocol: Callable[[bytes], asyncio.Protocol], connections: Callable[[], int]) -> None: ...

    def tell(self) -> None:
        """Ten times a second."""

    def hands_on(self, transport: asyncio.Transport, read: bytes) -> bool:
        """Whether a connection has gone to another process, with the request that just came on it."""

    def stop(self) -> None: ...


class Server(uvicorn.Server):
    """Ends with 0 after SIGTERM or SIGINT; a second signal stops waiting for requests.

    Args:
        on_drain: called once, at the first signal, before uvicorn stops accepting.
        must_end: asked ten times a second; True ends the server as a signal would.
        door: lets connections in, in place of uvicorn.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_drain: Callable[[], None],
        must_end: Callable[[], bool],
        door: Door | None = None,
    ) -> None:
        super().__init__(config)
        self._door = door
        self._on_drain = on_drain
        self._must_end = must_end

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def on_tick(self, counter: int) -> bool:
        if not self.should_exit and self._must_end():
            self._on_drain()
            self.should_exit = True
        if self._door is not None:
            self._door.tell()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._door is not None:
            self._door.start(self._protocol, lambda: len(self.server_state.connections))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._door is not None:
            self._door.stop()
            await asyncio.sleep(ENTERING_S)
        await super().shutdown(sockets)

    def _protocol(self, read: bytes) -> asyncio.Protocol:
        """For one connection, as uvicorn makes it."""
        kind: Any = self.config.http_protocol_class
        made = kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        made.read = read
        protocol: asyncio.Protocol = made
        return protocol

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            return
        log.info("%s: no new requests; finishing those inside", signal.Signals(sig).name)
        self._on_drain()
        self.should_exit = True


def _stays(transport: asyncio.Transport, read: bytes) -> bool:
    return False


def run_server(app: Application, settings: Settings, door: Door | None = None) -> int:
    """Serve until a signal comes, or until an engine of this process hangs or loses its device.

    Args:
        app: of `server.http.app.assemble`.
        door: lets connections in, in place of the settings' host and port.

    Returns:
        The process's exit code: 0, or 1 after that, or 2 when it could not start.
    """
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol_with_header_timeout(settings.header_timeout_s, _stays if door is None else door.hands_on),
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_s,
    )

    def drain() -> None:
        app.state.gate.draining = True

    backend = app.state.backend
    server = Server(config, drain, lambda: backend.broken, door)
    server.run(None if door is None else [])
    if backend.broken:
        return 1
    return 0 if server.started else 2
