"""Counting in several ledgers is counting in one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import values

from server.metrics import Metrics
from server.processes.ledger import Ledger, Series, make_ledger
from server.processes.totals import Processes, Totals


@pytest.fixture(autouse=True)
def own_values() -> Iterator[None]:
    """`Totals.install` is for a whole process; here it ends with the test."""
    before = values.ValueClass
    yield
    values.ValueClass = before


class Book:
    """The ledgers of so many processes."""

    def __init__(self, processes: int) -> None:
        self.files = [make_ledger("test") for _ in range(processes)]

    def open(self, number: int) -> Metrics:
        """What one of them counts with, from now on; the one opened last is this process."""
        totals = Totals([Ledger(file) for file in self.files], number)
        totals.install()
        return Metrics(Processes(dict), totals.fresh)

    def close(self) -> None:
        for file in self.files:
            os.close(file)


def count(metrics: Metrics, what: str, label: str, amount: float) -> None:
    match what:
        case "requests":
            metrics.requests.labels("m", "1", label).inc()
        case "stage":
            metrics.stage_seconds.labels("m", "1", label).observe(amount)
        case "lag":
            metrics.event_loop_lag.observe(amount)


events = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["requests", "stage", "lag"]),
        st.sampled_from(["a", "b", 'ö"\n']),
        st.sampled_from([0.0, 2.0**-8, 0.25, 99.0]),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(events)
def test_every_process_shows_what_one_process_would(happened: list[tuple[int, str, str, float]]) -> None:
    alone = values.ValueClass
    one = Metrics(Processes(dict))
    for _, what, label, amount in happened:
        count(one, what, label, amount)
    wanted = one.exposition()
    book = Book(3)
    try:
        for number, what, label, amount in happened:
            count(book.open(number), what, label, amount)
        for number in range(3):
            assert sorted(book.open(number).exposition().splitlines()) == sorted(wanted.splitlines())
    finally:
        book.close()
        values.ValueClass = alone


def test_what_a_process_counted_is_there_when_it_is_not() -> None:
    book = Book(2)
    count(book.open(1), "requests", "200", 0)
    again = book.open(1)
    assert b'seg_requests_total{model="m",status="200",version="1"} 1.0' in again.exposition()
    count(again, "requests", "200", 0)
    assert b'seg_requests_total{model="m",status="200",version="1"} 2.0' in book.open(0).exposition()
    book.close()


def test_what_a_process_was_is_not_so_when_it_is_gone() -> None:
    book = Book(2)
    engine = book.open(0)
    engine.model_ready.labels("m", "1").set(1)
    engine.engine_busy.labels("m", "1").inc(2.5)
    Ledger(book.files[0]).clear_gauges()
    shown = book.open(1).exposition()
    assert b'seg_model_ready{model="m",version="1"} 0.0' in shown
    assert b'seg_engine_busy_seconds_total{model="m",version="1"} 2.5' in shown
    book.close()


def test_a_full_ledger_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("server.processes.ledger.CELLS", 2)
    file = make_ledger("test")
    ledger = Ledger(file)
    places = [ledger.place(Series("counter", "a", "a_total", (str(number),))) for number in range(3)]
    assert places == [0, 1, None]
    assert "no room" in caplog.text
    os.close(file)


def test_the_processes_are_told_apart() -> None:
    metrics = Metrics(Processes(lambda: {"front-1": os.getpid(), "gone": 2**22 + 1}))
    lines = [line for line in metrics.exposition().decode().splitlines() if line.startswith("process_open_fds{")]
    assert len(lines) == 1
    assert lines[0].startswith('process_open_fds{process="front-1"} ')
