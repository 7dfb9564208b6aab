"""Percentiles, slices and whether a run was steady."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.recording import Recording
from loadtest.statistics import percentile, percentiles_ms, slice_up, unsteadiness

LATENCIES = st.lists(st.floats(0.001, 100.0), min_size=1, max_size=200)


@given(LATENCIES, st.floats(0.1, 100.0))
def test_a_percentile_is_the_smallest_latency_that_enough_stayed_within(latencies: list[float], percent: float) -> None:
    ascending = np.sort(latencies)
    found = percentile(ascending, percent)
    assert found in latencies
    assert (ascending <= found).mean() >= percent / 100 - 1e-9
    assert (ascending < found).mean() < percent / 100


def test_percentiles_of_a_few() -> None:
    shown = percentiles_ms(np.array([0.004, 0.001, 0.003, 0.002]))
    assert shown == {"p50": 2, "p90": 4, "p95": 4, "p99": 4, "p99.9": 4, "max": 4}
    assert percentiles_ms(np.array([])) == {}
    assert percentiles_ms(np.arange(1, 1001) / 1000)["p99.9"] == 999


def recorded(latency_s: list[float], every_s: float = 0.01) -> Recording:
    """One right answer every `every_s`."""
    recording = Recording(len(latency_s) + 1)
    for number, latency in enumerate(latency_s):
        due = number * every_s
        recording.end(recording.begin(due), due, due + latency, "ok", 200, 10, "")
    return recording


def why_unsteady(latency_s: list[float], seconds: float) -> list[str]:
    return unsteadiness(slice_up(recorded(latency_s), 0.0, seconds), open_loop=True)


def test_noise_is_steady() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        assert why_unsteady((0.02 + random.exponential(0.02, 1000)).tolist(), 10.0) == []


def test_a_growing_queue_is_not() -> None:
    reasons = why_unsteady([0.02 + 0.002 * k for k in range(1000)], 10.0)
    assert len(reasons) == 2
    assert "latency rose" in reasons[0]
    assert "more came in than went out" in reasons[1]


def test_a_server_that_warms_up_is_not() -> None:
    assert "--warmup" in why_unsteady([0.2 - 0.0001 * k for k in range(1000)], 10.0)[0]


def test_too_short_a_run_cannot_be_called_steady() -> None:
    assert "three seconds" in why_unsteady([0.02] * 200, 2.0)[0]


def test_slices_hold_every_request_once_and_say_what_waited() -> None:
    recording = recorded([1.5] * 300)
    recording.begin(2.95)  # never answered
    slices = slice_up(recording, 1.0, 3.0)
    assert [piece.measured for piece in slices] == [False, True, True]
    assert [piece.due for piece in slices] == [100, 100, 101]
    assert [piece.good for piece in slices] == [100, 100, 100]
    assert [piece.outstanding for piece in slices] == pytest.approx([100, 150, 151], abs=1)
    assert slices[2].finished_per_s == pytest.approx(100, abs=1)


def test_a_long_run_has_longer_slices() -> None:
    assert len(slice_up(recorded([0.01] * 2000, every_s=1.0), 0.0, 2000.0)) <= 300


def test_codes_without_end_take_no_memory_without_end() -> None:
    recording = Recording(1000)
    for number in range(1000):
        recording.end(recording.begin(0.0), 0.0, 0.1, f"code{number}", 500, 0, "")
    assert len(recording.kinds) == 100
    assert (recording.outcome > 0).all()
