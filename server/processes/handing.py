"""Connections that go on to a neighbour, with the request that just came on them: nothing waits beside idle cores.

    server-1    ########################        a request comes to server-1, which is busy,
    server-2                ########            and goes on to server-2, which is not

The connection goes along, and with it all its later requests. What has been read of the request travels in a file in
memory, the rest is still in the connection; the client notices nothing.

It also makes connections even again, as those that came while a server was missing would stay with the others for ever.

Every server has an inbox, a socket for descriptors, which lasts as long as the supervisor: what is in it when its owner
dies is for the next one to read; one that still loads gives it on to who does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.shared_file import shared_file

log = logging.getLogger("maskserve")

EVEN_S = 0.02  # between two connections that go for evenness
SETTLE_S = 0.005  # until the board shows what was given
FRESH_S = 0.5  # since its loop last turned, or a neighbour is given nothing

Enter = Callable[[socket.socket, bytes], None]


def make_inboxes(count: int) -> list[tuple[socket.socket, socket.socket]]:
    """Per server the end that it reads and the end that the others write to, for as long as the supervisor lives."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
    for pair in pairs:
        for end in pair:
            end.setblocking(False)
    return pairs


class Handing:
    """One server's way to the others.

    Args:
        inbox: what the others gave.
        doors: to the inbox of every server, ours too.
        rows: of the board, one for every server.
        number: which row is ours.
        width: requests that a server works on at the same time.
    """

    def __init__(
        self,
        inbox: socket.socket,
        doors: Sequence[socket.socket],
        rows: NDArray[Any],
        number: int,
        width: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._inbox = inbox
        self._doors = doors
        self._rows = rows
        self._inside = rows["inside"]
        self._number = number
        self._width = width
        self._clock = clock
        self._evened = 0.0
        self._given = np.zeros(len(rows))  # when each was given something last

    def start(self, enter: Enter) -> None:
        """
        Args:
            enter: takes a connection, and what was read of its request.
        """
        self._enter = enter
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inbox, self.take)

    def stop(self) -> None:
        self._loop.remove_reader(self._inbox)
        self.take()

    def chosen(self, connections: int) -> int | None:
        """Who should have the connection whose request just came: nobody where it is best here.

        Args:
            connections: how many there are here.
        """
        now, inside = self._clock(), self._inside
        everywhere = inside.tolist()  # a few numbers, which Python compares quicker than numpy
        here = everywhere[self._number]
        if here >= self._width > min(everywhere):
            idle = (inside < self._width) & (now - self._given > SETTLE_S) & self._awake(now)
            if idle.any():
                return _least(idle, inside)
        if now - self._evened < EVEN_S:
            return None
        self._evened = now
        connected = self._rows["connections"]
        if connections - 2 < min(connected.tolist()):
            return None
        fewer = (connected <= connections - 2) & (inside <= here) & self._awake(now)
        return _least(fewer, connected) if fewer.any() else None

    def _awake(self, now: float) -> NDArray[np.bool_]:
        rows = self._rows
        others: NDArray[np.bool_] = (rows["pid"] != 0) & (rows["prepared"] != 0) & (now - rows["heartbeat"] < FRESH_S)
        others[self._number] = False
        return others

    def give(self, to: int, descriptor: int, read: bytes) -> bool:
        """Give a connection away; the caller then forgets it. False where the inbox takes no more.

        Args:
            read: of the connection, since its last request.
        """
        file = shared_file("request", 0)
        try:
            with open(file, "wb", closefd=False) as out:
                out.write(read)
            socket.send_fds(self._doors[to], [b"c"], [descriptor, file])
        except OSError as error:  # full, mostly: its owner is busier than it seemed
            log.debug("a connection stays: %s", error.strerror)
            return False
        finally:
            os.close(file)
        self._given[to] = self._clock()
        return True

    def take(self) -> None:
        """All that is in the inbox; while we load, a prepared neighbour gets what was meant for the one before us."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while True:
                _, descriptors, _, _ = socket.recv_fds(self._inbox, 1, 2)
                if len(descriptors) != 2:  # no more of them may be open here
                    log.error("a connection came that cannot be opened; its client sees it end")
                    for descriptor in descriptors:
                        os.close(descriptor)
                    continue
                with open(descriptors[1], "rb") as file:
                    file.seek(0)
                    read = file.read()
                connection = socket.socket(fileno=descriptors[0])
                if self._gives_on(connection, read):
                    connection.close()
                else:
                    self._enter(connection, read)

    def _gives_on(self, connection: socket.socket, read: bytes) -> bool:
        others = self._awake(self._clock())
        if self._rows["prepared"][self._number] or not others.any():
            return False
        return self.give(_least(others, self._inside), connection.fileno(), read)


def _least(among: NDArray[np.bool_], of: NDArray[Any]) -> int:
    (numbers,) = np.nonzero(among)
    return int(numbers[np.argmin(of[numbers])])
