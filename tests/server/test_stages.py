"""The clock of a request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.stages import STAGES, Stages


def ticking(gaps: list[float]) -> Iterator[float]:
    now = 0.0
    yield now
    for gap in gaps:
        now += gap
        yield now


@given(gaps=st.lists(st.floats(0, 10), min_size=1, max_size=len(STAGES) + 1))
def test_stages_add_up_to_the_request_however_far_it_came(gaps: list[float]) -> None:
    stages = Stages(clock=ticking(gaps).__next__)
    for stage in STAGES[: len(gaps) - 1]:
        stages.mark(stage)
    assert stages.close() == pytest.approx(sum(gaps))
    assert sum(stages.seconds.values()) == pytest.approx(sum(gaps))


def test_a_failed_request_charges_the_stage_it_was_in() -> None:
    stages = Stages(clock=iter([0.0, 1.0, 5.0]).__next__)
    stages.mark("receive")
    stages.close()
    assert stages.seconds == {"receive": 1.0, "decode": 4.0}


def test_a_skipped_stage_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="bug"):
        Stages().mark("decode")
