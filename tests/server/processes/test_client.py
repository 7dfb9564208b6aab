"""Both ends of a connection in one process: jobs cross, places come back, whatever the callers do."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import DeadlineExceeded, NotReady, Overloaded
from server.processes.board import Board, make_board
from server.processes.client import Connection
from server.processes.serving import Front
from server.repository import Known, Served
from server.scheduling import Answer
from server.shared_file import shared_file
from tests.server.scheduling.test_scheduler import SIDE, Engine, picture, scheduler_of


class Pair:
    """A front's connection and the engine's end of it, over two shared files."""

    def __init__(self, engine: Engine, megabytes: float, **changes: Any) -> None:
        self.engine, self._changes = engine, changes
        self._size = int(megabytes * 1e6)
        self.board_file = make_board(1, 1, 0)
        self.board = Board(self.board_file, 1, 1, 0)
        self.lost: list[Connection] = []

    async def __aenter__(self) -> Pair:
        self.scheduler = scheduler_of(self.engine, **self._changes)
        model = Served("tiny", 1, Path(), Known("ready"), manifest=object(), batcher=self.scheduler)  # type: ignore[arg-type]
        files = [shared_file("test", self._size) for _ in range(2)]
        self.writer = ThreadPoolExecutor(1)
        self.front = Front([model], files[0], files[1], self.writer, lambda model: None)
        self.connection = Connection(self.board, 7, files[0], files[1], self.lost.append)
        for file in files:
            os.close(file)
        loop = asyncio.get_running_loop()
        for end, sock in zip((self.front, self.connection), socket.socketpair(), strict=True):
            await loop.create_unix_connection(lambda end=end: end, sock=sock)  # type: ignore[misc]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.connection.close()
        self.front.close()
        await asyncio.sleep(0)
        self.engine.free.set()
        await self.scheduler.close(5)
        self.writer.shutdown()
        os.close(self.board_file)

    async def ask(self, number: int, side: int = SIDE, deadline: float | None = None) -> Answer:
        return await self.connection.run(0, picture(number, side), deadline, 0)

    async def is_tidy(self) -> bool:
        """Whether every place on both sides has come back, as it must once nobody holds an answer."""
        for _ in range(200):
            gc.collect()
            if self.connection._arena.empty and self.front._arena.empty:
                return True
            await asyncio.sleep(0.01)
        return False


def run(story: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(story(), 30))


def number_of(answer: Answer) -> int:
    return int(answer.outputs["answer"][0])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([4, 8, 50]), st.sampled_from(["stay", "go", "go later"])), min_size=1, max_size=20
    )
)
def test_everybody_gets_their_own_answer_and_no_place_is_lost(callers: list[tuple[int, str]]) -> None:
    async def story() -> None:
        async with Pair(Engine(delay_s=0.001), 1.0) as pair:
            tasks = [asyncio.create_task(pair.ask(number, side)) for number, (side, _) in enumerate(callers)]
            await asyncio.sleep(0)
            for task, (_, what) in zip(tasks, callers, strict=True):
                if what == "go":
                    task.cancel()
            await asyncio.sleep(0.002)
            for task, (_, what) in zip(tasks, callers, strict=True):
                if what == "go later":
                    task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for number, (answer, (_, what)) in enumerate(zip(answers, callers, strict=True)):
                if what == "stay":
                    assert isinstance(answer, Answer)
                if isinstance(answer, Answer):
                    assert number_of(answer) == number
                else:
                    assert isinstance(answer, asyncio.CancelledError)
            del answers, tasks, task
            answer = None  # type: ignore[assignment]
            assert await pair.is_tidy()

    run(story)


def test_who_goes_leaves_no_place_behind_whether_their_picture_waits_or_runs() -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        async with Pair(engine, 1.0) as pair:
            gone = asyncio.create_task(pair.ask(1))
            await asyncio.to_thread(engine.started.wait, 5)
            waiting = asyncio.create_task(pair.ask(2))
            await asyncio.sleep(0.05)
            gone.cancel()
            waiting.cancel()
            assert pair.connection._arena.used == 2 * 64, "they are the engine's until it has said so"
            assert await pair.is_tidy()

    run(story)
    assert engine.batches == [[1]]


def test_an_answer_stays_as_long_as_any_part_of_it() -> None:
    async def story() -> None:
        async with Pair(Engine(), 1.0) as pair:
            first = (await pair.ask(1)).outputs["answer"][:1]
            others = [number_of(await pair.ask(number)) for number in range(2, 20)]
            assert others == list(range(2, 20))
            assert first.tolist() == [1.0]
            assert not pair.front._arena.empty
            with pytest.raises(ValueError, match="read-only"):
                first[0] = 5
            del first
            assert await pair.is_tidy()

    run(story)


def test_answers_that_nobody_reads_hold_others_back_until_somebody_does() -> None:
    async def story() -> None:
        async with Pair(Engine(), 0.0002) as pair:  # room for three answers
            kept = [await pair.ask(number) for number in range(3)]
            fourth = asyncio.create_task(pair.ask(3))
            await asyncio.sleep(0.1)
            assert not fourth.done()
            kept.pop()
            assert number_of(await fourth) == 3

    run(story)


def test_a_full_arena_refuses_at_once() -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        async with Pair(engine, 0.0002) as pair:  # three places of 64 bytes
            inside = [asyncio.create_task(pair.ask(number)) for number in range(3)]
            await asyncio.sleep(0.05)
            with pytest.raises(Overloaded, match="MASKSERVE_SHARED_MB"):
                await pair.ask(3)
            engine.free.set()
            assert [number_of(answer) for answer in await asyncio.gather(*inside)] == [0, 1, 2]

    run(story)


def test_deadlines_are_on_one_clock() -> None:
    async def story() -> None:
        async with Pair(Engine(), 1.0, pace_s=1.0) as pair:
            before = time.perf_counter()
            answer = await pair.ask(1)
            assert before <= answer.began <= answer.ended <= time.perf_counter()
        async with Pair(Engine(), 1.0, pace_s=1.0) as pair:
            with pytest.raises(DeadlineExceeded, match="16000 ms are needed") as caught:
                await pair.ask(1, deadline=time.perf_counter() + 1.0)
            assert caught.value.retry_after_s == pytest.approx(15.0, abs=0.5)

    run(story)


@pytest.mark.parametrize(("hung", "error"), [(0, NotReady), (6, NotReady), (7, DeadlineExceeded)])
def test_when_the_engine_goes_everybody_is_told_why(hung: int, error: type[Exception]) -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        async with Pair(engine, 1.0) as pair:
            inside = [asyncio.create_task(pair.ask(number)) for number in range(5)]
            await asyncio.sleep(0.05)
            pair.board.models["hung"][0] = hung
            pair.front.close()
            answers = await asyncio.gather(*inside, return_exceptions=True)
            assert {type(answer) for answer in answers} == {error}
            assert pair.lost == [pair.connection]

    run(story)


def test_when_a_front_goes_its_waiting_jobs_never_run() -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        async with Pair(engine, 1.0) as pair:
            inside = [asyncio.create_task(pair.ask(number)) for number in range(6)]
            await asyncio.to_thread(engine.started.wait, 5)
            await asyncio.sleep(0.05)
            pair.connection.close()
            await asyncio.sleep(0.05)
            engine.free.set()
            answers = await asyncio.gather(*inside, return_exceptions=True)
            assert all(isinstance(answer, NotReady) for answer in answers)

    run(story)
    assert len(engine.batches) == 1


def test_nonsense_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with Pair(Engine(), 1.0) as pair:
            pair.connection._transport.write(b"\x05\x00\x00\x00\x63abcd")  # type: ignore[union-attr]
            for _ in range(100):
                if pair.lost:
                    return
                await asyncio.sleep(0.01)
            pytest.fail("still connected")

    run(story)
    assert "nonsense" in caplog.text
