"""What runs are predicted to take, and how large a batch is worth it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.scheduling import Waiting
from server.scheduling.predictions import OFTEN, Predictions
from server.scheduling.running import Ran

PIXELS = 100


def ran(images: int, seconds: float, alone: bool = False) -> Ran:
    """A run of `images`, as it is told."""
    work: Any = None
    return Ran([Waiting(work, (), PIXELS, 0.0)] * images, alone, 5.0, 5.0 + seconds)


def test_batches_grow_by_doubling_to_where_a_larger_one_is_no_cheaper() -> None:
    predictions = Predictions(0.01, 0.001 / PIXELS, max_batch=64, slots=1, tried=1)  # ten images' time for every run
    worth = []
    for _ in range(8):
        worth.append(predictions.worth(PIXELS))
        for _ in range(OFTEN):
            assert predictions.worth(PIXELS) == worth[-1]
            predictions.learn(ran(worth[-1], 0.01 + 0.001 * worth[-1]))
    assert worth == [2, 4, 8, 16, 32, 64, 64, 64]


@given(st.integers(0, 2**32))
def test_a_first_guess_that_was_too_high_is_found_out_by_pairs(seed: int) -> None:
    rng = random.Random(seed)
    predictions = Predictions(0.016, 0.029 / PIXELS, max_batch=64, slots=1, tried=1)  # measured beside somebody else
    largest = 0
    for _ in range(200):
        images = rng.choice([1, predictions.worth(PIXELS)])
        largest = max(largest, images)
        predictions.learn(ran(images, 0.037 * images * rng.lognormvariate(0, 0.1)))
    assert largest <= 4
    assert predictions.worth(PIXELS) <= 2


def test_the_wait_is_what_runs_and_what_waits_over_the_slots() -> None:
    predictions = Predictions(0.001, 0.1 / PIXELS, max_batch=1, slots=2, tried=1)
    running = [ran(1, 0.0), ran(1, 0.0)]
    assert predictions.wait_s(0, 0, running, 5.05) == pytest.approx(0.051)
    assert predictions.wait_s(4, 4 * PIXELS, running, 5.05) == pytest.approx(0.051 + 2 * 0.101)
    assert predictions.wait_s(0, 0, running, 9.0) == 0.0


def test_what_a_run_takes_alone_is_learned_apart() -> None:
    predictions = Predictions(0.001, 0.1 / PIXELS, max_batch=1, slots=1, tried=1)
    predictions.learn(ran(1, 0.05, alone=True))
    assert predictions.image_seconds(PIXELS, alone=True) == pytest.approx(0.05, rel=0.05)
    assert predictions.image_seconds(PIXELS) == pytest.approx(0.101)
