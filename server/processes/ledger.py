"""The numbers that one process counts, in a file in memory that all may read; `totals` adds them up.

The supervisor holds the file and hands it on to the process that follows after a crash, so what was counted stays
counted. A ledger is a column of numbers and, in the same order, their names. Names are only ever added, the count of
them is written last, so that others may read at any time.
"""

from __future__ import annotations

import json
import logging
import struct
from typing import Any, NamedTuple

import numpy as np

from server.processes.arena import Window
from server.shared_file import shared_file

log = logging.getLogger("maskserve")

CELLS = 2**16
NAMES = CELLS * 192  # bytes; only what is written takes memory
LENGTH = struct.Struct("<I")


class Series(NamedTuple):
    """What one number is called."""

    type: str  # counter, gauge, histogram
    metric: str  # as it was declared: seg_stage
    name: str  # as it is shown: seg_stage_bucket
    labels: tuple[str, ...]  # their values


def make_ledger(name: str) -> int:
    """A descriptor for `Ledger`."""
    return shared_file(f"metrics-{name}", 8 + CELLS * 8 + NAMES)


class Ledger:
    """The numbers of one process: it writes, all read."""

    def __init__(self, descriptor: int) -> None:
        window = Window(descriptor, writable=True)
        self._count = window.view(0, (1,), np.int64)
        self._numbers: Any = window.view(8, (CELLS,), np.float64).data  # quicker than the array, one at a time
        self._names = window.view(8 + CELLS * 8, (NAMES,), np.uint8)
        self._places: dict[Series, int] = {}
        self._end = 0  # of the names read so far
        self._told = 0  # of the names, to `fresh`
        self.refresh()

    def refresh(self) -> None:
        """Read the names that were added since."""
        for place in range(len(self._places), int(self._count[0])):
            begin = self._end + LENGTH.size
            (size,) = LENGTH.unpack(self._names[self._end : begin].tobytes())
            kind, metric, name, labels = json.loads(self._names[begin : begin + size].tobytes())
            series = Series(kind, metric, name, tuple(labels))
            self._places[series] = place
            self._end = begin + size

    def fresh(self) -> list[Series]:
        """The names added since the last call."""
        self.refresh()
        names = list(self._places)[self._told :]
        self._told = len(self._places)
        return names

    def place(self, series: Series) -> int | None:
        """Where the number of a series is; a new one is given a place. None when the ledger is full."""
        if series not in self._places:
            text = json.dumps(series).encode()
            end = self._end + LENGTH.size + len(text)
            if end > NAMES or len(self._places) >= CELLS:
                log.error("no room for another series of metrics in shared memory; %s is not counted", series.name)
                return None
            self._names[self._end : end] = np.frombuffer(LENGTH.pack(len(text)) + text, np.uint8)
            self._end = end
            self._places[series] = len(self._places)
            self._count[0] = len(self._places)
        return self._places[series]

    def add(self, place: int, amount: float) -> None:
        self._numbers[place] += amount

    def set(self, place: int, number: float) -> None:
        self._numbers[place] = number

    def get(self, series: Series) -> float:
        """0.0 for what is not there."""
        place = self._places.get(series)
        return 0.0 if place is None else float(self._numbers[place])

    def clear_gauges(self) -> None:
        """What was so when its process ended is not so any more; what happened has happened."""
        self.refresh()
        for series, place in self._places.items():
            if series.type == "gauge":
                self._numbers[place] = 0.0
