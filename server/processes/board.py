"""What all processes may know without asking: one block of shared memory that outlives each of them but the supervisor.

Every field has one writer, is read at any time, and fits a machine word or harms nobody half-written (text for people).

    models    the engine process: state, reason, since when it runs, when it is free.  The supervisor: who hung
    processes each its own row: heartbeat, connections, requests inside, prepared; and its id, by the supervisor
    quotas    of keys; several writers, so there is a lock
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.priority import PRIORITIES
from server.processes.arena import Window
from server.repository import State
from server.shared_file import shared_file

STATES: tuple[State, ...] = ("loading", "ready", "failed", "closed")
LOCK_TRIES = 200  # then go on without: a process stopped inside may not stop the others

MODEL = np.dtype(
    [
        ("state", np.int64),
        ("reason", "S256"),
        ("engine", "S64"),
        ("note", "S512"),
        ("running_since", np.float64),  # 0.0: it does not
        ("free_at", np.float64, PRIORITIES),  # by priority, when a job that came now would begin; 0.0: at once
        ("image_s", np.float64),  # that one more image adds to that
        ("told_at", np.float64),  # when both were told
        ("hung", np.int64),  # the generation of the engine process in which it did; 0: never
    ]
)
PROCESS = np.dtype(
    [
        ("pid", np.int64),
        ("heartbeat", np.float64),  # when its event loop last turned; 0.0: it has not begun
        ("inside", np.int64),
        ("connections", np.int64),
        ("prepared", np.int64),  # 1: it would answer a request with more than "not yet"
    ]
)
ENGINE = np.dtype([("generation", np.int64), ("settled", np.int64)])  # settled: the generation that has loaded all
QUOTA = np.dtype([("held", np.float64), ("at", np.float64)])

LOG_LOCK = 0  # bytes of the file that are locked, one for each purpose
QUOTA_LOCK = 1


class Board:
    """
    Args:
        descriptor: of `make_board`; it stays open, and the locks are on it.
        models: how many; the others are sizes too. All processes give the same.
    """

    def __init__(self, descriptor: int, models: int, fronts: int, quotas: int) -> None:
        self.descriptor = descriptor
        window = Window(descriptor, writable=True)
        parts = _parts(models, fronts, quotas)
        self.models, self.processes, self.engine, self.quotas = (
            window.view(offset, (count,), dtype) for offset, count, dtype in parts
        )
        self.fronts: NDArray[Any] = self.processes[2:]  # after the supervisor and the engine process
        self.engine_process: NDArray[Any] = self.processes[1:2]

    def forget_engine(self, reason: str) -> None:
        """By the supervisor, when the engine process has ended: nothing runs, nothing is ready."""
        self.models["state"] = STATES.index("loading")
        self.models["reason"] = reason.encode()
        self.models["running_since"] = self.models["free_at"] = 0.0

    @contextlib.contextmanager
    def locked(self, byte: int) -> Iterator[None]:
        """Alone among the processes, or nearly: who is killed inside loses the lock, who stops inside is passed."""
        got = False
        for _ in range(LOCK_TRIES):
            with contextlib.suppress(OSError):
                fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                got = True
                break
            time.sleep(0)
        try:
            yield
        finally:
            if got:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, byte)

    def writer(self, write: Callable[[bytes], object]) -> Callable[[bytes], None]:
        """`write` without another process's bytes in between; waits as long as it takes, in the thread of the log."""

        def write_alone(data: bytes) -> None:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, LOG_LOCK)
            try:
                write(data)
            finally:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, LOG_LOCK)

        return write_alone


def _parts(models: int, fronts: int, quotas: int) -> list[tuple[int, int, np.dtype[Any]]]:
    """(offset, count, dtype) of every table; all fields are of 8 bytes or multiples of it, so all are aligned."""
    parts = []
    end = 0
    for count, dtype in ((models, MODEL), (2 + fronts, PROCESS), (1, ENGINE), (quotas, QUOTA)):
        parts.append((end, count, dtype))
        end += count * dtype.itemsize
    return parts


def make_board(models: int, fronts: int, quotas: int) -> int:
    """A descriptor for `Board`."""
    offset, count, dtype = _parts(models, fronts, quotas)[-1]
    return shared_file("board", offset + count * dtype.itemsize)


class BoardCondition:
    """The `Condition` of a model, for all processes.

    Args:
        connected: whether this process has a way to the engine at all.
    """

    def __init__(self, board: Board, model: int, connected: Callable[[], bool] = lambda: True) -> None:
        self._row = board.models[model : model + 1]
        self._connected = connected

    @property
    def state(self) -> State:
        state = STATES[int(self._row["state"][0])]
        return "loading" if state == "ready" and not self._connected() else state

    @property
    def reason(self) -> str:
        return bytes(self._row["reason"][0]).decode("utf-8", "replace")

    @property
    def engine(self) -> str:
        return bytes(self._row["engine"][0]).decode("utf-8", "replace")

    @property
    def note(self) -> str:
        return bytes(self._row["note"][0]).decode("utf-8", "replace")

    def become(self, state: State, reason: str, engine: str | None = None, note: str = "") -> None:
        self._row["reason"] = reason.encode()
        if engine is not None:
            self._row["note"] = note.encode()
            self._row["engine"] = engine.encode()
        self._row["state"] = STATES.index(state)


class SharedBucket:
    """A quota's `Bucket` that all fronts take from."""

    def __init__(self, board: Board, number: int) -> None:
        self._board = board
        self._row = board.quotas[number : number + 1]
        self._byte = QUOTA_LOCK + number

    def change(self, amount: Callable[[float | None, float], tuple[float, float]]) -> None:
        with self._board.locked(self._byte):
            held, at = float(self._row["held"][0]), float(self._row["at"][0])
            self._row["held"], self._row["at"] = amount(held if at else None, at)


class Inside:
    """How many requests are inside all fronts; a front counts its own. A `Tally`."""

    def __init__(self, board: Board, front: int) -> None:
        self._all = board.fronts["inside"]
        self._front = front
        self._all[front] = 0

    def add(self, change: int) -> None:
        self._all[self._front] += change

    def total(self) -> int:
        return sum(self._all.tolist())  # few enough that Python is quicker than numpy
