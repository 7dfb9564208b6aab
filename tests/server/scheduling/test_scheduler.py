"""The scheduler, with integers as pictures: pixel (0, 0) of a job is its number, and its answer must carry it back."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.errors import BadImage, DeadlineExceeded, Draining, EngineFailed, ModelOutputInvalid, Overloaded
from server.scheduling import Answer, Observer, Picture, Scheduler
from server.workers import Workers

SIDE = 4
RUNNING: list[Workers] = []  # of schedulers that a test has made


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for workers in RUNNING:
        workers.close()
    RUNNING.clear()


class Engine:
    """Answers every picture with its own number; can be held, fail on a number, or answer NaN for one."""

    def __init__(self, poison: set[int] | None = None, nan: set[int] | None = None, delay_s: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()
        self.started = threading.Event()
        self._poison, self._nan, self._delay_s = poison or set(), nan or set(), delay_s

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        numbers = [int(image[0, 0, 0]) for image in inputs["images"]]
        self.batches.append(numbers)
        self.started.set()
        assert self.free.wait(10)
        time.sleep(self._delay_s)
        if self._poison & set(numbers):
            raise RuntimeError("poisoned")
        answers = np.array([[np.nan if n in self._nan else n] for n in numbers], np.float32)
        return {"answer": answers}


class Making:
    """What makes a picture, number 1, once it may."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> Picture:
        self.began.set()
        assert self.may_end.wait(5)
        return picture(1)


def picture(number: int, side: int = SIDE) -> Picture:
    return Picture(np.full((side, side, 3), number, np.uint8), (side, side))


def scheduler_of(engine: Engine, **changes: Any) -> Scheduler:
    options: dict[str, Any] = {"max_batch": 4, "max_batch_pixels": 10**6, "max_queue": 100, "max_wait_s": 60.0}
    options["tried"] = 100
    RUNNING.append(Workers(changes.get("slots", 1)))
    return Scheduler(engine.run, RUNNING[-1], **(options | changes))


def number_of(answer: Answer) -> int:
    return int(answer.outputs["answer"][0])


async def ask(scheduler: Scheduler, number: int, side: int = SIDE, deadline: float | None = None) -> int:
    scheduler.check_admission()
    return await scheduler.submit(picture(number, side), number_of, deadline)


def run(story: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(story(), 20))


@settings(max_examples=60, deadline=None)
@given(
    sides=st.lists(st.sampled_from([4, 8]), min_size=1, max_size=30),
    max_batch=st.integers(1, 6),
    max_pixels=st.sampled_from([1, 64, 200]),
)
def test_each_submitter_gets_its_own_answer_once_and_no_batch_is_too_large_or_mixed(
    sides: list[int], max_batch: int, max_pixels: int
) -> None:
    engine = Engine()

    async def story() -> None:
        scheduler = scheduler_of(engine, max_batch=max_batch, max_batch_pixels=max_pixels)
        answers = await asyncio.gather(*(ask(scheduler, i, side) for i, side in enumerate(sides)))
        assert answers == list(range(len(sides)))
        await scheduler.close(5)

    run(story)
    assert sorted(n for batch in engine.batches for n in batch) == list(range(len(sides)))
    for batch in engine.batches:
        assert len(batch) <= max_batch
        assert len({sides[n] for n in batch}) == 1
        assert len(batch) == 1 or sum(sides[n] ** 2 for n in batch) <= max_pixels


def test_batches_grow_by_doubling_where_their_memory_is_not_taken_yet() -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        scheduler = scheduler_of(engine, max_batch=64, tried=1)
        tasks = [asyncio.create_task(ask(scheduler, 0))]
        await asyncio.to_thread(engine.started.wait, 5)
        tasks += [asyncio.create_task(ask(scheduler, number)) for number in range(1, 41)]
        await asyncio.sleep(0)
        engine.free.set()
        assert await asyncio.gather(*tasks) == list(range(41))
        await scheduler.close(5)

    run(story)
    sizes = [len(batch) for batch in engine.batches]
    assert sizes[:2] == [1, 2]
    assert all(size <= 2 for size in sizes[:17])


def test_an_idle_engine_takes_what_comes_at_once_and_a_waiting_batch_keeps_growing() -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        scheduler = scheduler_of(engine)
        first = asyncio.create_task(ask(scheduler, 0))
        await asyncio.to_thread(engine.started.wait, 5)
        rest = []
        for number in (1, 2, 3):
            rest.append(asyncio.create_task(ask(scheduler, number)))
            await asyncio.sleep(0.01)
        engine.free.set()
        assert await asyncio.gather(first, *rest) == [0, 1, 2, 3]
        await scheduler.close(5)

    run(story)
    assert engine.batches == [[0], [1, 2, 3]]


def test_a_higher_priority_goes_first_but_not_past_who_waited_longer_than_it_is_worth() -> None:
    engine = Engine()
    engine.free.clear()
    now = [0.0]

    async def story() -> None:
        scheduler = scheduler_of(engine, max_batch=1, clock=lambda: now[0])
        tasks = [asyncio.create_task(ask(scheduler, 0))]
        await asyncio.to_thread(engine.started.wait, 5)
        for number, at, priority in ((1, 0.0, 0), (2, 1.0, 0), (3, 1.5, 1), (4, 2.5, 9), (5, 2.6, 2)):
            now[0] = at
            submit = scheduler.submit(picture(number), number_of, None, priority)
            tasks.append(asyncio.create_task(submit))
            await asyncio.sleep(0)
        engine.free.set()
        await asyncio.gather(*tasks)
        await scheduler.close(5)

    run(story)
    assert engine.batches == [[0], [4], [1], [3], [5], [2]]


def test_the_oldest_job_decides_the_shape_of_the_next_batch() -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        scheduler = scheduler_of(engine)
        tasks = [asyncio.create_task(ask(scheduler, 0))]
        await asyncio.to_thread(engine.started.wait, 5)
        for number, side in ((1, 8), (2, 4), (3, 8), (4, 4)):
            tasks.append(asyncio.create_task(ask(scheduler, number, side)))
            await asyncio.sleep(0)
        engine.free.set()
        await asyncio.gather(*tasks)
        await scheduler.close(5)

    run(story)
    assert engine.batches == [[0], [1, 3], [2, 4]]


@settings(max_examples=30, deadline=None)
@given(culprits=st.sets(st.integers(0, 7), max_size=3))
def test_a_poisoned_picture_fails_alone(culprits: set[int]) -> None:
    engine = Engine(poison=culprits)
    engine.free.clear()

    async def story() -> None:
        scheduler = scheduler_of(engine, max_batch=8)
        tasks = [asyncio.create_task(ask(scheduler, 100))]
        await asyncio.to_thread(engine.started.wait, 5)
        tasks += [asyncio.create_task(ask(scheduler, number)) for number in range(8)]
        await asyncio.sleep(0)
        engine.free.set()
        answers = (await asyncio.gather(*tasks, return_exceptions=True))[1:]
        for number, answer in enumerate(answers):
            if number in culprits:
                assert isinstance(answer, EngineFailed)
            else:
                assert answer == number
        await scheduler.close(5)

    run(story)


@pytest.mark.parametrize("size", [2, 3, 8, 32])
def test_a_culprit_costs_its_batch_no_more_than_twice_the_logarithm_in_runs(size: int) -> None:
    engine = Engine(poison={0})
    engine.free.clear()

    async def story() -> None:
        scheduler = scheduler_of(engine, max_batch=32)
        tasks = [asyncio.create_task(ask(scheduler, 100))]
        await asyncio.to_thread(engine.started.wait, 5)
        tasks += [asyncio.create_task(ask(scheduler, number)) for number in range(size)]
        await asyncio.sleep(0)
        engine.free.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        await scheduler.close(5)

    run(story)
    _, whole, *again = engine.batches
    assert len(whole) == size
    assert len(again) <= 2 * math.ceil(math.log2(size))


def test_nan_fails_only_the_picture_it_belongs_to() -> None:
    engine = Engine(nan={1})
    engine.free.clear()

    async def story() -> None:
        scheduler = scheduler_of(engine)
        tasks = [asyncio.create_task(ask(scheduler, number)) for number in range(3)]
        await asyncio.sleep(0)
        engine.free.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[0] == 0
        assert answers[2] == 2
        assert isinstance(answers[1], ModelOutputInvalid)
        await scheduler.close(5)

    run(story)


def test_a_job_that_finds_the_engine_idle_is_never_refused_for_slowness() -> None:
    engine = Engine()

    async def story() -> None:
        scheduler = scheduler_of(engine, max_wait_s=1e-9, pace_s=1000.0)
        assert await ask(scheduler, 5) == 5
        await scheduler.close(5)

    run(story)


def test_a_predicted_wait_over_the_limit_is_refused_with_the_time_until_it_fits() -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        scheduler = scheduler_of(engine, max_wait_s=3.0, pace_s=2.0 / SIDE**2)  # two seconds a picture
        tasks = [asyncio.create_task(ask(scheduler, 0))]
        await asyncio.to_thread(engine.started.wait, 5)
        tasks.append(asyncio.create_task(ask(scheduler, 1)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await ask(scheduler, 2)
        assert caught.value.retry_after_s == pytest.approx(1.0, abs=0.3)
        engine.free.set()
        assert await asyncio.gather(*tasks) == [0, 1]
        await scheduler.close(5)

    run(story)


def test_who_goes_before_the_others_is_not_refused_for_their_sake() -> None:
    engine = Engine()
    engine.free.clear()
    now = [0.0]

    async def story() -> None:
        # two seconds a picture
        scheduler = scheduler_of(engine, max_batch=1, max_wait_s=3.0, pace_s=2.0 / SIDE**2, clock=lambda: now[0])
        tasks = [asyncio.create_task(ask(scheduler, 0))]
        await asyncio.to_thread(engine.started.wait, 5)
        tasks.append(asyncio.create_task(scheduler.submit(picture(1), number_of, None, 3)))
        tasks.append(asyncio.create_task(scheduler.submit(picture(2), number_of)))
        await asyncio.sleep(0)
        waits = scheduler.line.waits_s()
        assert waits == pytest.approx([6.0, 4.0, 4.0, 4.0, *[2.0] * 6], abs=0.01)
        for priority in (0, 3):
            with pytest.raises(Overloaded, match=f"{waits[priority] * 1000:.0f} ms of work wait"):
                scheduler.check_admission(priority)
        scheduler.check_admission(4)
        with pytest.raises(DeadlineExceeded):
            await scheduler.submit(picture(3), number_of, 5.0, 3)
        tasks.append(asyncio.create_task(scheduler.submit(picture(3), number_of, 5.0, 4)))
        await asyncio.sleep(0)
        now[0] = 1.0
        assert scheduler.line.waits_s()[1] == pytest.approx(2.0 * 4 - 1.0, abs=0.01)  # a second is worth a step
        engine.free.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2, 3]
        await scheduler.close(5)

    run(story)
    assert engine.batches == [[0], [3], [1], [2]]


def test_after_the_load_stops_the_queue_admits_when_it_said_it_would() -> None:
    engine = Engine(delay_s=0.02)

    async def story() -> float:
        scheduler = scheduler_of(engine, max_batch=1, max_wait_s=0.2, pace_s=0.02 / SIDE**2)
        tasks = [asyncio.create_task(scheduler.submit(picture(n), number_of)) for n in range(40)]
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded) as caught:
            scheduler.check_admission()
        began = time.perf_counter()
        while True:
            try:
                scheduler.check_admission()
                break
            except Overloaded:
                await asyncio.sleep(0.001)
        took = time.perf_counter() - began
        await asyncio.gather(*tasks)
        await scheduler.close(5)
        assert caught.value.retry_after_s is not None
        return caught.value.retry_after_s / took

    assert run(story) == pytest.approx(1.0, abs=0.25)


def test_a_delay_on_purpose_gathers_a_batch_and_a_full_one_does_not_wait() -> None:
    engine = Engine()

    async def story() -> None:
        scheduler = scheduler_of(engine, max_batch=3, delay_s=0.1)
        began = time.perf_counter()
        assert await asyncio.gather(*(ask(scheduler, number) for number in range(3))) == [0, 1, 2]
        assert time.perf_counter() - began < 0.1
        assert await asyncio.gather(*(ask(scheduler, number) for number in range(2))) == [0, 1]
        assert time.perf_counter() - began >= 0.1
        await scheduler.close(5)

    run(story)
    assert engine.batches == [[0, 1, 2], [0, 1]]


@settings(max_examples=30, deadline=None)
@given(slots=st.integers(1, 3), count=st.integers(1, 40), made=st.booleans(), data=st.data())
def test_every_answer_comes_once_whoever_gives_up(slots: int, count: int, made: bool, data: st.DataObject) -> None:
    engine = Engine()
    giving_up = data.draw(st.sets(st.integers(0, count - 1)))

    async def story() -> None:
        scheduler = scheduler_of(engine, slots=slots, run_alone=engine.run)
        pictures = [functools.partial(picture, number) if made else picture(number) for number in range(count)]
        tasks = [asyncio.create_task(scheduler.submit(each, number_of)) for each in pictures]
        await asyncio.sleep(0)
        for number in giving_up:
            tasks[number].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for number, answer in enumerate(answers):
            assert answer == number or (number in giving_up and isinstance(answer, asyncio.CancelledError))
        await scheduler.close(5)

    run(story)
    ran = [number for batch in engine.batches for number in batch]
    assert len(ran) == len(set(ran))


def test_a_worker_that_has_made_a_picture_runs_it_while_the_event_loop_does_something_else() -> None:
    engine, ran = Engine(), threading.Event()

    def make() -> Picture:
        return picture(7)

    def finish(answer: Answer) -> int:
        ran.set()
        return number_of(answer)

    async def story() -> None:
        scheduler = scheduler_of(engine)
        task = asyncio.create_task(scheduler.submit(make, finish))
        await asyncio.sleep(0)
        assert ran.wait(5)  # the loop stands still
        assert await task == 7
        await scheduler.close(5)

    run(story)


def test_who_gives_up_while_the_picture_is_made_is_not_in_the_queue_afterwards() -> None:
    engine, make = Engine(), Making()

    async def story() -> None:
        scheduler = scheduler_of(engine)
        task = asyncio.create_task(scheduler.submit(make, number_of))
        await asyncio.to_thread(make.began.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        make.may_end.set()
        assert await ask(scheduler, 2) == 2
        await scheduler.close(5)

    run(story)
    assert engine.batches == [[2]]


def test_what_making_a_picture_raises_is_the_callers() -> None:
    def make() -> Picture:
        raise BadImage("torn")

    async def story() -> None:
        scheduler = scheduler_of(Engine(), max_queue=0)
        with pytest.raises(BadImage):
            await scheduler.submit(make, number_of)
        with pytest.raises(Overloaded):  # from where the worker puts it
            await scheduler.submit(functools.partial(picture, 1), number_of)
        await scheduler.close(5)

    run(story)


def test_a_picture_made_after_the_limit_of_closing_is_told_so() -> None:
    make = Making()

    async def story() -> None:
        scheduler = scheduler_of(Engine())
        task = asyncio.create_task(scheduler.submit(make, number_of))
        await asyncio.to_thread(make.began.wait, 5)
        await scheduler.close(0.05)
        make.may_end.set()
        with pytest.raises(Draining):
            await task

    run(story)


def test_a_picture_that_is_being_made_while_the_scheduler_closes_is_answered() -> None:
    make = Making()

    async def story() -> None:
        scheduler = scheduler_of(Engine())
        task = asyncio.create_task(scheduler.submit(make, number_of))
        await asyncio.to_thread(make.began.wait, 5)
        closing = asyncio.create_task(scheduler.close(5))
        await asyncio.sleep(0.01)
        make.may_end.set()
        assert await task == 1
        await closing

    run(story)


def test_a_full_queue_refuses() -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        scheduler = scheduler_of(engine, max_queue=2)
        tasks = [asyncio.create_task(ask(scheduler, 0))]
        await asyncio.to_thread(engine.started.wait, 5)
        tasks += [asyncio.create_task(ask(scheduler, number)) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await ask(scheduler, 3)
        engine.free.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2]
        await scheduler.close(5)

    run(story)


def test_a_deadline_that_passes_in_the_queue_never_reaches_the_engine() -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        scheduler = scheduler_of(engine)
        first = asyncio.create_task(ask(scheduler, 0))
        await asyncio.to_thread(engine.started.wait, 5)
        late = asyncio.create_task(ask(scheduler, 1, deadline=time.perf_counter() + 0.05))
        await asyncio.sleep(0.1)
        engine.free.set()
        assert await first == 0
        with pytest.raises(DeadlineExceeded):
            await late
        await scheduler.close(5)

    run(story)
    assert engine.batches == [[0]]


def test_a_deadline_that_cannot_be_met_fails_at_once() -> None:
    engine = Engine()

    async def story() -> None:
        scheduler = scheduler_of(engine, pace_s=1.0)
        with pytest.raises(DeadlineExceeded):
            await ask(scheduler, 0, deadline=time.perf_counter() + 1.0)
        await scheduler.close(5)

    run(story)
    assert engine.batches == []


def test_an_abandoned_job_leaves_before_the_engine() -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        scheduler = scheduler_of(engine)
        first = asyncio.create_task(ask(scheduler, 0))
        await asyncio.to_thread(engine.started.wait, 5)
        gone = asyncio.create_task(ask(scheduler, 1))
        stays = asyncio.create_task(ask(scheduler, 2))
        await asyncio.sleep(0)
        gone.cancel()
        engine.free.set()
        assert list(await asyncio.gather(first, stays)) == [0, 2]
        await scheduler.close(5)

    run(story)
    assert engine.batches == [[0], [2]]


def test_closing_runs_what_waits_and_refuses_what_comes() -> None:
    engine = Engine(delay_s=0.02)

    async def story() -> None:
        scheduler = scheduler_of(engine, max_batch=1)
        tasks = [asyncio.create_task(ask(scheduler, number)) for number in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(scheduler.close(5))
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await ask(scheduler, 9)
        assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4]
        await closing

    run(story)


def test_closing_has_a_limit_and_nobody_is_left_waiting() -> None:
    engine = Engine()
    engine.free.clear()

    async def story() -> None:
        scheduler = scheduler_of(engine, max_batch=1)
        tasks = [asyncio.create_task(ask(scheduler, number)) for number in range(3)]
        await asyncio.to_thread(engine.started.wait, 5)
        await scheduler.close(0.05)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, Draining) for answer in answers)
        engine.free.set()

    run(story)


def test_the_observer_hears_of_batches_depth_and_waste() -> None:
    engine = Engine()
    engine.free.clear()
    heard: dict[str, list[float]] = {"batch": [], "depth": [], "wasted": []}
    observer = Observer(
        batch=lambda size, busy_s: heard["batch"].append(size),
        depth=lambda waiting: heard["depth"].append(waiting),
        wasted=lambda: heard["wasted"].append(1),
    )

    async def story() -> None:
        scheduler = scheduler_of(engine, observer=observer)
        gone = asyncio.create_task(ask(scheduler, 0))
        await asyncio.to_thread(engine.started.wait, 5)
        stays = asyncio.create_task(ask(scheduler, 1))
        await asyncio.sleep(0)
        gone.cancel()
        engine.free.set()
        assert await stays == 1
        await scheduler.close(5)

    run(story)
    assert heard["batch"] == [1, 1]
    assert max(heard["depth"]) == 1
    assert heard["depth"][-1] == 0
    assert heard["wasted"] == [1]
