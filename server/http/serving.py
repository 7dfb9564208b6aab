"""uvicorn, taught what it lacks: connections of our own, exit code 0 after SIGTERM, an end when an engine is lost."""

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

from server.http.application import Application
from server.http.protocol import connection_class
from server.settings import Settings

log = logging.getLogger("maskserve")

ENTERING_S = 0.02  # until who was let in last is among the connections that are ended


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
        http=connection_class(settings.header_timeout_s, _stays if door is None else door.hands_on, app.refusal),
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
