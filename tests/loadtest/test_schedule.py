"""When requests are due: laws that hold for every rate and duration, and a few schedules small enough to write down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import CannotRun
from loadtest.schedule import constant, poisson, ramp, read_trace

RATES = st.floats(0.1, 500.0)
DURATIONS = st.floats(0.01, 20.0)
LIMITS = st.integers(1, 3000)


def seeded(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(rate=RATES, last=RATES, duration_s=DURATIONS, limit=LIMITS, seed=st.integers(0, 9))
def test_every_schedule_ascends_stays_inside_and_keeps_its_limit(
    rate: float, last: float, duration_s: float, limit: int, seed: int
) -> None:
    for moments in (
        constant(rate, duration_s, limit),
        poisson(rate, duration_s, limit, seeded(seed)),
        ramp(rate, last, duration_s, limit),
    ):
        assert len(moments) <= limit
        assert (np.diff(moments) >= 0).all()
        assert ((moments >= 0) & (moments <= duration_s)).all()


@given(rate=RATES, duration_s=DURATIONS)
def test_a_ramp_that_does_not_rise_is_constant(rate: float, duration_s: float) -> None:
    np.testing.assert_allclose(ramp(rate, rate, duration_s, 10**6), constant(rate, duration_s, 10**6), atol=1e-9)


@given(first=RATES, last=RATES, duration_s=st.floats(1.0, 20.0))
def test_by_any_moment_a_ramp_has_sent_what_its_rates_add_up_to(first: float, last: float, duration_s: float) -> None:
    moments = ramp(first, last, duration_s, 10**6)
    for t in np.linspace(0, duration_s, 7):
        due = first * t + (last - first) * t * t / (2 * duration_s)
        assert abs((moments < t).sum() - due) <= 1.01


def test_small_schedules() -> None:
    assert constant(4, 1, 99).tolist() == [0, 0.25, 0.5, 0.75]
    assert constant(10, 0.3, 99).tolist() == pytest.approx([0, 0.1, 0.2])
    assert ramp(0, 8, 1, 99).tolist() == pytest.approx([0, 0.5, 0.5**0.5, 0.75**0.5])
    assert ramp(8, 0, 1, 99).tolist() == pytest.approx([0, 1 - 0.75**0.5, 1 - 0.5**0.5, 0.5])


def test_poisson_arrivals_have_the_mean_and_the_spread_of_a_poisson_process() -> None:
    random = seeded()
    runs = [poisson(50, 20, 10**6, random) for _ in range(200)]
    counts = np.array([len(moments) for moments in runs])
    assert counts.mean() == pytest.approx(1000, rel=0.01)
    assert counts.var() == pytest.approx(1000, rel=0.3)
    gaps = np.concatenate([np.diff(moments) for moments in runs])
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.02)  # exponential gaps are as wide as they are long


def test_the_same_seed_gives_the_same_load() -> None:
    assert (poisson(50, 2, 999, seeded(7)) == poisson(50, 2, 999, seeded(7))).all()
    assert len(poisson(50, 2, 999, seeded(7))) != len(poisson(50, 2, 999, seeded(8)))


def test_a_trace_is_read_in_order_of_time_with_its_pictures(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("# second picture\n12.5 b c.png\n\n11\n13.0 a.png\n")
    moments, names = read_trace(path, 10)
    assert moments.tolist() == [0, 1.5, 2]
    assert names == [None, "b c.png", "a.png"]
    assert read_trace(path, 2)[1] == [None, "b c.png"]


@pytest.mark.parametrize(("text", "says"), [("soon\n", "line 1"), ("1\nnan\n", "line 2"), ("# none\n", "no requests")])
def test_a_trace_that_cannot_be_read_is_refused_with_the_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(text)
    with pytest.raises(CannotRun, match=says):
        read_trace(path, 10)


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="cannot read"):
        read_trace(tmp_path / "none", 10)
