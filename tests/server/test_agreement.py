"""Answers are compared as sets of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.agreement import allowed, apart, in_units, largest_errors
from server.masks import RoiMasks

LEGEND = RoiMasks.legend
N = 6


def answer(used: int = 4) -> dict[str, np.ndarray]:
    """One image with `used` objects far from each other, best first."""
    rng = np.random.default_rng(0)
    scores = np.where(np.arange(N) < used, 0.9 - 0.1 * np.arange(N), -1.0)
    corners = 100.0 * np.arange(N)[:, None] + np.array([0.0, 0.0, 30.0, 40.0])
    return {
        "boxes": corners[None].astype(np.float32),
        "scores": scores[None].astype(np.float32),
        "labels": (np.arange(N) % 3)[None].astype(np.int32),
        "mask_logits": rng.standard_normal((1, N, 4, 4)).astype(np.float32),
    }


@given(st.permutations(range(N)))
def test_the_order_of_rows_makes_no_difference(order: list[int]) -> None:
    wanted = answer()
    found = {name: tensor[:, order] for name, tensor in wanted.items()}
    assert set(largest_errors(found, wanted, LEGEND).values()) == {0.0}
    assert apart(found, wanted, LEGEND).alone == 0


def test_what_unused_rows_say_makes_no_difference() -> None:
    wanted, found = answer(), answer()
    found["boxes"][:, 4:] = 7
    found["mask_logits"][:, 4:] = 1e6
    assert set(largest_errors(found, wanted, LEGEND).values()) == {0.0}


def test_every_output_has_its_own_error_and_unit() -> None:
    wanted, found = answer(), answer()
    found["boxes"][0, 1, 2] += 0.004
    found["mask_logits"][0, 2, 0, 0] += 0.003
    errors = largest_errors(found, wanted, LEGEND)
    assert errors["boxes"] == pytest.approx(0.004, rel=1e-2)
    assert errors["mask_logits"] == pytest.approx(0.003, rel=1e-2)
    assert errors["scores"] == errors["labels"] == 0
    worst, share = in_units(errors)
    assert worst == "mask_logits"
    assert allowed(worst, share) == pytest.approx(errors[worst])


def test_a_row_without_a_partner_is_a_large_error_or_is_counted() -> None:
    wanted, found = answer(), answer()
    found["boxes"][0, 3] += 50.0
    assert largest_errors(found, wanted, LEGEND)["boxes"] == 50
    result = apart(found, wanted, LEGEND)
    assert (result.rows, result.alone) == (4, 1)
    assert result.errors["boxes"] == 0
    found["scores"][0, 3] = -1.0  # and one that only one side answers at all
    assert apart(found, wanted, LEGEND).alone == 1
    assert largest_errors(found, wanted, LEGEND)["scores"] > 0.5


def test_another_label_is_another_object() -> None:
    wanted, found = answer(), answer()
    found["labels"][0, 0] += 1
    assert apart(found, wanted, LEGEND).alone == 1
    assert largest_errors(found, wanted, LEGEND)["labels"] == 1


def test_no_objects_on_either_side_agree() -> None:
    assert set(largest_errors(answer(0), answer(0), LEGEND).values()) == {0.0}
    assert apart(answer(0), answer(0), LEGEND).rows == 0


def test_other_shapes_names_and_numbers_that_are_not_finite_never_agree() -> None:
    wanted = answer()
    shorter = {name: tensor[:, :-1] for name, tensor in wanted.items()}
    assert largest_errors(shorter, wanted, LEGEND)["boxes"] == np.inf
    assert largest_errors({"boxes": wanted["boxes"]}, wanted, LEGEND)["scores"] == np.inf
    found = answer()
    found["mask_logits"][0, 0, 0, 0] = np.nan
    assert largest_errors(found, wanted, LEGEND)["mask_logits"] == np.inf
    found = answer()
    found["boxes"][0, 0, 0] = np.nan
    assert in_units(largest_errors(found, wanted, LEGEND))[1] == np.inf


def test_planes_are_compared_as_they_are() -> None:
    wanted = {"inside": np.zeros((1, 4, 4), np.float32)}
    found = {"inside": np.full((1, 4, 4), 0.25, np.float32)}
    assert largest_errors(found, wanted, {"inside": "h w"}) == {"inside": 0.25}
