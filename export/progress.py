"""Progress on a terminal: one line a step, with its time and the memory it took the process to."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else 1024 * peak / 1e6


def silence_exporter() -> None:
    """PyTorch's exporter says on every run that torchvision is not there, in the middle of a line of ours."""
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)


class Progress:
    """`with progress.step("writing the graph"):` prints the step when it begins and its cost when it ends."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done: list[tuple[str, float, float]] = []  # title, seconds, megabytes
        self._began = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        print(f"[{len(self._done) + 1}/{self._steps}] {title} ...", end="", flush=True)
        began = time.monotonic()
        try:
            yield
        except BaseException:
            print(" failed", flush=True)
            raise
        self._done.append((title, time.monotonic() - began, peak_memory_mb()))
        print(f" {self._done[-1][1]:.1f} s, {self._done[-1][2]:.0f} MB", flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def print_table(self) -> None:
        """Every step with its time, and the most memory that the process had held when it was over."""
        width = max(len("all"), *(len(title) for title, _, _ in self._done))
        print(f"\n{'step':<{width}}  {'time':>8}  {'peak memory':>11}")
        for title, seconds, memory in (*self._done, ("all", self.seconds(), peak_memory_mb())):
            print(f"{title:<{width}}  {seconds:>6.1f} s  {memory:>8.0f} MB")
