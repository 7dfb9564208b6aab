"""What waits for an engine, in the order of its turns, and which of it forms the next batch.

    queue = Queue(max_batch=8, max_batch_pixels=10**6)
    queue.push(Waiting(work=41, shape=(64, 64, 3), pixels=4096, since=0.0))
    queue.take(now=1.0, idle=2, worth=4)      # -> a batch for one of two idle workers, and who is too late

Turns go by age and priority (`server.priority`). It knows neither threads nor tensors: work is anything.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.priority import urgency

W = TypeVar("W")


@dataclass(eq=False, slots=True)
class Waiting(Generic[W]):
    """Something that waits."""

    work: W
    shape: Hashable  # only equals share a batch
    pixels: int
    since: float
    priority: int = 0
    deadline: float | None = None

    @property
    def urgency(self) -> float:
        """See `server.priority`."""
        return urgency(self.since, self.priority)


class Queue(Generic[W]):
    """
    Args:
        max_batch: how many a batch may have.
        max_batch_pixels: how many pixels; one always fits.
    """

    def __init__(self, max_batch: int, max_batch_pixels: int) -> None:
        self._max_batch = max_batch
        self._max_batch_pixels = max_batch_pixels
        self._line: list[Waiting[W]] = []

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Waiting[W]]:
        return iter(self._line)

    def push(self, item: Waiting[W]) -> None:
        bisect.insort_right(self._line, item, key=lambda other: other.urgency)

    def remove(self, item: Waiting[W]) -> bool:
        """Let somebody go who has given up; False when they had been taken already."""
        if item in self._line:
            self._line.remove(item)
            return True
        return False

    def ahead_of(self, turn: float) -> list[Waiting[W]]:
        """Who goes before somebody of such an urgency."""
        return self._line[: bisect.bisect_right(self._line, turn, key=lambda other: other.urgency)]

    def take(self, now: float, idle: int = 1, worth: int | None = None) -> tuple[list[Waiting[W]], list[Waiting[W]]]:
        """The next batch, and all whose deadline has passed. Both leave the queue.

        The batch is whose turn it is with the next of the same shape, but no more than a fair share: what waits is
        split over the idle workers.

        Args:
            idle: workers without work, the one that asks among them.
            worth: batch size from which on a larger batch is no cheaper for each; None where larger is always better.
        """
        late = [item for item in self._line if item.deadline is not None and now >= item.deadline]
        if late:
            self._line = [item for item in self._line if item not in late]
        if not self._line:
            return [], late
        first = self._line[0]
        alike = [item for item in self._line if item.shape == first.shape]
        room = max(1, self._max_batch_pixels // max(1, first.pixels))
        share = math.ceil(len(alike) / max(1, idle))
        size = min(share, self._max_batch, room, worth or share)
        batch = alike[:size]
        self._line = [item for item in self._line if item not in batch]
        return batch, late

    def clear(self) -> list[Waiting[W]]:
        """Everybody leaves."""
        line, self._line = self._line, []
        return line
