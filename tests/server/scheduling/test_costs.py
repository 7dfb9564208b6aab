"""Costs that are learned: they find what is true, and are not thrown by what is odd."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.scheduling import Cost, Mean
from server.scheduling.costs import LEAST, MEMORY, RIDGE, SURPRISE


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


def test_a_machine_that_becomes_slower_is_believed_soon() -> None:
    cost = Cost(1e-4, 1e-8)
    for _ in range(50):
        cost.learn(0.010, 1, 65_536)
    for _ in range(60):
        cost.learn(0.020, 1, 65_536)
    assert 0.018 < cost.predict(1, 65_536) < 0.021


def test_one_odd_measurement_changes_little() -> None:
    cost = Cost(1e-4, 1e-8)
    for _ in range(50):
        cost.learn(0.010, 1, 65_536)
    cost.learn(60.0, 1, 65_536)  # the machine slept
    assert cost.predict(1, 65_536) < 0.011  # relative errors: to be short by two thirds is no great error


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
    for number, (seconds, pixels) in enumerate(measurements):
        terms = guess * (1, pixels)
        if number:
            seconds = min(seconds, SURPRISE * float(terms @ scale))
        terms = terms / seconds
        square = MEMORY * square + (1 - MEMORY) * RIDGE * np.eye(2) + np.outer(terms, terms)
        product = MEMORY * product + (1 - MEMORY) * RIDGE + terms
        scale[:] = np.linalg.solve(square, product)
        low = scale < LEAST
        scale[low] = LEAST
        if low.any() and not low.all():
            other = int(np.argmin(low))
            scale[other] = max(LEAST, (product[other] - square[0, 1] * LEAST) / square[other, other])
        cost.learn(seconds, 1, pixels)
    assert cost.predict(1, 0) == pytest.approx(guess[0] * scale[0], rel=1e-6)
    assert cost.predict(0, 1) == pytest.approx(guess[1] * scale[1], rel=1e-6)
