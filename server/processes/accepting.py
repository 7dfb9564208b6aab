"""Which front takes the next connection: one with few, since a connection stays with its front for all its requests.

A whole server counts as a front here, once it is prepared. All fronts listen on one socket, and the system wakes all of
them; left alone, whoever wakes first takes everything that waits. Here a front takes one
connection at a time, at once if nobody has fewer; otherwise it first gives those with fewer a moment, and then takes it
all the same, so that a front that is stuck or dead holds nobody up.

Later it may go on to another front (`handing`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.processes.child import Child
from server.processes.handing import Handing

log = logging.getLogger("maskserve")

MOMENT_S = 0.003  # that a front waits for one with fewer connections
PAUSE_S = 0.2  # after an error, such as no more file descriptors
YIELD_S = 0.02  # that a front which is not prepared leaves to those that are, again and again


class Turns:
    """Accepts connections for one front.

    Args:
        sock: the listening socket that all fronts share.
        rows: of the board, one for every front.
        number: which row is ours.
        handing: the way to the other fronts.
        prepared: whether requests can be answered; while not, connections are left to those that can.
    """

    def __init__(
        self,
        sock: socket.socket,
        rows: NDArray[Any],
        number: int,
        handing: Handing,
        prepared: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._prepared = prepared
        self._clock = clock
        self.sock = sock
        self._rows = rows
        self._number = number
        self._handing = handing
        self._tasks: set[asyncio.Task[Any]] = set()
        self._later: asyncio.TimerHandle | None = None

    def start(self, protocol: Callable[[bytes], asyncio.Protocol], connections: Callable[[], int]) -> None:
        """
        Args:
            protocol: makes one for a connection, given what another front has read of it.
            connections: how many there are.
        """
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._connections = connections
        self.sock.setblocking(False)
        self._listen()
        self._handing.start(self._enter)

    def stop(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._loop.remove_reader(self.sock)
        self.sock.close()
        self._handing.stop()

    def tell(self) -> None:
        """Write on the board how many there are, and that we live; connections also end, so tell now and then."""
        self._rows["heartbeat"][self._number] = self._clock()
        self._rows["prepared"][self._number] = self._prepared()
        self._rows["connections"][self._number] = self._count()

    def hands_on(self, transport: asyncio.Transport, read: bytes) -> bool:
        """Whether a connection has gone on to another front, with the request that just came on it.

        Args:
            read: of that request.
        """
        to = self._handing.chosen(self._count())
        if to is None or not self._handing.give(to, transport.get_extra_info("socket").fileno(), read):
            return False
        transport.abort()  # ours; the connection itself stays open, as there are two descriptors of it
        return True

    def _count(self) -> int:
        return self._connections() + len(self._tasks)

    def _prepared_others(self) -> NDArray[np.bool_]:
        others: NDArray[np.bool_] = (self._rows["pid"] != 0) & (self._rows["prepared"] != 0)
        others[self._number] = False
        return others

    def _listen(self) -> None:
        self._later = None
        self._loop.add_reader(self.sock, self._knock)

    def _knock(self) -> None:
        """Somebody waits to be let in."""
        self.tell()
        counts, others = self._rows["connections"], self._prepared_others()
        if not self._rows["prepared"][self._number] and others.any():
            self._loop.remove_reader(self.sock)
            self._later = self._loop.call_later(YIELD_S, self._listen)
        elif counts[self._number] <= counts[others].min(initial=counts[self._number]):
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
        self._enter(accepted)

    def _enter(self, accepted: socket.socket, read: bytes = b"") -> None:
        accepted.setblocking(False)
        task = self._loop.create_task(self._connect(accepted, read))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.tell()

    async def _connect(self, accepted: socket.socket, read: bytes) -> None:
        with contextlib.suppress(OSError):
            await self._loop.connect_accepted_socket(lambda: self._protocol(read), accepted)


def turns_of(child: Child, width: int, prepared: Callable[[], bool] = lambda: True) -> Turns:
    """
    Args:
        width: requests that the child works on at the same time.
    """
    spec, rows = child.spec, child.board.fronts
    if spec.listen is None or spec.inbox is None:
        raise RuntimeError("a front without a port. This is a bug in the supervisor.")
    doors = [socket.socket(fileno=descriptor) for descriptor in spec.doors]
    handing = Handing(socket.socket(fileno=spec.inbox), doors, rows, spec.number, width)
    return Turns(socket.socket(fileno=spec.listen), rows, spec.number, handing, prepared)
