"""What reaches the supervisor from outside: connections to its port, and signals."""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

from server.errors import BadAddress

log = logging.getLogger("maskserve")

BACKLOG = 2048  # connections that wait to be accepted


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """
    Raises:
        BadAddress: the port is taken, or the address is none of ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise BadAddress(f"cannot listen on {host}:{port}: {error.strerror or error}; see --host and --port") from None
    with sock:
        shown = f"[{host}]" if ":" in host else host
        log.info("Listening on http://%s:%d (Press CTRL+C to quit)", shown, sock.getsockname()[1])
        yield sock


@contextlib.contextmanager
def waking() -> Iterator[tuple[Callable[[float], None], list[int]]]:
    """A way to wait for a signal, and the list of those that ask for an end."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    handlers = {signal.SIGTERM: ask, signal.SIGINT: ask, signal.SIGCHLD: lambda number, frame: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    inbox, outbox = socket.socketpair()
    with inbox, outbox, selectors.DefaultSelector() as selector:
        inbox.setblocking(False)
        outbox.setblocking(False)
        wakeup = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
        selector.register(inbox, selectors.EVENT_READ)

        def wait(seconds: float) -> None:
            if selector.select(seconds):
                with contextlib.suppress(BlockingIOError):
                    inbox.recv(4096)

        try:
            yield wait, asked
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
