"""Where a request's time goes: consecutive marks on one clock, so that the stages add up to the request.

    receive | decode | preprocess | queue | inference | masks | encode
    ^begin  ^        ^            ^       ^           ^       ^       ^close

Each stage lasts from the end of the one before to its own mark, waiting included. When a request fails, the time since
the last mark belongs to the stage it was in.
"""

from __future__ import annotations

import time
from collections.abc import Callable

STAGES = ("receive", "decode", "preprocess", "queue", "inference", "masks", "encode")


class Stages:
    """The clock of one request; stages are marked in order, by one thread at a time."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.began = self.last = clock()
        self.seconds: dict[str, float] = {}

    def fork(self) -> Stages:
        """Another clock with the same history: each picture of a request goes its own way after `receive`."""
        other = Stages(self.clock)
        other.began, other.last, other.seconds = self.began, self.last, dict(self.seconds)
        return other

    @property
    def current(self) -> str:
        """The stage that runs now."""
        return STAGES[min(len(self.seconds), len(STAGES) - 1)]

    def mark(self, stage: str, at: float | None = None) -> None:
        """End `stage` now, or at a moment already measured on this clock."""
        if stage != self.current or stage in self.seconds:
            raise RuntimeError(f"stage '{stage}' after {list(self.seconds)}. This is a bug in the pipeline.")
        now = self.clock() if at is None else at
        self.seconds[stage] = now - self.last
        self.last = now

    def since_mark(self) -> float:
        """Seconds since the last mark: the stage that runs now, so far."""
        return self.clock() - self.last

    def close(self) -> float:
        """End the request; the time since the last mark goes to the stage it was in. Returns its seconds in all."""
        now = self.clock()
        current = self.current
        self.seconds[current] = self.seconds.get(current, 0.0) + now - self.last
        self.last = now
        return now - self.began

    def milliseconds(self) -> dict[str, float]:
        """The stages so far, and their sum as `total`, for `timing_ms`."""
        timing = {stage: round(seconds * 1000, 3) for stage, seconds in self.seconds.items()}
        return timing | {"total": round((self.last - self.began) * 1000, 3)}

    def server_timing(self) -> list[str]:
        """The entries of a `Server-Timing` header (W3C): `receive;dur=0.3`, `decode;dur=1.9`, ..."""
        return [f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in self.seconds.items()]
