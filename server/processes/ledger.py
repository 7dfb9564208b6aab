"""Metrics of several processes whose totals are the totals.

prometheus_client keeps each number of a metric in an object of `values.ValueClass`. Here that class keeps it in a
`Ledger`, a file in memory that the supervisor holds: one for each process, handed on to the one that follows after a
crash, so what was counted stays counted. Reading a number adds up all ledgers.

    ledger of front-1    requests{nuclei, 200}  17
    ledger of front-2    requests{nuclei, 200}  12     either of them answers /metrics with 29
    ledger of engine     batch_size_sum         29

A ledger is a column of numbers and, in the same order, their names. Names are only ever added, the count of them is
written last, so that others may read at any time.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import ProcessCollector, values
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

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


class Totals:
    """One process's pen and everybody's ledgers.

    Args:
        ours: which of them this process writes.
    """

    def __init__(self, ledgers: Sequence[Ledger], ours: int) -> None:
        self.ledgers = ledgers
        self.ours = ledgers[ours]
        self.lock = Lock()

    def install(self) -> None:
        """From now on, every metric made in this process lives here."""
        totals = self

        class Bound(SharedValue):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(totals, *args, **options)

        values.ValueClass = Bound

    def fresh(self) -> Iterator[Series]:
        """Series that any process has begun since the last call."""
        for ledger in self.ledgers:
            yield from ledger.fresh()


class SharedValue:
    """A number of a metric; stands in for `prometheus_client.values.MutexValue`."""

    _multiprocess = False

    def __init__(
        self,
        totals: Totals,
        kind: str,
        metric: str,
        name: str,
        names: Sequence[str],
        labels: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "sum",
    ) -> None:
        self._totals = totals
        self._merge = max if multiprocess_mode == "livemax" else sum  # a gauge may be the same fact in every process
        self._series = Series(kind, metric, name, tuple(labels))
        self._place = totals.ours.place(self._series)

    def inc(self, amount: float) -> None:
        if self._place is not None:
            with self._totals.lock:
                self._totals.ours.add(self._place, amount)

    def set(self, value: float, timestamp: float | None = None) -> None:
        if self._place is not None:
            self._totals.ours.set(self._place, value)

    def get(self) -> float:
        return float(self._merge(ledger.get(self._series) for ledger in self._totals.ledgers))

    def set_exemplar(self, exemplar: Any) -> None:
        """None are kept."""

    def get_exemplar(self) -> None:
        return None


class Processes(Collector):
    """prometheus_client's process metrics, of every process, with its name as a label.

    Args:
        people: names and process ids of those that run, when asked.
    """

    def __init__(self, people: Callable[[], dict[str, int]]) -> None:
        self._people = people

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for name, pid in self._people().items():
            for found in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, {**sample.labels, "process": name}, sample.value)
        yield from families.values()
