"""The threads that compute: as many as there are cores, so that decoding, networks and masks never fight over them.

    workers = Workers(2)
    picture = await workers.run(Rank.DECODE, decode, payload)

Finishing goes first, so that the oldest leave; then decoding, so that all there is waits in the engine's queue, where
turns and batches are chosen; then running.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from queue import PriorityQueue
from typing import Any, TypeVar

import cv2

from server import memory

T = TypeVar("T")


class Rank(IntEnum):
    """The steps of a picture that compute, in the order in which workers prefer them."""

    MASKS = 0
    DECODE = 1
    RUN = 2
    END = 3  # of the threads


def tell(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> None:
    """From a worker to the event loop; to nobody, when the loop has closed: the work outlived its server."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *args)


class Workers:
    """Those of one process; making them settles how it uses memory and OpenCV's own threads.

    Args:
        threads: cores to use.
    """

    def __init__(self, threads: int) -> None:
        memory.keep_small()
        cv2.setNumThreads(1)  # these are all the threads there are
        self.width = threads
        self._tasks: PriorityQueue[tuple[Rank, int, Callable[[], None] | None]] = PriorityQueue()
        self._numbers = itertools.count()  # equal ranks in the order they came
        self._lock = threading.Lock()
        self._busy = 0
        self._ended = False
        self._waited_for: set[asyncio.Future[Any]] = set()  # by callers of `run`
        self._threads = [
            threading.Thread(target=self._work, name=f"worker_{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> int:
        """Workers that compute now, the one that asks among them."""
        return self._busy

    async def run(self, rank: Rank, work: Callable[..., T], *args: Any) -> T:
        """Wait for `work(*args)`. Cancelled before a worker has taken it, it is never begun.

        Raises:
            RuntimeError: after `close`.
            Exception: whatever `work` raises.
        """
        if self._ended:
            raise RuntimeError("the workers have ended. This is a bug in the order of closing.")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def task() -> None:
            if future.cancelled():
                return
            result, error = None, None
            try:
                result = work(*args)
            except BaseException as caught:
                error = caught
            tell(loop, settle, future, result, error)

        self._waited_for.add(future)
        self.put(rank, task)
        try:
            return await future
        finally:
            self._waited_for.discard(future)

    def give_up(self, error: Callable[[], Exception]) -> None:
        """Let all callers of `run` go, on the event loop: the thread that should have served them may never come back.

        Args:
            error: makes what each of them gets.
        """
        for future in list(self._waited_for):
            settle(future, None, error())

    def put(self, rank: Rank, task: Callable[[], None]) -> None:
        """Have something done; after `close` nothing is, since whoever asks then has outlived the server."""
        if not self._ended:
            self._tasks.put((rank, next(self._numbers), task))

    def close(self, patience_s: float = 30.0) -> None:
        """Do what waits, and end. A thread that is stuck in an engine is left behind; it does not keep the process."""
        self._ended = True
        for _ in self._threads:
            self._tasks.put((Rank.END, next(self._numbers), None))
        until = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while True:
            task = self._tasks.get()[2]
            if task is None:
                return
            with self._lock:
                self._busy += 1
            try:
                task()
            finally:
                with self._lock:
                    self._busy -= 1
            del task  # and with it the picture


def settle(future: asyncio.Future[T], result: T | None, error: BaseException | None) -> None:
    """On the event loop: what a worker has to say."""
    if future.done():  # nobody waits any more
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]  # there is no error, so there is a result
