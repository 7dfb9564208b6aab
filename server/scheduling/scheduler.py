"""An engine behind the queue: jobs come on the event loop, workers pull them, answers go back.

The queue is bounded twice: by a count, and by the predicted wait, from costs learned run by run. Work whose deadline
has passed leaves before the engine, and so does work whose caller has gone, at once. A failing batch is halved until
the culprit is alone, so one bad picture fails alone.

Jobs, futures and predictions live on the event loop; `_pull` and what it calls run in workers; one lock is where both
meet.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.errors import (
    DeadlineExceeded,
    DeviceFault,
    Draining,
    EngineFailed,
    ModelOutputInvalid,
    NotReady,
    Overloaded,
    ServiceError,
)
from server.scheduling.costs import Cost
from server.scheduling.queue import Queue, Waiting
from server.scheduling.running import Answer, Item, Job, Ran, Run, run_halving
from server.workers import Rank, Workers, settle, tell

T = TypeVar("T")

GUESS_RUN_S, GUESS_PIXEL_S = 1e-4, 1e-8  # until a run was measured
DEVICE_FAILED = "the engine's device failed, the server has to start again"
WASTE = 0.05  # share of a batch's time that its fixed cost may be; a larger batch is not worth waiting for


@dataclass(slots=True)
class Observer:
    """Where the scheduler reports what it did, on the event loop, and `depth` in a worker too; the defaults drop it."""

    batch: Callable[[int, float], None] = lambda size, busy_s: None
    depth: Callable[[int], None] = lambda waiting: None
    wasted: Callable[[], None] = lambda: None


class Scheduler:
    """Batches jobs for one engine. Create and use it on one event loop.

    Args:
        run: the engine's `run`.
        max_batch: images in a batch.
        max_batch_pixels: input pixels in a batch, so that big pictures do not multiply memory; one image always fits.
        max_queue: jobs that may wait.
        max_wait_s: `check_admission` refuses when a job would wait longer; never when the engine is idle.
        run_s, pace_s: what a run takes, seconds and seconds per input pixel, to believe until runs have been measured.
        slots: runs at the same time.
        delay_s: how long a job waits on purpose for others to share its batch with, unless the batch is full.
        workers: the threads that run and finish; without them the scheduler has `slots` of its own.
        run_alone: in place of `run` while no other worker computes: the engine may use all cores.
        crowded: whether others than these workers want the cores; asked in a worker.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_batch_pixels: int,
        max_queue: int,
        max_wait_s: float,
        run_s: float = GUESS_RUN_S,
        pace_s: float = GUESS_PIXEL_S,
        slots: int = 1,
        delay_s: float = 0.0,
        workers: Workers | None = None,
        run_alone: Run | None = None,
        crowded: Callable[[], bool] = lambda: False,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run = run
        self._run_alone = run_alone
        self._others = crowded
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._slots = slots
        self._delay_s = delay_s
        self._workers = workers
        self._own_threads = ThreadPoolExecutor(slots, thread_name_prefix="engine") if workers is None else None
        self._observer = observer or Observer()
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._queue: Queue[Job] = Queue(max_batch, max_batch_pixels)
        self._cost, self._cost_alone = Cost(run_s, pace_s), Cost(run_s, pace_s)
        self._pulling = 0  # workers asked to pull, at most `slots`
        self._running: list[Ran] = []
        self._unanswered = 0
        self._closing = False
        self._drained = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Whether a job that came now would begin at once."""
        return not len(self._queue) and len(self._running) < self._slots

    def run_seconds(self, images: int, pixels: float) -> float:
        """What a crowded machine is expected to take for `images` in batches as they are worth it."""
        return self._cost.predict(images / self._worth(pixels / max(1, images)), pixels)

    def worker_seconds(self, pixels: float) -> float:
        """What an image of `pixels` takes of the shared workers; nothing where the engine has threads of its own."""
        return 0.0 if self._workers is None else self._cost.predict(1, pixels)

    def predicted_wait_s(self) -> float:
        """Seconds until a job that came now would begin; 0 when there is room for one more run."""
        with self._lock:
            if self.idle:
                return 0.0
            images, pixels = len(self._queue), sum(item.pixels for item in self._queue)
            running, now = list(self._running), self._clock()
        left = sum(max(0.0, self._costs(ran.alone).predict(1, ran.pixels) - (now - ran.began)) for ran in running)
        return (left + (self.run_seconds(images, pixels) if images else 0.0)) / self._slots

    def check_admission(self) -> None:
        """Should a request be let in now? Cheap: asked before a body is read, and again when it is decoded.

        Raises:
            Draining: shutting down.
            Overloaded: the queue is full, or the predicted wait is too long.
        """
        self._check_room()
        wait = self.predicted_wait_s()
        if wait > self._max_wait_s:
            limit = f"{wait * 1000:.0f} ms of work wait; the limit is {self._max_wait_s * 1000:.0f} ms"
            raise Overloaded(f"{limit} (MASKSERVE_MAX_WAIT_MS)", retry_after_s=wait - self._max_wait_s)

    def _check_room(self) -> None:
        if self._closing:
            raise Draining("the server is shutting down; try another one or come back", retry_after_s=1.0)
        if len(self._queue) >= self._max_queue:
            raise Overloaded(f"{len(self._queue)} images wait, the limit", retry_after_s=self.predicted_wait_s())

    async def submit(
        self,
        tensor: NDArray[np.uint8],
        content: tuple[int, int],
        finish: Callable[[Answer], T],
        deadline: float | None = None,
        priority: int = 0,
    ) -> T:
        """Wait for a place in a batch and for what `finish` makes of the answer. Cancelled, the job leaves the queue.

        Args:
            tensor: (h, w, 3) uint8.
            content: true (height, width) of the picture inside it.
            finish: called in a worker, right after the run.
            deadline: on the scheduler's clock; a job that cannot meet it fails at once, without running.
            priority: higher goes first; every second of waiting counts as one, so nobody waits for ever.

        Raises:
            Overloaded, Draining: no room, or shutting down.
            DeadlineExceeded: the deadline passed in the queue, or is sure to.
            EngineFailed, ModelOutputInvalid: this image failed.
            NotReady: the device did.
            Exception: whatever `finish` raises.
        """
        self._check_room()
        pixels = int(tensor.shape[0] * tensor.shape[1])
        if deadline is not None:
            self._check_deadline(deadline, pixels)
        job = Job(tensor, content, finish)
        item = Waiting(job, tensor.shape, pixels, self._clock(), priority, deadline)
        with self._lock:
            self._queue.push(item)
            self._tell_depth()
            full = len(self._queue) >= self._max_batch
            if full or not self._delay_s:
                self._call_worker()
        if not full and self._delay_s:
            self._loop.call_later(self._delay_s, self._call_worker_later)
        self._unanswered += 1
        try:
            result: T = await job.future
            return result
        except asyncio.CancelledError:
            with self._lock:
                self._queue.remove(item)
                self._tell_depth()
            raise
        finally:
            self._unanswered -= 1
            self._tell_drained()

    def _check_deadline(self, deadline: float, pixels: int) -> None:
        cost = self._cost_alone if self.idle and not self._running else self._cost
        needed = self.predicted_wait_s() + cost.predict(1, pixels)
        left = deadline - self._clock()
        if left <= 0 or needed > left:
            raise DeadlineExceeded(
                f"{max(left, 0.0) * 1000:.0f} ms are left, {needed * 1000:.0f} ms are needed; "
                "give a longer timeout_ms or come back when it is calmer",
                retry_after_s=max(0.0, needed - max(left, 0.0)),
            )

    async def close(self, limit_s: float) -> None:
        """Refuse new jobs, run what waits for at most `limit_s`, then fail the rest."""
        self._closing = True
        self._tell_drained()
        try:
            await asyncio.wait_for(self._drained.wait(), limit_s)
        except TimeoutError:
            with self._lock:
                unserved = self._queue.clear()
                self._tell_depth()
                stuck = [item for ran in self._running for item in ran.items]
            for item in unserved:
                _fail(item, Draining("the server shut down before this image's turn", retry_after_s=1.0))
            for item in stuck:
                _fail(item, Draining("the server shut down while this image ran", retry_after_s=1.0))
        if self._own_threads is not None:
            self._own_threads.shutdown(wait=not self._running, cancel_futures=True)

    # ---- in a worker ----

    def _call_worker(self) -> None:
        """Ask for a worker where one more would have something to do. Under the lock, on the loop or in a worker."""
        if self._pulling < min(self._slots, len(self._queue)):
            self._pulling += 1
            if self._workers is not None:
                self._workers.put(Rank.RUN, self._pull)
            elif self._own_threads is not None:
                self._own_threads.submit(self._pull)

    def _call_worker_later(self) -> None:
        with self._lock:
            self._call_worker()

    def _pull(self) -> None:
        """Take what is to run now, run it, and ask for a worker again while anything waits."""
        with self._lock:
            idle = self._slots - len(self._running)
            worth = self._worth(max((item.pixels for item in self._queue), default=1))
            batch, late = self._queue.take(self._clock(), idle, worth)
            self._tell_depth()
            alone = self._run_alone is not None and not len(self._queue) and not self._running and not self._crowded()
            first = Ran(batch, alone, self._clock())
            if batch:
                self._running.append(first)
        if late:
            tell(self._loop, self._told_late, late)
        run = self._run_alone if alone and self._run_alone is not None else self._run
        runs = run_halving(run, self._run, first, self._clock) if batch else []
        with self._lock:
            if batch:
                self._running.remove(first)
            self._pulling -= 1
            self._call_worker()
        if not runs:
            return
        answers = [
            (item, Answer(row, ran.began, ran.ended, len(ran.items)))
            for ran in runs
            for item, row in zip(ran.items, ran.rows, strict=False)  # no rows where it failed
            if row is not None and not item.work.future.done()
        ]
        if self._workers is not None:
            for item, answer in answers[1:]:  # for whoever is free
                self._workers.put(Rank.MASKS, functools.partial(self._finish, item, answer, []))
            answers = answers[:1]
        for item, answer in answers[:-1]:
            self._finish(item, answer, [])
        if answers:
            self._finish(*answers[-1], runs)  # one word to the event loop for both
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

    def _crowded(self) -> bool:
        return (self._workers is not None and self._workers.busy > 1) or self._others()

    # ---- on the event loop ----

    def _told_finished(self, item: Item, result: Any, error: BaseException | None, runs: Sequence[Ran]) -> None:
        if runs:
            self._told_ran(runs)
        settle(item.work.future, result, error)

    def _told_late(self, late: Sequence[Item]) -> None:
        for item in late:
            _fail(item, DeadlineExceeded("the deadline passed while the image waited", retry_after_s=0.0))
        self._tell_drained()

    def _told_ran(self, runs: Sequence[Ran]) -> None:
        for ran in runs:
            self._observer.batch(len(ran.items), ran.ended - ran.began)
            if ran.failure is None:
                self._costs(ran.alone).learn(ran.ended - ran.began, 1, ran.pixels)
                for item, row in zip(ran.items, ran.rows, strict=True):
                    if item.work.future.cancelled():
                        self._observer.wasted()
                    elif row is None:
                        _fail(item, ModelOutputInvalid("the network answered NaN or infinity for this image"))
            elif isinstance(ran.failure, DeviceFault):
                for item in ran.items:
                    _fail(item, NotReady(DEVICE_FAILED, retry_after_s=10.0), cause=ran.failure)
            elif len(ran.items) == 1:
                _fail(ran.items[0], EngineFailed("the engine failed on this image"), cause=ran.failure)
        self._tell_drained()

    def _tell_depth(self) -> None:
        """Under the lock, whenever the queue has changed."""
        self._observer.depth(len(self._queue))

    def _tell_drained(self) -> None:
        if self._closing and not self._unanswered and not len(self._queue) and not self._running:
            self._drained.set()

    def _costs(self, alone: bool) -> Cost:
        return self._cost_alone if alone else self._cost

    def _worth(self, pixels: float) -> int:
        """Images of `pixels` in a batch whose fixed cost is no more than `WASTE` of it."""
        fixed, each = self._cost.predict(1, 0), self._cost.predict(0, pixels)
        needed = fixed * (1 - WASTE) / (WASTE * each) if each > 0 else float(self._max_batch)
        return max(1, min(self._max_batch, round(needed)))


def _fail(item: Item, error: ServiceError, cause: Exception | None = None) -> None:
    if not item.work.future.done():
        error.__cause__ = cause
        item.work.future.set_exception(error)
