"""Two things that nobody notices from inside: an event loop that is blocked, and an engine that never comes back.

`LoopWatch` sends a ping through the event loop from a thread of its own, twice a second:

    thread   ping ............ ping ............ ping ......... still nothing after 1 s: log where the loop stands
    loop         pong (0.1 ms)     pong (0.2 ms)      [ a call that blocks ........ ] pong (3400 ms)

`RunClock` notes since when an engine runs, so that somebody else can say: too long. `leave` ends a process
in spite of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:  # the supervisor, which watches processes and schedules nothing, is to stay small
    from server.scheduling import Run

log = logging.getLogger("maskserve")

PING_S = 0.5  # between two pings
BLOCKED_S = 1.0  # of silence after which the log says where the loop stands
FRAMES = 6  # of its stack, the innermost ones


class LoopWatch:
    """Measures how late the running event loop is.

    Args:
        lag: hears of every ping how many seconds it took, on the event loop.
    """

    def __init__(self, lag: Callable[[float], None], *, ping_s: float = PING_S, blocked_s: float = BLOCKED_S) -> None:
        self._lag = lag
        self._ping_s = ping_s
        self._blocked_s = blocked_s
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Call it on the event loop; waits for the thread, which waits for nothing else."""
        self._end.set()
        self._thread.join(self._blocked_s)

    def _watch(self) -> None:
        while not self._end.wait(self._ping_s):
            pong = threading.Event()
            try:
                self._loop.call_soon_threadsafe(self._answer, time.perf_counter(), pong)
            except RuntimeError:  # the loop is closed
                return
            if self._heard(pong, self._blocked_s):
                continue
            log.error("the event loop has been blocked for %g s%s", self._blocked_s, self._where())
            while not self._heard(pong, self._ping_s):
                pass

    def _heard(self, pong: threading.Event, patience_s: float) -> bool:
        """Whether the loop answered in time, or nobody needs to know any more."""
        until = time.perf_counter() + patience_s
        while not pong.wait(min(0.05, patience_s)):
            if self._end.is_set():
                return True
            if time.perf_counter() >= until:
                return False
        return True

    def _answer(self, sent: float, pong: threading.Event) -> None:
        pong.set()
        late = time.perf_counter() - sent
        self._lag(late)
        if late > self._blocked_s:
            log.error("the event loop answers again, after %.1f s", late)

    def _where(self) -> str:
        """The innermost lines of code the loop's thread is in; of files their names only."""
        frame = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return ""
        stack = traceback.extract_stack(frame)[-FRAMES:]
        return ", in " + " > ".join(f"{line.filename.rsplit('/', 1)[-1]}:{line.lineno} {line.name}" for line in stack)


class RunClock:
    """Since when an engine runs; of several runs at the same time the one that began first.

    Args:
        mark: hears of every change of that, on `clock`, and 0.0 when nothing runs; in the engine's threads.
    """

    def __init__(
        self, mark: Callable[[float], None] = lambda since: None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._mark = mark
        self._clock = clock
        self._lock = threading.Lock()
        self._began: dict[int, float] = {}

    def timed(self, run: Run) -> Run:
        """An engine's `run`, watched."""

        def watched(inputs: dict[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
            thread = threading.get_ident()
            self._change(thread, self._clock())
            try:
                return run(inputs)
            finally:
                self._change(thread, None)

        return watched

    @property
    def since(self) -> float:
        """When the oldest present run began; 0.0 between runs."""
        return min(tuple(self._began.values()), default=0.0)

    def lasts_s(self) -> float:
        """How long the oldest present run has lasted; 0.0 between runs."""
        since = self.since
        return self._clock() - since if since else 0.0

    def _change(self, thread: int, began: float | None) -> None:
        with self._lock:
            if began is None:
                self._began.pop(thread, None)
            else:
                self._began[thread] = began
            self._mark(self.since)


async def until_it_hangs(clock: RunClock, limit_s: float) -> None:
    """Come back when one run has lasted longer than `limit_s`."""
    while (lasts_s := clock.lasts_s()) <= limit_s:  # noqa: ASYNC110 - the engine's thread must not pay for an event
        await asyncio.sleep(max(0.01, min(limit_s - lasts_s, limit_s / 4)))


def leave(code: int) -> None:
    """End the process with `code`, also when a thread is stuck in an engine, for which Python would wait for ever."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if any(not thread.daemon for thread in others):  # whoever ends in order has joined them
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
