"""Many requests, one engine: who runs next, with whom, and who is refused.

An idle engine takes what waits, at once. While it runs, requests gather; when it is free again, the oldest one
(by age and priority) and all others of its shape form the next batch. Nothing ever waits on purpose:

    arrivals   a  bc   d e
    engine     [a    ][b c d e ]

The queue is bounded twice: by a count, and by the predicted wait, from measured seconds per input pixel. Work whose
deadline has passed, or whose caller has gone, leaves before the engine. A failing batch is halved until the culprit is
alone, so one bad picture fails alone.

Everything here but `run` lives on the event loop; `run` has a thread of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import DeadlineExceeded, Draining, EngineFailed, ModelOutputInvalid, Overloaded, ServiceError

Run = Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]

SECOND = 1.0  # of waiting that outweighs one step of priority
SMOOTHING = 0.2  # weight of the newest run in the measured pace


@dataclass(frozen=True, slots=True)
class Answer:
    """One image's tensors, and when its batch began and ended on the scheduler's clock."""

    outputs: dict[str, NDArray[Any]]
    began: float
    ended: float
    batch_size: int


@dataclass(eq=False, slots=True)
class _Job:
    tensor: NDArray[np.uint8]  # (h, w, 3)
    content: tuple[int, int]  # (height, width) of the picture inside the tensor
    deadline: float | None  # on the scheduler's clock
    priority: int
    since: float
    future: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def pixels(self) -> int:
        return int(self.tensor.shape[0] * self.tensor.shape[1])


@dataclass(slots=True)
class Observer:
    """Where the scheduler reports what it did; the defaults drop it."""

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
        pace_s: seconds per input pixel to believe until a run has been measured.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_batch_pixels: int,
        max_queue: int,
        max_wait_s: float,
        pace_s: float = 0.0,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_batch_pixels = max_batch_pixels
        self._max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._pace_s = pace_s
        self._observer = observer or Observer()
        self._clock = clock
        self._waiting: deque[_Job] = deque()
        self._running_pixels = 0
        self._running_since = 0.0
        self._wake = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._loop_task = asyncio.create_task(self._loop(), name="scheduler")

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running_pixels

    def predicted_wait_s(self) -> float:
        """Seconds until a job that came now would begin; 0 when the engine is idle."""
        if self.idle:
            return 0.0
        running = 0.0
        if self._running_pixels:
            running = max(0.0, self._running_pixels * self._pace_s - (self._clock() - self._running_since))
        return running + sum(job.pixels for job in self._waiting) * self._pace_s

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
        if len(self._waiting) >= self._max_queue:
            raise Overloaded(f"{len(self._waiting)} images wait, the limit", retry_after_s=self.predicted_wait_s())

    async def submit(
        self, tensor: NDArray[np.uint8], content: tuple[int, int], deadline: float | None = None, priority: int = 0
    ) -> Answer:
        """Wait for a place in a batch and for its result.

        Args:
            tensor: (h, w, 3) uint8.
            content: true (height, width) of the picture inside it.
            deadline: on the scheduler's clock; a job that cannot meet it fails at once, without running.
            priority: higher goes first; every second of waiting counts as one, so nobody waits for ever.

        Raises:
            Overloaded, Draining: no room, or shutting down.
            DeadlineExceeded: the deadline passed in the queue, or is sure to.
            EngineFailed, ModelOutputInvalid: this image failed.
        """
        self._check_room()
        job = _Job(tensor, content, deadline, priority, self._clock())
        if deadline is not None:
            needed = self.predicted_wait_s() + job.pixels * self._pace_s
            left = deadline - self._clock()
            if left <= 0 or needed > left:
                raise DeadlineExceeded(
                    f"{max(left, 0.0) * 1000:.0f} ms are left, {needed * 1000:.0f} ms are needed; "
                    "give a longer timeout_ms or come back when it is calmer",
                    retry_after_s=max(0.0, needed - max(left, 0.0)),
                )
        self._waiting.append(job)
        self._observer.depth(len(self._waiting))
        self._wake.set()
        return await job.future

    async def close(self, limit_s: float) -> None:
        """Refuse new jobs, run what waits for at most `limit_s`, then fail the rest and join the thread."""
        self._closing = True
        self._wake.set()
        _, unfinished = await asyncio.wait([self._loop_task], timeout=limit_s)
        for job in self._waiting:
            _fail(job, Draining("the server shut down before this image's turn", retry_after_s=1.0))
        self._waiting.clear()
        for task in unfinished:
            task.cancel()
        self._thread.shutdown(wait=not unfinished, cancel_futures=True)

    async def _loop(self) -> None:
        while not (self._closing and not self._waiting):
            self._wake.clear()
            if not self._waiting and not self._closing:
                await self._wake.wait()
            batch = self._next_batch()
            if batch:
                await self._run_batch(batch)

    def _next_batch(self) -> list[_Job]:
        """The job whose turn it is, and all others of its shape that fit; the rest keep their order."""
        now = self._clock()
        batch: list[_Job] = []
        rest: deque[_Job] = deque()
        # now is the same for all, so the order is that of priority and arrival: stable while they wait
        for job in sorted(self._waiting, key=lambda job: job.since - job.priority * SECOND):
            if job.future.done():  # the caller has gone
                continue
            if job.deadline is not None and now >= job.deadline:
                _fail(job, DeadlineExceeded("the deadline passed while the image waited", retry_after_s=0.0))
            elif not batch or (
                job.tensor.shape == batch[0].tensor.shape
                and len(batch) < self._max_batch
                and (len(batch) + 1) * job.pixels <= self._max_batch_pixels
            ):
                batch.append(job)
            else:
                rest.append(job)
        self._waiting = rest
        self._observer.depth(len(rest))
        return batch

    async def _run_batch(self, batch: list[_Job]) -> None:
        self._running_pixels = sum(job.pixels for job in batch)
        self._running_since = began = self._clock()
        failure: Exception | None = None
        rows: list[dict[str, NDArray[Any]] | None] = []
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, _stack_and_run, self._run, batch)
        except asyncio.CancelledError:
            for job in batch:
                _fail(job, Draining("the server shut down while this image ran", retry_after_s=1.0))
            raise
        except Exception as error:
            failure = error
        finally:
            ended = self._clock()
            self._running_pixels = 0
        self._observer.batch(len(batch), ended - began)
        if failure is not None:
            if len(batch) == 1:
                _fail(batch[0], EngineFailed("the engine failed on this image"), cause=failure)
                return
            await self._run_batch(batch[: len(batch) // 2])
            await self._run_batch(batch[len(batch) // 2 :])
            return
        pace = (ended - began) / sum(job.pixels for job in batch)
        self._pace_s = pace if not self._pace_s else (1 - SMOOTHING) * self._pace_s + SMOOTHING * pace
        for job, row in zip(batch, rows, strict=True):
            if job.future.cancelled():
                self._observer.wasted()
            elif row is None:
                _fail(job, ModelOutputInvalid("the network answered NaN or infinity for this image"))
            else:
                job.future.set_result(Answer(row, began, ended, len(batch)))


def _stack_and_run(run: Run, batch: list[_Job]) -> list[dict[str, NDArray[Any]] | None]:
    """In the engine's thread: one row of outputs per job, None where they are not finite."""
    images = np.stack([job.tensor for job in batch])  # (B, h, w, 3)
    sizes = np.array([job.content for job in batch], np.int32)  # (B, 2)
    outputs = run({"images": images, "sizes": sizes})
    rows = [{name: tensor[i] for name, tensor in outputs.items()} for i in range(len(batch))]
    return [row if all(np.isfinite(tensor).all() for tensor in row.values()) else None for row in rows]


def _fail(job: _Job, error: ServiceError, cause: Exception | None = None) -> None:
    if not job.future.done():
        error.__cause__ = cause
        job.future.set_exception(error)
