"""The live line on stderr: one that is rewritten every second at a terminal, one every five seconds anywhere else."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator
from typing import TextIO

import numpy as np

from loadtest.load import Run
from loadtest.statistics import percentiles_ms


class Progress:
    """
    Args:
        stream: where to write; None writes nothing.
    """

    def __init__(self, stream: TextIO | None = sys.stderr) -> None:
        self._stream = stream
        self._rewrites = stream is not None and stream.isatty()
        self._every_s = 1.0 if self._rewrites else 5.0

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._stream is not None:
            print(f"\r\x1b[K{line}" if self._rewrites else line, file=self._stream, flush=True)

    @contextlib.asynccontextmanager
    async def watching(self, run: Run, label: str) -> AsyncIterator[None]:
        """Shows `run` while the block lasts. A run with a label is a step among many, and gets no lines in a log."""
        if self._stream is None or (label and not self._rewrites):
            yield
            return
        task = asyncio.create_task(self._watch(run, label))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            if self._rewrites:
                print("\r\x1b[K", end="", file=self._stream, flush=True)

    async def _watch(self, run: Run, label: str) -> None:
        before = 0.0
        while True:
            await asyncio.sleep(self._every_s)
            now = run.now_s
            line = f"{label} {describe(run, before, now)}"
            before = now
            if self._rewrites:
                print(
                    f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=self._stream, flush=True
                )
            else:
                print(line, file=self._stream, flush=True)


def describe(run: Run, since_s: float, now_s: float) -> str:
    """What came since somebody last looked; it forgets that afterwards."""
    latencies, run.fresh = run.fresh, []
    errors, run.fresh_errors = run.fresh_errors, 0
    elapsed = max(now_s - since_s, 1e-9)
    shown = percentiles_ms(np.array(latencies), (50.0, 99.0))
    took = f"p50 {shown['p50']:.0f} ms, p99 {shown['p99']:.0f} ms" if shown else "no answers"
    due = run.recording.due
    phase = "warm-up" if now_s < run.plan.warmup_s else "running" if now_s < run.plan.end_s else "waiting for answers"
    return (
        f"{now_s:.0f} of {run.plan.end_s:.0f} s, {phase}: {(due >= since_s).sum() / elapsed:.1f} asked/s, "
        f"{len(latencies) / elapsed:.1f} right/s, {took}, {run.outstanding} in flight"
        + (f", {errors} failed" if errors else "")
    )
