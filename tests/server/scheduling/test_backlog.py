"""What has been let in, added up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.scheduling import Backlog


def test_the_wait_is_what_is_left_over_the_workers() -> None:
    backlog = Backlog(2)
    with backlog.enter(0.3, 0) as first, backlog.enter(0.1, 0):
        assert backlog.wait_s(0) == pytest.approx(0.2)
        first.expects(0.1)
        assert backlog.wait_s(0) == pytest.approx(0.1)
    assert backlog.wait_s(0) == 0.0


def test_only_what_goes_before_is_waited_for() -> None:
    now = [0.0]
    backlog = Backlog(1, lambda: now[0])
    with backlog.enter(0.5, 0), backlog.enter(0.3, 2):
        now[0] = 0.9
        assert [backlog.wait_s(priority) for priority in (0, 1, 2, 3)] == pytest.approx([0.8, 0.3, 0.3, 0.0])
        now[0] = 1.0  # a second makes up for a step
        assert [backlog.wait_s(priority) for priority in (0, 1, 2, 3)] == pytest.approx([0.8, 0.8, 0.3, 0.3])


def test_while_a_worker_is_idle_there_is_no_wait() -> None:
    backlog = Backlog(2)
    with backlog.enter(100.0, 0):
        assert backlog.idle
        assert backlog.wait_s(0) == 0.0


@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.0, 10.0)), max_size=20))
def test_nothing_is_left_when_all_have_gone(steps: list[tuple[float, float]]) -> None:
    backlog = Backlog(1)
    entries = [(backlog.enter(seconds, 0), later) for seconds, later in steps]
    for entry, later in entries:
        entry.expects(later)
    if steps:
        assert backlog.wait_s(0) == pytest.approx(sum(later for _, later in steps))
    for entry, _ in entries:
        entry.__exit__()
    assert backlog.wait_s(0) == 0.0
    assert not backlog.entries
