"""One run against a server that is up: requests go out by a schedule (open loop) or as answers come back (closed loop).

Open loop is how the world behaves: people do not wait for each other's answers. Each request's latency counts from the
moment it was due, whatever held it up, this program included. Closed loop says what a fixed number of patient clients
gets, and, with enough of them, what a server can do at most; its latencies count from sending, so a stall hides in
them.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loadtest.answers import Exam
from loadtest.clock import make_alarm
from loadtest.pool import Job, Pool
from loadtest.recording import Recording
from loadtest.schedule import Moments

# A closed-loop client that failed waits as long as the server asks, within these bounds: hammering measures nothing.
PAUSES_S = (0.05, 1.0)
BURST = 32  # requests sent in one go when many are due; then answers are read


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run does.

    Attributes:
        warmup_s: requests due before this are sent, and left out of the numbers.
        duration_s: what is measured, after the warm-up.
        timeout_s: a request unanswered so long after it was due has failed.
        capacity: requests at most.
        moments: when requests are due, for an open loop.
        pictures: which picture each of them sends, or None to take turns.
        clients: for a closed loop.
        promise_s: latency that was promised.
        give_up_after: stop when so many measured requests have broken the promise.
    """

    warmup_s: float
    duration_s: float
    timeout_s: float
    capacity: int
    moments: Moments | None = None
    pictures: list[int] | None = None
    clients: int = 0
    promise_s: float | None = None
    give_up_after: int | None = None

    @property
    def end_s(self) -> float:
        return self.warmup_s + self.duration_s


class Run:
    """
    Args:
        pool: connections to the server.
        requests: the bytes to send for each picture.
        exam: judges the answers.
        plan: what to do.
    """

    def __init__(self, pool: Pool, requests: list[bytes], exam: Exam, plan: Plan) -> None:
        self.plan = plan
        self.recording = Recording(plan.capacity)
        self.began = 0.0
        self.cpu_s = 0.0  # processor time of this process
        self.gave_up = False
        self.fresh: list[float] = []  # latencies since somebody last looked, for the live line
        self.fresh_errors = 0
        self._pool, self._requests, self._exam = pool, requests, exam
        self._broken = 0
        self._all_due = False  # open loop: nothing more will be sent
        self._alive = plan.clients  # closed loop: clients that still ask
        self._stopped = False
        self._over = asyncio.get_running_loop().create_future()

    @property
    def now_s(self) -> float:
        return time.perf_counter() - self.began

    @property
    def outstanding(self) -> int:
        return self._pool.outstanding

    async def go(self) -> Recording:
        """Runs to the end, or until `stop`."""
        with _no_garbage_collection():
            cpu = time.process_time()
            self.began = time.perf_counter()
            await (self._open_loop() if self.plan.moments is not None else self._closed_loop())
            self.cpu_s = time.process_time() - cpu
        return self.recording

    def stop(self) -> None:
        """Ends it now; what is not answered yet stays unanswered."""
        if self._stopped or not self.began:
            return
        self._stopped = True
        self.recording.cut_at_s = self.now_s
        self._pool.abandon()
        self._finish()

    async def _open_loop(self) -> None:
        assert self.plan.moments is not None
        moments = self.plan.moments[: self.plan.capacity].tolist()
        self.recording.full = len(moments) < len(self.plan.moments)
        alarm = make_alarm(asyncio.get_running_loop(), lambda: ring())
        position = 0

        def ring() -> None:
            nonlocal position
            if self._stopped:
                return
            now = self.now_s
            for _ in range(BURST):
                if position == len(moments) or moments[position] > now:
                    break
                self._submit(moments[position], None if self.plan.pictures is None else self.plan.pictures[position])
                position += 1
            if position < len(moments):
                alarm.set(moments[position] - self.now_s if moments[position] > now else 0.0)
            else:
                self._all_due = True
                if not self._pool.outstanding:
                    self._finish()

        try:
            ring()
            await self._over
        finally:
            alarm.close()

    async def _closed_loop(self) -> None:
        for _ in range(self.plan.clients):
            self._turn()
        await self._over

    def _turn(self) -> None:
        """A closed-loop client sends its next request, or leaves."""
        now = self.now_s
        self.recording.full = self.recording.count == self.recording.capacity
        if self._stopped or now >= self.plan.end_s or self.recording.full:
            self._alive -= 1
            if self._alive == 0 and not self._pool.outstanding:
                self._finish()
        else:
            self._submit(now, None)

    def _submit(self, due: float, picture: int | None) -> None:
        row = self.recording.begin(due)
        request = self._requests[row % len(self._requests) if picture is None else picture]
        self._pool.submit(Job(row, request, self.began + due + self.plan.timeout_s, self._answered))

    def _answered(self, job: Job) -> None:
        row = job.index
        if job.failure:
            kind, why, retry_after_s = job.failure, job.why, 0.0
        else:
            picture = row % len(self._requests) if self.plan.pictures is None else self.plan.pictures[row]
            verdict = self._exam.judge(row, picture, job.status, job.body)
            kind, why, retry_after_s = verdict.kind, verdict.why, verdict.retry_after_s
        began, due = self.began, float(self.recording.due[row])
        sent = job.sent - began if job.sent else job.at - began
        self.recording.end(row, sent, job.at - began, kind, job.status, len(job.body), why)
        latency = job.at - began - due
        if kind == "ok":
            self.fresh.append(latency)
        else:
            self.fresh_errors += 1
        if self.plan.promise_s is not None and due >= self.plan.warmup_s:
            self._broken += kind != "ok" or latency > self.plan.promise_s
            if self.plan.give_up_after is not None and self._broken > self.plan.give_up_after:
                self.gave_up = True
                self.stop()
                return
        if self.plan.moments is None:
            if kind == "ok":
                self._turn()
            else:
                asyncio.get_running_loop().call_later(min(max(retry_after_s, PAUSES_S[0]), PAUSES_S[1]), self._turn)
        elif self._all_due and not self._pool.outstanding:
            self._finish()

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection stops everything for milliseconds; a run is short, and makes no cycles to speak of."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
