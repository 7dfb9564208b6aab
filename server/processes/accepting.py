"""Which front takes the next connection: one with few, since a connection stays with its front for all its requests.

All fronts listen on one socket, and the system wakes all of them; left alone, whoever wakes first takes everything that
waits. Here a front takes one connection at a time, at once if nobody has fewer; otherwise it first gives those with
fewer a moment, and then takes it all the same, so that a front that is stuck or dead holds nobody up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

log = logging.getLogger("maskserve")

MOMENT_S = 0.003  # that a front waits for one with fewer connections
PAUSE_S = 0.2  # after an error, such as no more file descriptors


class Turns:
    """Accepts connections for one front.

    Args:
        sock: the listening socket that all fronts share.
        rows: of the board, one for every front.
        number: which row is ours.
    """

    def __init__(
        self, sock: socket.socket, rows: NDArray[Any], number: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self.sock = sock
        self._rows = rows
        self._number = number
        self._tasks: set[asyncio.Task[Any]] = set()
        self._later: asyncio.TimerHandle | None = None

    def start(self, protocol: Callable[[], asyncio.Protocol], connections: Callable[[], int]) -> None:
        """
        Args:
            protocol: makes one for a connection.
            connections: how many there are.
        """
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._connections = connections
        self.sock.setblocking(False)
        self._listen()

    def stop(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._loop.remove_reader(self.sock)
        self.sock.close()

    def tell(self) -> None:
        """Write on the board how many there are, and that we live; connections also end, so tell now and then."""
        self._rows["heartbeat"][self._number] = self._clock()
        self._rows["connections"][self._number] = self._connections() + len(self._tasks)

    def _listen(self) -> None:
        self._later = None
        self._loop.add_reader(self.sock, self._knock)

    def _knock(self) -> None:
        """Somebody waits to be let in."""
        self.tell()
        counts, alive = self._rows["connections"], self._rows["pid"] != 0
        if counts[self._number] <= counts[alive].min(initial=counts[self._number]):
            self._take()
        else:
            self._loop.remove_reader(self.sock)
            self._later = self._loop.call_later(MOMENT_S, self._take_and_listen)

    def _take_and_listen(self) -> None:
        self._listen()
        self._take()

    def _take(self) -> None:
        try:
            accepted, _ = self.sock.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):  # another front was quicker, or they left
            return
        except OSError as error:
            log.error("cannot accept a connection: %s", error.strerror)
            self._loop.remove_reader(self.sock)
            self._later = self._loop.call_later(PAUSE_S, self._listen)
            return
        accepted.setblocking(False)
        task = self._loop.create_task(self._connect(accepted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.tell()

    async def _connect(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):
            await self._loop.connect_accepted_socket(self._protocol, accepted)
