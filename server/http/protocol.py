"""A connection: uvicorn's, with a limit on slow headers and on silence, refusals at once, and a way to another process.

    bytes -> headers complete -> refused: the answer is written within the same call, nothing else is begun
                              -> let in:  uvicorn's task, which calls the application

And one thing that uvicorn does twice: an answer's head and its body leave in one write (`server.http.transport`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import RequestTimeout
from server.http.problems import problem
from server.http.reply import Reply
from server.http.transport import Joined

HandsOn = Callable[[asyncio.Transport, bytes], bool]  # see `server.http.serving.Door`
Refusal = Callable[[Scope], Reply | None]  # see `server.http.envelope.Envelope`


def connection_class(timeout_s: float, hands_on: HandsOn, refusal: Refusal) -> type[HttpToolsProtocol]:
    """A protocol that gives headers `timeout_s` from the connection's start, or from the request's first byte.

    Args:
        hands_on: asked when a request comes.
        refusal: asked when its headers are complete.
    """

    class Connection(HttpToolsProtocol):
        read = b""  # by another process, before the connection came here
        _between = True  # all of the last request has come, and nothing of the next
        _in_headers = False
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            self._joined = Joined(transport, self.loop)
            super().connection_made(self._joined)
            self._wait_for_headers()
            if self.read:
                self.loop.call_soon(self._go_on)

        def data_received(self, data: bytes) -> None:
            if self.read:
                data, self.read = self.read + data, b""
            elif self._between and self._answered() and data.startswith(b"POST ") and hands_on(self.transport, data):
                return
            super().data_received(data)
            if self._in_headers:  # mostly they have come whole, and need no timer
                if self._patience is None:
                    self._wait_for_headers()
            elif self.timeout_keep_alive_task is None and self._rests():
                self._wait_for_more()

        def _go_on(self) -> None:
            if self.read:
                self.data_received(b"")

        def _answered(self) -> bool:
            """Wholly: who sends on before the answer has left would lose the rest of it with the connection."""
            cycle: Any = self.cycle  # none before the first request
            if cycle is not None and not cycle.response_complete:
                return False
            return self.transport.get_write_buffer_size() == 0

        def _rests(self) -> bool:
            """All is answered, though what was sent may still be coming."""
            cycle: Any = self.cycle
            return cycle is not None and cycle.response_complete and not self.transport.is_closing()

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

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            """Where uvicorn begins with a request whose turn it is."""
            waits = cycle.waiting_for_100_continue or self.flow.write_paused or self.pipeline
            ends = not cycle.keep_alive or self.transport.is_closing()
            plain = cycle.scope["method"] != "HEAD" and not waits and not ends
            reply = refusal(cycle.scope) if plain else None
            if reply is None:
                super()._start_asgi_task(cycle, app)
                return
            self._joined.write_whole(reply.wire(cycle.default_headers))
            cycle.response_started = cycle.response_complete = True  # what comes of its body is dropped
            cycle.on_response()

        def connection_lost(self, exc: Exception | None) -> None:
            self._go_on()  # whose client hung up on the way here is a request that was cancelled, like any other
            self._in_headers = False
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_more(self) -> None:
            """As uvicorn does after an answer; then it stops with the next byte, which may be of the old body."""
            patience = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
            self.timeout_keep_alive_task = patience

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
            self._joined.write_whole(problem(error, "-").wire())
            self.transport.close()

    return Connection
