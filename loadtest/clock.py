"""Waking up on time.

An event loop sleeps in whole milliseconds, rounded up: half a millisecond late on average, which is 2 % of a latency of
25 ms. Linux has a finer alarm (timerfd, to some microseconds) that an event loop waits for like for a socket.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Protocol

CLOCK_MONOTONIC = 1


class Alarm(Protocol):
    """Calls back once for each `set`; a later `set` replaces the one before."""

    def set(self, delay_s: float) -> None: ...

    def close(self) -> None: ...


def make_alarm(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Alarm:
    """The finest alarm this system has."""
    if sys.platform == "linux":
        try:
            return _FineAlarm(loop, callback)
        except (OSError, AttributeError, NotImplementedError):  # an unusual libc, or a sandbox that forbids it
            pass
    return _LoopAlarm(loop, callback)


class _LoopAlarm:
    """The event loop's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop, self._callback = loop, callback
        self._handle: asyncio.TimerHandle | None = None

    def set(self, delay_s: float) -> None:
        self.close()
        self._handle = self._loop.call_later(max(delay_s, 0.0), self._callback)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


class _Spec(ctypes.Structure):
    """`struct itimerspec`: the interval, which stays 0 for an alarm that rings once, and the delay."""

    _fields_ = (("every_s", ctypes.c_long), ("every_ns", ctypes.c_long), ("s", ctypes.c_long), ("ns", ctypes.c_long))


class _FineAlarm:
    """timerfd_create(2). Python has it from 3.13 on; through libc it is there in all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._loop, self._callback = loop, callback
        self._fd: int = self._libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self._fd, self._ring)

    def set(self, delay_s: float) -> None:
        ns = max(1, round(delay_s * 1e9))  # 0 would mean never
        spec = _Spec(0, 0, *divmod(ns, 1_000_000_000))
        self._libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set again in the meantime
        self._callback()
