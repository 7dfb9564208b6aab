"""How long what has been let in will keep the workers busy: what admission asks before it lets in more.

with backlog.enter(0.004 + 0.025 + 0.002, 0) as entry:  # decode, run, masks: predicted seconds of one worker
    entry.expects(0.025 + 0.002)                        # decoded
    backlog.wait_s(0)                                   # until somebody of priority 0 who came now would begin
"""

from __future__ import annotations

import time
from collections.abc import Callable

from server.errors import Overloaded
from server.priority import urgency


def check_wait(wait_s: float, limit_s: float) -> None:
    """
    Raises:
        Overloaded: whoever came now would wait for too long.
    """
    if wait_s > limit_s:
        limit = f"{wait_s * 1000:.0f} ms of work wait; the limit is {limit_s * 1000:.0f} ms"
        raise Overloaded(f"{limit} (MASKSERVE_MAX_WAIT_MS)", retry_after_s=wait_s - limit_s)


class Entry:
    """One picture's work that is left."""

    def __init__(self, backlog: Backlog, seconds: float, turn: float) -> None:
        self._backlog = backlog
        self.left_s = seconds
        self.turn = turn  # its urgency

    def expects(self, seconds: float) -> None:
        """A step is over, or more is known: this much is left. From any thread."""
        self.left_s = seconds

    def __enter__(self) -> Entry:
        return self

    def __exit__(self, *_: object) -> None:
        """All is done, or given up."""
        self._backlog.entries.discard(self)


class Backlog:
    """Used on one event loop, but for what an entry expects.

    Args:
        width: workers that share the work.
    """

    def __init__(self, width: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.width = width
        self._clock = clock
        self.entries: set[Entry] = set()

    def enter(self, seconds: float, priority: int) -> Entry:
        entry = Entry(self, seconds, urgency(self._clock(), priority))
        self.entries.add(entry)
        return entry

    @property
    def idle(self) -> bool:
        """Whether a worker has nothing to do."""
        return len(self.entries) < self.width

    def wait_s(self, priority: int) -> float:
        """Predicted seconds until what comes now would begin; 0 while a worker is idle."""
        if self.idle:
            return 0.0
        turn = urgency(self._clock(), priority)
        return sum([entry.left_s for entry in self.entries if entry.turn <= turn]) / self.width
