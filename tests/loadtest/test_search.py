"""The search for the highest rate, against servers whose limit is known."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.schedule import poisson
from loadtest.search import Found, Step, find_max
from tests.loadtest.conftest import LoadTest
from tests.loadtest.fake import fake

STEP = Step(
    rate=0.0,
    held=True,
    confirming=False,
    seconds=1.0,
    requests=100,
    gave_up=False,
    throughput_per_s=1.0,
    p50_ms=1.0,
    p99_ms=1.0,
    within_percent=100.0,
    error_percent=0.0,
    errors={},
)


def search(limit: float, first: float = 10.0, lucky: float = 1.0) -> Found:
    """Against a server that holds its promise up to `limit`, and in short runs up to `lucky` times that."""

    async def try_rate(rate: float, confirming: bool) -> Step:
        return replace(STEP, rate=rate, confirming=confirming, held=rate <= limit * (1.0 if confirming else lucky))

    return asyncio.run(find_max(try_rate, first, 0.05))


@given(first=st.floats(1.0, 500.0), times=st.floats(1 / 7, 1000.0), lucky=st.sampled_from([1.0, 1.1]))
def test_the_search_comes_within_its_precision_of_the_limit(first: float, times: float, lucky: float) -> None:
    limit = first * times
    found = search(limit, first, lucky)
    assert found.confirmed
    assert limit / 1.11 <= found.rate <= limit
    assert found.steps[-1].confirming
    assert len(found.steps) <= 30


def test_a_server_that_holds_at_no_rate_ends_the_search() -> None:
    found = search(0.0)
    assert found.rate == 0.0
    assert not found.confirmed
    assert len(found.steps) <= 4


def test_a_search_that_is_stopped_tells_what_it_knows() -> None:
    tried = []

    async def try_rate(rate: float, confirming: bool) -> Step | None:
        tried.append(rate)
        return None if len(tried) == 4 else replace(STEP, rate=rate)

    found = asyncio.run(find_max(try_rate, 10.0, 0.05))
    assert (found.rate, found.confirmed) == (40.0, False)


def test_the_limit_of_a_simulated_queue_is_found_within_10_percent() -> None:
    """One server, 10 ms an image: it carries 100/s, and a promise of 300 ms in 20 s breaks a little above that."""
    random = np.random.default_rng(2)

    async def try_rate(rate: float, confirming: bool) -> Step:
        due = poisson(rate, 40.0 if confirming else 20.0, 10**6, random)
        free_at, waits = 0.0, []
        for moment in due:
            free_at = max(free_at, moment) + 0.01
            waits.append(free_at - moment)
        return replace(STEP, rate=rate, confirming=confirming, held=bool(np.mean(np.array(waits) <= 0.3) >= 0.99))

    assert asyncio.run(find_max(try_rate, 7.0, 0.05)).rate == pytest.approx(98, rel=0.10)


@pytest.mark.proof
def test_the_capacity_of_a_server_is_found_within_10_percent(loadtest: LoadTest) -> None:
    """100/s at most. Runs of 4 s and a promise of 1 s forgive a machine that stops for half a second, and let the rate
    that is found, of a perfect machine too, be 93 to 114 (5th to 95th percentile in simulation): a try may miss."""
    for _ in range(3):
        with fake(service_ms=10) as url:
            tested = loadtest(url, "--find-max", "--p99-ms", 1000, "--duration", 4, "--warmup", 0.5)
        assert tested.code == 0
        assert tested.report["search"]["confirmed"]
        assert "confirmed" in tested.out
        assert tested.err.count("holds") + tested.err.count("breaks") == len(tested.report["search"]["steps"])
        if tested.report["search"]["rate"] == pytest.approx(103, rel=0.10):
            break
    assert tested.report["search"]["rate"] == pytest.approx(103, rel=0.10)


def test_a_promise_that_no_rate_holds_ends_with_1(loadtest: LoadTest) -> None:
    with fake(latencies_ms=[30], solo=5, solo_ms=30, refuse_every=2) as url:
        tested = loadtest(url, "--find-max", "--p99-ms", 500, "--duration", 0.1, "--warmup", 0)
    with fake(latencies_ms=[30]) as url:
        alone = loadtest(url, "--find-max", "--p99-ms", 20)
    assert tested.code == alone.code == 1
    assert "the slowest tried" in tested.out
    assert "when nothing else happens" in alone.out
