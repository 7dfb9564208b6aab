"""Progress on a terminal: one line a step, with its time and the memory it took the process to."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


class Progress:
    """`with progress.step("writing the graph"):` prints the step when it begins and its cost when it ends."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self._began = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        self._done += 1
        print(f"[{self._done}/{self._steps}] {title} ...", end="", flush=True)
        began = time.monotonic()
        try:
            yield
        except BaseException:
            print(" failed", flush=True)
            raise
        print(f" {time.monotonic() - began:.1f} s, {peak_memory_mb():.0f} MB", flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self._began
