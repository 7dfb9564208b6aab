"""Metrics of several processes whose totals are the totals.

prometheus_client keeps each number of a metric in an object of `values.ValueClass`. Here that class keeps it in a
`Ledger`, one for each process. Reading a number adds up all ledgers.

    ledger of front-1    requests{nuclei, 200}  17
    ledger of front-2    requests{nuclei, 200}  12     either of them answers /metrics with 29
    ledger of engine     batch_size_sum         29
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any

from prometheus_client import ProcessCollector, values
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server.processes.ledger import Ledger, Series


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
