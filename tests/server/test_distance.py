"""How far two answers lie apart, as one number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.agreement import GOLDEN_TOLERANCE, golden_tolerance, off
from server.distance import distance

ROWS = {"boxes": "N 4", "scores": "N", "labels": "N", "mask_logits": "N m m"}
PLANES = {"inside": "h w"}


def rows(*found: tuple[float, float, int], unused: int = 1) -> dict[str, Any]:
    """Squares of 10 pixels: (x, score, label) each."""
    count = len(found) + unused
    boxes, scores, labels = np.zeros((1, count, 4)), np.zeros((1, count)), np.zeros((1, count), np.int32)
    for i, (x, score, label) in enumerate(found):
        boxes[0, i], scores[0, i], labels[0, i] = (x, 0, x + 10, 10), score, label
    return {"boxes": boxes, "scores": scores, "labels": labels, "mask_logits": np.full((1, count, 2, 2), 3.0)}


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0.1, 1), st.integers(0, 3)), max_size=5), st.randoms())
def test_the_same_rows_in_any_order_are_equal(found: list[tuple[float, float, int]], random: Any) -> None:
    other = list(found)
    random.shuffle(other)
    assert distance([rows(*found)], [rows(*other)], ROWS) == pytest.approx(0)


def test_a_row_loses_what_its_partner_lacks() -> None:
    wanted = rows((0, 0.8, 0), (100, 0.8, 1))
    assert distance([rows((0, 0.8, 0), (101, 0.8, 1))], [wanted], ROWS) == pytest.approx((1 - 9 / 11) / 2)
    assert distance([rows((0, 0.7, 0), (100, 0.8, 1))], [wanted], ROWS) == pytest.approx(0.1 * 1.5 / 3.1)
    assert distance([rows((0, 0.8, 0))], [wanted], ROWS) == pytest.approx(0.8 / 2.4)
    assert distance([rows((0, 0.8, 1), (100, 0.8, 0))], [wanted], ROWS) == 1  # labels changed places
    assert distance([rows()], [rows()], ROWS) == 0
    assert distance([rows((0, 0.5, 0))], [rows()], ROWS) == 1


def test_another_mask_counts_as_another_box_does() -> None:
    wanted, found = rows((0, 0.8, 0)), rows((0, 0.8, 0))
    found["mask_logits"] = -found["mask_logits"]
    assert distance([found], [wanted], ROWS) == pytest.approx(np.tanh(1.5))


def test_planes_are_compared_by_error_over_deviation() -> None:
    plane = np.random.default_rng(0).standard_normal((2, 8, 8))
    assert distance([{"inside": plane}], [{"inside": plane}], PLANES) == 0
    assert distance([{"inside": plane * 1.1}], [{"inside": plane}], PLANES) == pytest.approx(0.1, abs=0.01)
    assert distance([{"inside": plane * 0}], [{"inside": plane}], PLANES) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_infinitely_far(value: float) -> None:
    assert distance([{"inside": np.full((1, 2, 2), value)}], [{"inside": np.ones((1, 2, 2))}], PLANES) == np.inf


def test_fp32_is_held_by_its_largest_error_and_fewer_bits_by_distance() -> None:
    plane = np.random.default_rng(0).standard_normal((1, 8, 8))
    found = plane.copy()
    found[0, 0, 0] += 0.5
    assert off({"inside": found}, {"inside": plane}, PLANES, "fp32")[0] == pytest.approx(0.5)
    assert off({"inside": found}, {"inside": plane}, PLANES, "int8")[0] == pytest.approx(0.0625 / plane.std())
    assert off({"inside": found[:, :4]}, {"inside": plane}, PLANES, "int8")[0] == np.inf


def test_every_engine_has_a_tolerance_in_every_precision() -> None:
    told = [golden_tolerance(precision) for precision in ("fp32", "fp16", "int8")]
    assert [len(each) for each in told] == [4, 4, 4]
    assert set().union(*told) == set(GOLDEN_TOLERANCE)
