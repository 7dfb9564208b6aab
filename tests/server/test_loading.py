"""What a run costs, as it is measured before the first request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.engines import Tensors
from server.loading import measure
from server.scheduling.predictions import GUESS_RUN_S

SAMPLE: Tensors = {"images": np.zeros((1, 10, 10, 3), np.uint8), "sizes": np.array([[10, 10]], np.int32)}


class Timed:
    """An engine on a clock of its own: the first run of a shape takes a second, as on a GPU, later ones what they
    take, and twice that while another process loads."""

    name, slots = "timed", 1

    def __init__(self, run_s: float, image_s: float, crowded_s: float = 0.0, first_s: float | None = 1.0) -> None:
        self.now = 0.0
        self.batches: list[int] = []
        self._first_s = first_s
        self._crowded_s = crowded_s
        self._run_s, self._image_s = run_s, image_s
        self._known: set[tuple[int, ...]] = set()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        shape = inputs["images"].shape
        takes = self._run_s + self._image_s * shape[0]
        if shape not in self._known and self._first_s is not None:
            takes = self._first_s
        self.batches.append(shape[0])
        self.now += takes * 2 if self.now < self._crowded_s else takes
        self._known.add(shape)
        return {}

    run_alone = run

    def give_back(self) -> None:
        pass

    def close(self) -> None:
        pass


def measured(run_s: float, image_s: float, max_batch: int = 8, crowded_s: float = 0.0) -> tuple[float, float]:
    engine = Timed(run_s, image_s, crowded_s)
    return measure(engine, SAMPLE, max_batch, max_batch, lambda: engine.now)


def test_what_a_run_costs_besides_its_pictures_is_found_where_the_first_run_of_a_shape_is_slow() -> None:
    assert measured(0.004, 0.001) == pytest.approx((0.003 / 100, 0.002))  # half of what is saved is believed


@pytest.mark.parametrize("crowded_s", [0.0, 1.0, 4.001, 4.003, 4.010])
def test_a_process_that_loads_beside_does_not_make_batches_look_worthwhile(crowded_s: float) -> None:
    assert measured(0.0, 0.002, crowded_s=crowded_s) == pytest.approx((0.002 / 100, GUESS_RUN_S))


def test_a_measurement_keeps_within_bounds() -> None:
    assert measured(0.0, 0.005) == pytest.approx((0.005 / 100, GUESS_RUN_S))
    assert measured(0.005, 0.0) == pytest.approx((0.00275 / 100, 0.00225))
    assert measured(0.004, 0.001, max_batch=1) == pytest.approx((0.005 / 100, GUESS_RUN_S))


@pytest.mark.parametrize(
    ("image_s", "tried", "batches"),
    [(0.03, 1, [1, 1]), (0.03, 8, [1, 2] * 3), (0.002, 1, [1, 2] * 5)],
    ids=["slow", "slow, and has the memory", "quick"],
)
def test_two_of_a_slow_network_are_not_run_where_they_would_take_memory(
    image_s: float, tried: int, batches: list[int]
) -> None:
    engine = Timed(0.0, image_s, first_s=None)
    assert measure(engine, SAMPLE, 8, tried, lambda: engine.now) == pytest.approx((image_s / 100, GUESS_RUN_S))
    assert engine.batches == batches
