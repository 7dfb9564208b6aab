"""The threads that compute: how many at once, in which order, and what becomes of work that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from server.workers import Rank, Workers

T = TypeVar("T")


def run(story: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        return await asyncio.wait_for(story(), 20)

    return asyncio.run(limited())


@pytest.fixture
def one() -> Iterator[Workers]:
    workers = Workers(1)
    yield workers
    workers.close()


def test_never_more_computes_than_there_are_workers() -> None:
    workers, lock, now, most = Workers(3), threading.Lock(), 0, 0

    def work(number: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.002)
        with lock:
            now -= 1
        return number

    async def story() -> list[int]:
        return await asyncio.gather(*(workers.run(Rank.DECODE, work, number) for number in range(40)))

    assert run(story) == list(range(40))
    workers.close()
    assert most == 3


def test_finishing_goes_before_decoding_and_decoding_before_running(one: Workers) -> None:
    free, order = threading.Event(), list[Rank]()

    async def story() -> None:
        held = asyncio.create_task(one.run(Rank.RUN, free.wait, 10))
        await asyncio.sleep(0.02)
        rest = [asyncio.create_task(one.run(rank, order.append, rank)) for rank in (Rank.RUN, Rank.DECODE, Rank.MASKS)]
        await asyncio.sleep(0)
        free.set()
        await asyncio.gather(held, *rest)

    run(story)
    assert order == [Rank.MASKS, Rank.DECODE, Rank.RUN]


def test_what_is_cancelled_in_time_is_never_begun(one: Workers) -> None:
    free, begun = threading.Event(), list[int]()

    async def story() -> None:
        held = asyncio.create_task(one.run(Rank.DECODE, free.wait, 10))
        await asyncio.sleep(0.02)
        gone = asyncio.create_task(one.run(Rank.DECODE, begun.append, 1))
        stays = asyncio.create_task(one.run(Rank.DECODE, begun.append, 2))
        await asyncio.sleep(0)
        gone.cancel()
        free.set()
        await asyncio.gather(held, stays)

    run(story)
    assert begun == [2]


def test_an_error_reaches_who_waits_and_the_worker_goes_on(one: Workers) -> None:
    async def story() -> int:
        with pytest.raises(ZeroDivisionError):
            await one.run(Rank.DECODE, lambda: 1 // 0)
        return await one.run(Rank.DECODE, lambda: 5)

    assert run(story) == 5


def test_work_that_outlives_its_loop_does_no_harm(one: Workers) -> None:
    free = threading.Event()

    async def story() -> None:
        asyncio.create_task(one.run(Rank.DECODE, free.wait, 10))  # noqa: RUF006  # dropped on purpose
        await asyncio.sleep(0.02)

    run(story)
    free.set()

    async def after() -> int:
        return await one.run(Rank.DECODE, lambda: 7)

    assert run(after) == 7


def test_closing_does_what_waits() -> None:
    workers, done = Workers(2), list[int]()
    for number in range(10):
        workers.put(Rank.DECODE, lambda number=number: done.append(number))  # type: ignore[misc]
    workers.close()
    assert sorted(done) == list(range(10))
    workers.put(Rank.DECODE, lambda: done.append(99))  # by a run that outlived its server
    with pytest.raises(RuntimeError, match="ended"):
        run(lambda: workers.run(Rank.DECODE, lambda: None))
    assert 99 not in done


def test_callers_are_let_go_when_the_thread_that_should_serve_them_hangs() -> None:
    workers, stuck, begun = Workers(1), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        stuck.wait(20)

    async def story() -> list[object]:
        asked = [asyncio.create_task(workers.run(Rank.RUN, hang))]
        await asyncio.to_thread(begun.wait, 20)
        asked += [asyncio.create_task(workers.run(Rank.DECODE, lambda: None)) for _ in range(3)]
        await asyncio.sleep(0.01)
        workers.give_up(lambda: TimeoutError("stuck"))
        return list(await asyncio.gather(*asked, return_exceptions=True))

    answers = run(story)
    stuck.set()
    workers.close()
    assert [type(answer) for answer in answers] == [TimeoutError] * 4
