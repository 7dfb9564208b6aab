"""Costs that are learned: they find what is true, and are not thrown by what is odd."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.scheduling import Cost, Mean
from server.scheduling.costs import LEAST, LONG_MEMORY, MEMORY, RIDGE, SURPRISE


def errors_after(cost: Cost, truth: tuple[float, float], noise: float, runs: int) -> list[float]:
    """Relative errors of the second half of `runs` predictions, batches of 1 to 8 of one size or another."""
    rng = random.Random(4)
    errors = []
    for run in range(runs):
        pixels = rng.choice((65_536, 262_144)) * rng.randint(1, 8)
        seconds = (truth[0] + truth[1] * pixels) * rng.uniform(1 - noise, 1 + noise)
        if run >= runs // 2:
            errors.append(abs(cost.predict(1, pixels) - seconds) / seconds)
        cost.learn(seconds, 1, pixels)
    return errors


@given(st.floats(1e-4, 2e-2), st.floats(1e-9, 1e-6))
def test_the_median_error_is_below_15_percent_whatever_the_machine(fixed: float, pace: float) -> None:
    errors = errors_after(Cost(1e-4, 1e-8), (fixed, pace), noise=0.2, runs=200)
    assert statistics.median(errors) <= 0.15


@pytest.mark.parametrize("times", [0.5, 1.5, 3.0, 10.0])
def test_a_machine_of_another_pace_is_believed_soon(times: float) -> None:
    cost = Cost(1e-4, 1e-8)
    for _ in range(50):
        cost.learn(0.010, 1, 65_536)
    for _ in range(40):
        cost.learn(0.010 * times, 1, 65_536)
    assert cost.predict(1, 65_536) == pytest.approx(0.010 * times, rel=0.1)


def test_it_is_a_mean_of_what_is_measured_since_waits_are_sums() -> None:
    rng = random.Random(0)
    cost = Cost(1e-4, 1e-8)
    measured, predicted = [], []
    for run in range(2000):
        measured.append(0.010 * rng.lognormvariate(0, 0.25))
        cost.learn(measured[-1], 1, 65_536)
        if run > 100:
            predicted.append(cost.predict(1, 65_536))
    assert statistics.mean(predicted) == pytest.approx(statistics.mean(measured), rel=0.02)


def test_odd_measurements_change_little() -> None:
    cost = Cost(1e-4, 1e-8)
    for _ in range(50):
        cost.learn(0.010, 1, 65_536)
    cost.learn(60.0, 1, 65_536)  # the machine slept
    assert cost.predict(1, 65_536) < 0.011
    cost.learn(60.0, 1, 65_536)  # two runs were under way
    assert cost.predict(1, 65_536) < 0.014


def test_what_a_batch_saves_is_remembered_longer_than_the_machines_pace() -> None:
    cost = Cost(1e-4, 1e-8)
    for images in (1, 8) * 100:
        cost.learn(0.010 + 0.001 * images, 1, 65_536 * images)
    for _ in range(200):  # only single pictures now, on a machine that is half as fast
        cost.learn(2 * 0.011, 1, 65_536)
    assert cost.predict(1, 8 * 65_536) == pytest.approx(2 * 0.018, rel=0.15)


@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(0, 10**7)), max_size=50))
def test_a_prediction_is_never_negative(measurements: list[tuple[float, int]]) -> None:
    cost = Cost(1e-4, 1e-8)
    for seconds, pixels in measurements:
        cost.learn(seconds, 1, pixels)
        assert cost.predict(1, pixels) >= 0.0
        assert cost.predict(0, 1) > 0.0


def test_a_mean_begins_with_what_it_sees_and_forgets_slowly() -> None:
    mean = Mean(10.0)
    mean.learn(4.0)
    assert mean.value == 4.0
    for _ in range(200):
        mean.learn(8.0)
    assert 7.9 < mean.value <= 8.0


@given(st.lists(st.tuples(st.floats(1e-3, 10.0), st.integers(0, 10**6)), min_size=1, max_size=30))
def test_two_equations_solved_by_hand_are_solved_as_numpy_does(measurements: list[tuple[float, int]]) -> None:
    guess = np.array((1e-4, 1e-8))
    cost = Cost(*guess)
    square, product, scale = RIDGE * np.eye(2), np.full(2, RIDGE), np.ones(2)
    pace, limit = 1.0, SURPRISE
    for number, (seconds, pixels) in enumerate(measurements):
        terms = guess * (1, pixels)
        terms = terms / float(terms @ scale)
        seen = seconds / float(guess * (1, pixels) @ scale)
        if number and seen > limit * pace:
            seen, limit = limit * pace, 2 * limit
        else:
            limit = SURPRISE
        pace += max(1 - MEMORY, 1 / (number + 1)) * (seen - pace)
        square = LONG_MEMORY * square + (1 - LONG_MEMORY) * RIDGE * np.eye(2) + np.outer(terms, terms)
        product = LONG_MEMORY * product + (1 - LONG_MEMORY) * RIDGE + terms * seen / pace
        scale[:] = np.linalg.solve(square, product)
        low = scale < LEAST
        scale[low] = LEAST
        if low.any() and not low.all():
            other = int(np.argmin(low))
            scale[other] = max(LEAST, (product[other] - square[0, 1] * LEAST) / square[other, other])
        cost.learn(seconds, 1, pixels)
    assert cost.predict(1, 0) == pytest.approx(pace * guess[0] * scale[0], rel=1e-6)
    assert cost.predict(0, 1) == pytest.approx(pace * guess[1] * scale[1], rel=1e-6)
