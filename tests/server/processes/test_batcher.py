"""What a front knows of the engine's queue: what it was told, and what it sent or will send besides."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from server.errors import NotReady, Overloaded
from server.processes.batcher import TRANSIT_S, RemoteBatcher
from server.processes.board import Board, make_board
from server.processes.client import Link
from server.scheduling import Answer, Picture
from server.workers import Workers

PICTURE = Picture(np.zeros((4, 4, 3), np.uint8), (4, 4))


class Engine:
    """An end of a connection where jobs stay until they are let go."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()

    async def run(self, *_: Any) -> Answer:
        await self.answered.wait()
        return Answer({}, 0.0, 0.0, 1)


class Front:
    """A batcher of one of `fronts` processes, its board, and a clock that is set by hand."""

    def __init__(self, board: Board, link: Link, workers: Workers) -> None:
        self.now = 100.0
        self.board, self.link = board, link
        self.batcher = RemoteBatcher(link, board, workers, 0, max_wait_s=0.5, clock=lambda: self.now)
        self.engine = Engine()

    def connect(self) -> None:
        self.link._connection = self.engine  # type: ignore[assignment]

    def tell(self, wait_s: float, image_s: float = 0.1) -> None:
        """As the engine process does, for all priorities."""
        row = self.board.models[:1]
        row["free_at"] = self.now + wait_s if wait_s else 0.0
        row["image_s"], row["told_at"] = image_s, self.now

    async def let_in(self, count: int, priority: int = 0) -> list[asyncio.Task[None]]:
        submit = self.batcher.submit
        tasks = [asyncio.create_task(submit(PICTURE, lambda answer: None, None, priority)) for _ in range(count)]
        await asyncio.sleep(0)
        return tasks


@asynccontextmanager
async def front(fronts: int = 1) -> AsyncIterator[Front]:
    file = make_board(1, fronts, 0)
    ours, theirs = socket.socketpair()
    board, workers = Board(file, 1, fronts, 0), Workers(1)
    try:
        yield Front(board, Link(board, ours), workers)
    finally:
        workers.close()
        for sock in (ours, theirs):
            sock.close()
        os.close(file)


def test_the_door_knows_the_wait_without_asking() -> None:
    async def story() -> None:
        async with front() as it:
            with pytest.raises(NotReady):
                it.batcher.check_admission()
            it.connect()
            it.batcher.check_admission()
            it.board.models["free_at"][0] = 100.4
            it.batcher.check_admission()
            assert it.batcher.predicted_wait_s(0) == pytest.approx(0.4)
            it.board.models["free_at"][0] = [101.0, *[100.4] * 9]
            with pytest.raises(Overloaded, match="1000 ms of work wait") as caught:
                it.batcher.check_admission()
            assert caught.value.retry_after_s == pytest.approx(0.5)
            it.batcher.check_admission(1)
            it.now = 100.6
            it.batcher.check_admission()

    asyncio.run(story())


def test_what_the_engine_could_not_know_of_comes_on_top_until_it_can() -> None:
    async def story() -> None:
        async with front() as it:
            it.connect()
            it.board.fronts["inside"] = 9
            it.tell(0.4)
            tasks = await it.let_in(2)
            assert it.batcher.predicted_wait_s(0) == pytest.approx(0.6)
            with pytest.raises(Overloaded, match="600 ms of work wait"):
                it.batcher.check_admission()
            it.now += TRANSIT_S / 2
            it.tell(0.4)  # they are on their way still
            assert it.batcher.predicted_wait_s(0) == pytest.approx(0.6)
            it.now += TRANSIT_S
            it.tell(0.45)
            assert it.batcher.predicted_wait_s(0) == pytest.approx(0.45)
            it.engine.answered.set()
            await asyncio.gather(*tasks)

    asyncio.run(story())


def test_other_fronts_are_taken_to_let_in_as_many_but_not_more_than_there_are() -> None:
    async def story() -> None:
        async with front(fronts=4) as it:
            it.connect()
            it.tell(0.1)
            tasks = await it.let_in(2)
            for inside, unknown in ((20, 8), (5, 5), (1, 2)):
                it.board.fronts["inside"] = [inside, 0, 0, 0]
                assert it.batcher.predicted_wait_s(0) == pytest.approx(0.1 + unknown * 0.1)
            it.engine.answered.set()
            await asyncio.gather(*tasks)

    asyncio.run(story())


def test_where_the_engine_is_idle_one_may_be_on_its_way() -> None:
    async def story() -> None:
        async with front() as it:
            it.connect()
            it.board.fronts["inside"] = 9
            it.tell(0.0, image_s=2.0)
            tasks = await it.let_in(1)
            it.batcher.check_admission()
            tasks += await it.let_in(1)
            with pytest.raises(Overloaded):
                it.batcher.check_admission()
            it.engine.answered.set()
            await asyncio.gather(*tasks)
            it.batcher.check_admission()

    asyncio.run(story())


def test_who_goes_first_does_not_reckon_with_those_on_their_way() -> None:
    async def story() -> None:
        async with front() as it:
            it.connect()
            it.board.fronts["inside"] = 9
            it.tell(0.4)
            tasks = await it.let_in(5, priority=1)
            assert it.batcher.predicted_wait_s(1) == pytest.approx(0.9)
            assert it.batcher.predicted_wait_s(2) == pytest.approx(0.4)
            it.engine.answered.set()
            await asyncio.gather(*tasks)

    asyncio.run(story())
