"""An engine behind the queue: jobs come on the event loop, workers pull them, answers go back.

The queue is bounded twice: by a count, and by the predicted wait, from costs learned run by run. Work whose deadline
has passed leaves before the engine, and so does work whose caller has gone, at once. A failing batch is halved until
the culprit is alone, so one bad picture fails alone.

Callers, their futures and what is learned live on the event loop. A worker that has decoded a picture puts it into the
queue itself, and one that is free pulls from there: `server.scheduling.line` is where all meet.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from server.errors import (
    DeadlineExceeded,
    DeviceFault,
    Draining,
    EngineFailed,
    ModelOutputInvalid,
    NotReady,
)
from server.priority import urgency
from server.scheduling.backlog import check_wait
from server.scheduling.line import Line
from server.scheduling.predictions import GUESS_PIXEL_S, GUESS_RUN_S, Predictions
from server.scheduling.queue import Queue, Waiting
from server.scheduling.running import Answer, Item, Job, Picture, Ran, Run, fail, run_halving
from server.workers import Rank, Workers, settle, tell

T = TypeVar("T")

DEVICE_FAILED = "the engine's device failed, the server has to start again"


@dataclass(slots=True)
class Observer:
    """Where the scheduler reports what it did, on the event loop, and `depth` in a worker too; the defaults drop it."""

    batch: Callable[[int, float], None] = lambda size, busy_s: None
    depth: Callable[[int], None] = lambda waiting: None
    wasted: Callable[[], None] = lambda: None


class _Asked(NamedTuple):
    """Who waits for a picture, since when, and for what."""

    future: asyncio.Future[Any]
    finish: Callable[[Answer], Any]
    since: float
    deadline: float | None
    priority: int


class Scheduler:
    """Batches jobs for one engine. Create and use it on one event loop.

    Args:
        run: the engine's `run`.
        workers: the threads that decode, run and finish.
        max_batch: images in a batch.
        max_batch_pixels: input pixels in a batch, so that big pictures do not multiply memory; one image always fits.
        max_queue: jobs that may wait.
        max_wait_s: `check_admission` refuses when a job would wait longer; never when the engine is idle.
        run_s, pace_s: what a run takes, seconds and seconds per input pixel, to believe until runs have been measured.
        tried: images in the largest batch that the engine has memory for; batches grow from there by doubling.
        slots: runs at the same time.
        delay_s: how long a job waits on purpose for others to share its batch with, unless the batch is full.
        run_alone: in place of `run` while no other worker computes: the engine may use all cores.
        crowded: whether others than these workers want the cores; asked in a worker.
    """

    def __init__(
        self,
        run: Run,
        workers: Workers,
        *,
        max_batch: int,
        max_batch_pixels: int,
        max_queue: int,
        max_wait_s: float,
        run_s: float = GUESS_RUN_S,
        pace_s: float = GUESS_PIXEL_S,
        tried: int = 1,
        slots: int = 1,
        delay_s: float = 0.0,
        run_alone: Run | None = None,
        crowded: Callable[[], bool] = lambda: False,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run = run
        self._run_alone = run_alone
        self._others = crowded
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._delay_s = delay_s
        self._workers = workers
        self._observer = observer or Observer()
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._predictions = Predictions(run_s, pace_s, max_batch, slots, tried)
        self.line = Line(
            Queue(max_batch, max_batch_pixels),
            self._predictions,
            max_queue=max_queue,
            slots=slots,
            depth=self._observer.depth,
            clock=clock,
        )
        self._unanswered = 0
        self._closing = False
        self._drained = asyncio.Event()

    def worker_seconds(self, pixels: float) -> float:
        """What the run of an image of `pixels` takes of the workers."""
        return self._predictions.image_seconds(pixels)

    def check_admission(self, priority: int = 0) -> None:
        """Should a request be let in now? Cheap: asked before a body is read, and again when it has come.

        Args:
            priority: of the request; it waits only for what goes before it.

        Raises:
            Draining: shutting down.
            Overloaded: the queue is full, or the predicted wait is too long.
        """
        if self._closing:
            raise _draining()
        self.line.check_room()
        check_wait(self.line.wait_s(urgency(self._clock(), priority)), self._max_wait_s)

    async def submit(
        self,
        picture: Picture | Callable[[], Picture],
        finish: Callable[[Answer], T],
        deadline: float | None = None,
        priority: int = 0,
    ) -> T:
        """Wait for a place in a batch and for what `finish` makes of the answer. Cancelled, the job leaves the queue.

        Args:
            picture: or what makes it, called in a worker, which then puts it into the queue.
            finish: called in a worker, right after the run.
            deadline: on the scheduler's clock; a job that cannot meet it fails at once, without running.
            priority: higher goes first; every second of waiting counts as one, so nobody waits for ever.

        Raises:
            Overloaded, Draining: no room, or shutting down.
            DeadlineExceeded: the deadline passed in the queue, or is sure to.
            EngineFailed, ModelOutputInvalid: this image failed.
            NotReady: the device did.
            Exception: whatever `picture` or `finish` raises.
        """
        if self._closing:
            raise _draining()
        future: asyncio.Future[T] = self._loop.create_future()
        asked = _Asked(future, finish, self._clock(), deadline, priority)
        self._unanswered += 1
        try:
            if isinstance(picture, Picture):
                self._enter(picture, asked)
            else:
                self._workers.put(Rank.DECODE, functools.partial(self._prepare, picture, asked))
            return await future
        except asyncio.CancelledError:
            self.line.leave(future)
            raise
        finally:
            self._unanswered -= 1
            self._tell_drained()

    async def close(self, limit_s: float) -> None:
        """Refuse new jobs, run what is inside for at most `limit_s`, then fail the rest."""
        self._closing = True
        self._tell_drained()
        try:
            await asyncio.wait_for(self._drained.wait(), limit_s)
        except TimeoutError:
            waited, stuck = self.line.close()
            for item in waited:
                fail(item, Draining("the server shut down before this image's turn", retry_after_s=1.0))
            for item in stuck:
                fail(item, Draining("the server shut down while this image ran", retry_after_s=1.0))

    # ---- on the event loop or in a worker ----

    def _enter(self, picture: Picture, asked: _Asked) -> None:
        """Put a picture into the queue, and have a worker look at it."""
        line, shape = self.line, picture.tensor.shape
        line.check_room()
        pixels = int(shape[0] * shape[1])
        if asked.deadline is not None:
            line.check_deadline(asked.deadline, pixels, urgency(asked.since, asked.priority))
        job = Job(picture, asked.finish, asked.future)
        line.enter(Waiting(job, shape, pixels, asked.since, asked.priority, asked.deadline))
        if self._delay_s and len(line) < self._max_batch:
            tell(self._loop, self._loop.call_later, self._delay_s, self._call_worker)
        else:
            self._call_worker()

    def _call_worker(self) -> None:
        """Ask for a worker where one more would have something to do."""
        if self.line.calls():
            self._workers.put(Rank.RUN, self._pull)

    # ---- in a worker ----

    def _prepare(self, make: Callable[[], Picture], asked: _Asked) -> None:
        if asked.future.done():
            return
        try:
            self._enter(make(), asked)
        except BaseException as error:
            tell(self._loop, settle, asked.future, None, error)

    def _pull(self) -> None:
        """Take what is to run now, run it, and ask for a worker again while anything waits."""
        first, late = self.line.take(self._is_alone)
        if late:
            tell(self._loop, self._told_late, late)
        run = self._run_alone if first.alone and self._run_alone is not None else self._run
        runs = run_halving(run, self._run, first, self._clock) if first.items else []
        self.line.over(first)
        self._call_worker()
        if not runs:
            return
        answers = [
            (item, Answer(row, ran.began, ran.ended, len(ran.items)))
            for ran in runs
            for item, row in zip(ran.items, ran.rows, strict=False)  # no rows where it failed
            if row is not None and not item.work.future.done()
        ]
        for item, answer in answers[1:]:  # for whoever is free
            self._workers.put(Rank.MASKS, functools.partial(self._finish, item, answer, []))
        if answers:
            self._finish(*answers[0], runs)  # one word to the event loop for both
        else:
            tell(self._loop, self._told_ran, runs)

    def _finish(self, item: Item, answer: Answer, runs: Sequence[Ran]) -> None:
        """Make of an answer what its caller wants, and tell the event loop; and of `runs` too."""
        result, error = None, None
        try:
            result = item.work.finish(answer)
        except BaseException as caught:
            error = caught
        tell(self._loop, self._told_finished, item, result, error, runs)

    def _is_alone(self) -> bool:
        """Whether nobody else wants the cores that a lone run may use."""
        return self._run_alone is not None and self._workers.busy <= 1 and not self._others()

    # ---- on the event loop ----

    def _told_finished(self, item: Item, result: Any, error: BaseException | None, runs: Sequence[Ran]) -> None:
        if runs:
            self._told_ran(runs)
        settle(item.work.future, result, error)

    def _told_late(self, late: Sequence[Item]) -> None:
        for item in late:
            fail(item, DeadlineExceeded("the deadline passed while the image waited", retry_after_s=0.0))
        self._tell_drained()

    def _told_ran(self, runs: Sequence[Ran]) -> None:
        for ran in runs:
            self._observer.batch(len(ran.items), ran.ended - ran.began)
            if ran.failure is None:
                self._predictions.learn(ran)
                for item, row in zip(ran.items, ran.rows, strict=True):
                    if item.work.future.cancelled():
                        self._observer.wasted()
                    elif row is None:
                        fail(item, ModelOutputInvalid("the network answered NaN or infinity for this image"))
            elif isinstance(ran.failure, DeviceFault):
                for item in ran.items:
                    fail(item, NotReady(DEVICE_FAILED, retry_after_s=10.0), cause=ran.failure)
            elif len(ran.items) == 1:
                fail(ran.items[0], EngineFailed("the engine failed on this image"), cause=ran.failure)
        self._tell_drained()

    def _tell_drained(self) -> None:
        if self._closing and not self._unanswered and self.line.empty:
            self._drained.set()


def _draining() -> Draining:
    return Draining("the server is shutting down; try another one or come back", retry_after_s=1.0)
