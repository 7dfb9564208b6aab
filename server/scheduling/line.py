"""What waits for an engine and what it runs, under the one lock where the event loop and the workers meet.

line.enter(item)      -> True: one more worker has something to do
line.take(...)        -> what is to be run now, and who is too late
line.over(ran)        -> True: again
line.wait_s(turn)     -> until a job of such an urgency would begin
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from server.errors import DeadlineExceeded, Draining, Overloaded
from server.priority import PRIORITIES, urgency
from server.scheduling.predictions import Predictions
from server.scheduling.queue import Queue
from server.scheduling.running import Item, Job, Ran


class Line:
    """From any thread.

    Args:
        queue: its own.
        max_queue: jobs that may wait.
        slots: runs at the same time.
        depth: hears how many wait whenever that has changed.
    """

    def __init__(
        self,
        queue: Queue[Job],
        predictions: Predictions,
        *,
        max_queue: int,
        slots: int,
        depth: Callable[[int], None],
        clock: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._predictions = predictions
        self._max_queue = max_queue
        self._slots = slots
        self._depth = depth
        self._clock = clock
        self._lock = threading.Lock()
        self._running: list[Ran] = []
        self._called = 0  # workers asked to take, at most `slots`
        self._closed = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._queue)

    @property
    def empty(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not len(self._queue) and not self._running

    def wait_s(self, turn: float = math.inf) -> float:
        """Predicted seconds until a job would begin; 0 when there is room for one more run.

        Args:
            turn: its urgency; behind all others unless given.
        """
        with self._lock:
            if not len(self._queue) and len(self._running) < self._slots:
                return 0.0
            ahead = self._queue.ahead_of(turn)
            running, now = list(self._running), self._clock()
        return self._predictions.wait_s(len(ahead), sum(item.pixels for item in ahead), running, now)

    def waits_s(self) -> list[float]:
        """By priority, predicted seconds until a job that came now would begin."""
        waits: list[float] = []
        now = self._clock()
        while len(waits) < PRIORITIES:
            turn = urgency(now, len(waits))
            with self._lock:
                next_to_run = not self._queue.ahead_of(turn)  # and so would be any of a higher one
            waits += [self.wait_s(turn)] * (PRIORITIES - len(waits) if next_to_run else 1)
        return waits

    def image_wait_s(self) -> float:
        """Seconds that one more image, such as those seen lately, adds to the wait."""
        return self._predictions.image_wait_s()

    def check_room(self) -> None:
        """
        Raises:
            Overloaded: as many wait as may.
        """
        if len(self._queue) >= self._max_queue:
            raise Overloaded(f"{len(self._queue)} images wait, the limit", retry_after_s=self.wait_s())

    def check_deadline(self, deadline: float, pixels: int, turn: float) -> None:
        """
        Args:
            turn: its urgency.

        Raises:
            DeadlineExceeded: it is sure to pass before an image of `pixels` is done.
        """
        needed = self.wait_s(turn) + self._predictions.image_seconds(pixels, alone=self.empty)
        left = deadline - self._clock()
        if left <= 0 or needed > left:
            raise DeadlineExceeded(
                f"{max(left, 0.0) * 1000:.0f} ms are left, {needed * 1000:.0f} ms are needed; "
                "give a longer timeout_ms or come back when it is calmer",
                retry_after_s=max(0.0, needed - max(left, 0.0)),
            )

    def enter(self, item: Item) -> None:
        """Join the queue, unless whoever asked has gone.

        Raises:
            Draining: the line has closed.
        """
        with self._lock:
            if self._closed:
                raise Draining("the server shut down before this image's turn", retry_after_s=1.0)
            if not item.work.future.done():
                self._queue.push(item)
                self._depth(len(self._queue))

    def leave(self, future: asyncio.Future[Any]) -> None:
        """Whoever waits for it has gone; nothing where the job does not wait any more, or not yet."""
        with self._lock:
            for item in self._queue:
                if item.work.future is future:
                    self._queue.remove(item)
                    self._depth(len(self._queue))
                    return

    def calls(self) -> bool:
        """Whether one more worker would have something to take; it counts as called then."""
        with self._lock:
            called = self._called < min(self._slots, len(self._queue))
            self._called += called
            return called

    def take(self, may_be_alone: Callable[[], bool]) -> tuple[Ran, Sequence[Item]]:
        """What a worker that was called is to run, which may be nothing, and all whose deadline has passed.

        Args:
            may_be_alone: whether nobody else wants the cores; asked when nothing else waits or runs here.
        """
        with self._lock:
            worth = self._predictions.worth(max((item.pixels for item in self._queue), default=1))
            batch, late = self._queue.take(self._clock(), self._slots - len(self._running), worth)
            self._depth(len(self._queue))
            ran = Ran(batch, self.empty and may_be_alone(), self._clock())
            if batch:
                self._running.append(ran)
            return ran, late

    def over(self, ran: Ran) -> None:
        """The worker that took it is done with the engine."""
        with self._lock:
            if ran.items:
                self._running.remove(ran)
            self._called -= 1

    def close(self) -> tuple[Sequence[Item], Sequence[Item]]:
        """Let nobody in any more, and everybody out: who waited, and who is being run."""
        with self._lock:
            self._closed = True
            waited = self._queue.clear()
            self._depth(0)
            return waited, [item for ran in self._running for item in ran.items]
