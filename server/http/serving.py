"""uvicorn, taught two manners it lacks: a limit on slow headers, and an exit code of 0 after SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import RequestTimeout
from server.http.problems import problem

log = logging.getLogger("maskserve")


def protocol_with_header_timeout(timeout_s: float) -> type[HttpToolsProtocol]:
    """A protocol that gives headers `timeout_s` from the connection's start, or from the request's first byte."""

    class TimedHeaders(HttpToolsProtocol):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait_for_headers()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._wait_for_headers()

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_headers(self) -> None:
            self._stop_waiting()
            self._patience = self.loop.call_later(timeout_s, self._too_slow)

        def _stop_waiting(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def _too_slow(self) -> None:
            if self.transport.is_closing():
                return
            error = RequestTimeout(f"headers were not complete after {timeout_s:g} s (MASKSERVE_HEADER_TIMEOUT_S)")
            status, headers, body = problem(error, "-")
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
            self.transport.write(b"HTTP/1.1 %d Request Timeout\r\n%s\r\n%s" % (status, lines, body))
            self.transport.close()

    return TimedHeaders


class Server(uvicorn.Server):
    """Ends with 0 after SIGTERM or SIGINT; a second signal stops waiting for requests.

    Args:
        on_drain: called once, at the first signal, before uvicorn stops accepting.
    """

    def __init__(self, config: uvicorn.Config, on_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_drain = on_drain

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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            return
        log.info("%s: no new requests; finishing those inside", signal.Signals(sig).name)
        self._on_drain()
        self.should_exit = True
