"""Many connections, and the requests that wait for one.

A pool opens a connection when a request finds none idle, up to its limit. From then on requests wait here, in order,
and their clock runs: what the user of a full client would feel is not hidden. One that finds no connection before its
own deadline was never sent, and is counted as exactly that.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from loadtest.target import Dialler
from loadtest.wire import Connection

SWEEP_S = 0.02  # how often deadlines are looked at


class Job:
    """One request on its way. `done(job)` is called once; then `status` and `body`, or `failure`, say how it went.

    A failure is one of connect_failed, timeout, closed, not_sent; `at` is when it was known.
    """

    __slots__ = ("at", "body", "deadline", "done", "failure", "index", "request", "resent", "sent", "status", "why")

    def __init__(self, index: int, request: bytes, deadline: float, done: Callable[[Job], None]) -> None:
        self.index, self.request, self.deadline, self.done = index, request, deadline, done
        self.sent = self.at = 0.0
        self.status = 0
        self.body = b""
        self.failure = self.why = ""
        self.resent = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a question outside the load."""

    status: int
    body: bytes
    seconds: float


class Pool:
    """
    Args:
        dialler: opens the connections.
        limit: connections at once.
    """

    def __init__(self, dialler: Dialler, limit: int) -> None:
        self.dialler, self.limit = dialler, limit
        self.resent = 0  # requests that went out twice: their idle connection was closed as they were written
        self.most = 0  # connections at once, at most
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._busy: dict[Connection, Job] = {}
        self._waiting: deque[Job] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    @property
    def outstanding(self) -> int:
        return len(self._busy) + len(self._waiting)

    def submit(self, job: Job) -> None:
        while self._idle:
            connection = self._idle.pop()  # the one used last: those not needed grow old and are closed
            if connection.open:
                self._start(connection, job)
                return
        self._waiting.append(job)
        self._open_more()

    async def ask(self, request: bytes, timeout_s: float) -> Reply:
        """One request outside the load.

        Raises:
            OSError: no answer; the message says why.
        """
        answered: asyncio.Future[Job] = self._loop.create_future()
        began = time.perf_counter()
        self.submit(Job(-1, request, began + timeout_s, answered.set_result))
        job = await answered
        if job.failure:
            raise OSError(job.why)
        return Reply(job.status, job.body, job.at - began)

    def abandon(self) -> None:
        """Drops every request not answered yet; their `done` is not called."""
        self._waiting.clear()
        for connection in list(self._busy):
            connection.hang_up()
        self._busy.clear()

    async def close(self) -> None:
        self._sweeper.cancel()
        self.abandon()
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in self._idle:
            connection.hang_up()
        self._idle.clear()
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    # what connections tell

    def replied(self, connection: Connection, status: int, body: bytes, at: float) -> None:
        job = self._busy.pop(connection)
        job.status, job.body, job.at = status, body, at
        if connection.open:
            self._offer(connection)
        else:
            self._open_more()
        job.done(job)

    def lost(self, connection: Connection, why: str) -> None:
        job = self._busy.pop(connection, None)
        if job is None:
            if connection in self._idle:
                self._idle.remove(connection)
        elif job.resent or connection.answering or not connection.used:
            self._fail(job, "closed", why)
        else:
            # A server may close an idle connection just as a request is written to it. No client can avoid that, and
            # all of them ask again; the clock of the request keeps running.
            job.resent = True
            self.resent += 1
            self._waiting.appendleft(job)
        self._open_more()

    # inside

    def _start(self, connection: Connection, job: Job) -> None:
        self._busy[connection] = job
        job.sent = time.perf_counter()
        connection.send(job.request)

    def _offer(self, connection: Connection) -> None:
        if self._waiting:
            self._start(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _open_more(self) -> None:
        """A connection for every waiting request, within the limit."""
        while len(self._opening) < len(self._waiting):
            if len(self._busy) + len(self._opening) + len(self._idle) >= self.limit:
                return
            task = self._loop.create_task(self._open())
            self._opening.add(task)
            self.most = max(self.most, len(self._busy) + len(self._opening) + len(self._idle))

    async def _open(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            connection = await self.dialler.connect(self)
        except OSError as error:
            self._opening.discard(task)
            if self._waiting:
                self._fail(self._waiting.popleft(), "connect_failed", str(error))
        else:
            self._opening.discard(task)
            self._offer(connection)
        finally:
            self._opening.discard(task)

    def _fail(self, job: Job, failure: str, why: str) -> None:
        job.failure, job.why, job.at = failure, why, time.perf_counter()
        job.done(job)

    def _sweep(self) -> None:
        """Ends what is past its deadline."""
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        now = time.perf_counter()
        for connection, job in [pair for pair in self._busy.items() if pair[1].deadline < now]:
            if self._busy.pop(connection, None) is None:
                continue  # the failure before made the run give up, and with it all of these
            connection.hang_up()
            self._fail(job, "timeout", "no answer in time")
        while self._waiting and self._waiting[0].deadline < now:
            self._fail(self._waiting.popleft(), "not_sent", f"all {self.limit} connections were busy")
        self._open_more()
