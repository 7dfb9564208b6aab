"""Which connection goes on to whom, and that it arrives with what was read of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Any

import numpy as np
import pytest

from server.processes.board import PROCESS
from server.processes.handing import EVEN_S, FRESH_S, SETTLE_S, Handing, make_inboxes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="descriptors cannot be sent")

NOW = 100.0


class Room:
    """Three servers of one core each, seen from the first; all are idle and have two connections."""

    def __init__(self) -> None:
        self.rows = np.zeros(3, PROCESS)
        self.rows["pid"], self.rows["prepared"], self.rows["connections"], self.rows["heartbeat"] = 1, 1, 2, NOW
        self.now = NOW
        self.pairs = make_inboxes(3)
        self.handing = self.server(0)

    def server(self, number: int) -> Handing:
        doors = [door for _, door in self.pairs]
        return Handing(self.pairs[number][0], doors, self.rows, number, 1, lambda: self.now)

    def close(self) -> None:
        for pair in self.pairs:
            for end in pair:
                end.close()


@pytest.fixture
def room() -> Any:
    made = Room()
    with contextlib.closing(made):
        yield made


def test_what_can_be_done_here_stays(room: Room) -> None:
    assert room.handing.chosen(2) is None


def test_behind_other_work_it_goes_to_who_has_none(room: Room) -> None:
    room.rows["inside"] = 1, 1, 0
    assert room.handing.chosen(2) == 2
    room.rows["inside"] = 1, 0, 0
    assert room.handing.chosen(2) in (1, 2)


def test_it_stays_where_all_have_work(room: Room) -> None:
    room.rows["inside"] = 9, 1, 2
    assert room.handing.chosen(2) is None


@pytest.mark.parametrize(("field", "value"), [("pid", 0), ("prepared", 0), ("heartbeat", NOW - FRESH_S - 0.1)])
def test_nothing_goes_to_who_is_dead_or_loads_or_stands_still(room: Room, field: str, value: float) -> None:
    room.rows["inside"] = 1, 0, 1
    assert room.handing.chosen(2) == 1
    room.rows[field][1] = value
    assert room.handing.chosen(2) is None
    room.rows["connections"][1] = 0
    room.now += 2 * EVEN_S
    room.rows["heartbeat"][0] = room.rows["heartbeat"][2] = room.now
    assert room.handing.chosen(2) is None, "not for evenness either"


def test_who_was_just_given_something_gets_no_more_until_the_board_shows_it(room: Room) -> None:
    room.rows["inside"] = 1, 0, 1
    with socket.socket() as sock:
        assert room.handing.give(1, sock.fileno(), b"")
    assert room.handing.chosen(2) is None
    room.now += 2 * SETTLE_S
    assert room.handing.chosen(2) == 1


def test_who_has_two_connections_more_gives_one_now_and_then(room: Room) -> None:
    room.rows["connections"] = 0, 4, 3  # its own it knows better
    room.rows["inside"] = 5, 5, 5
    assert room.handing.chosen(5) == 2
    assert room.handing.chosen(5) is None, "not twice in a moment"
    room.now += 2 * EVEN_S
    assert room.handing.chosen(4) is None, "one more than the least is even"
    room.now += 2 * EVEN_S
    room.rows["inside"] = 5, 5, 6
    assert room.handing.chosen(5) is None, "where more is to do already, nothing is won"


@pytest.mark.parametrize("others", [True, False])
def test_who_still_loads_gives_on_what_came_for_the_one_before(room: Room, others: bool) -> None:
    async def scenario() -> None:
        room.rows["prepared"] = others, 0, others
        room.rows["inside"] = 3, 0, 2
        with socket.socket() as sock:
            assert room.handing.give(1, sock.fileno(), b"read")
        came: dict[int, list[bytes]] = {1: [], 2: []}
        for number in (1, 2):

            def enter(connection: socket.socket, read: bytes, number: int = number) -> None:
                came[number].append(read)
                connection.close()

            server = room.server(number)
            server.start(enter)
            server.stop()  # takes what is there
        assert came == ({1: [], 2: [b"read"]} if others else {1: [b"read"], 2: []})

    asyncio.run(scenario())


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_a_connection_arrives_with_what_was_read_of_it(room: Room, size: int) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        read = os.urandom(size)
        came: asyncio.Queue[tuple[socket.socket, bytes]] = asyncio.Queue()
        other = room.server(1)
        other.start(lambda *what: came.put_nowait(what))
        assert room.handing.give(1, theirs.fileno(), read)
        theirs.close()
        sock, found = await came.get()
        ours.sendall(b"more")
        with ours, sock:
            assert found == read
            assert sock.recv(10) == b"more"
        other.stop()

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_a_full_inbox_takes_no_more_and_loses_nothing(room: Room) -> None:
    """Its owner stands still; when it ends, what it had not read is for the next one."""
    sent = 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        while room.handing.give(1, theirs.fileno(), b"%d" % sent):
            sent += 1
            assert sent < 10_000
    came: list[bytes] = []

    def enter(sock: socket.socket, read: bytes) -> None:
        sock.close()
        came.append(read)

    async def scenario() -> None:
        other = room.server(1)
        other.start(enter)
        other.stop()  # and at the end it takes all that is there

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert came == [b"%d" % number for number in range(sent)]
