"""When a child may start again, and when nobody tries any more."""

from __future__ import annotations

import signal

import pytest

from server.processes.lives import LONGEST_PAUSE_S, STEADY_S, TRIES, Process, how_ended


def test_pauses_double_up_to_a_limit_and_a_steady_life_begins_anew() -> None:
    process, now, pauses = Process("front 1", 2), 100.0, []
    for _ in range(9):
        process.since = now
        now += 1.0
        pauses.append(process.died(now, worked=True))
        assert process.next_at == now + pauses[-1]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    process.since = now
    assert process.died(now + STEADY_S + 1, worked=True) == 0.1


def test_a_child_that_never_comes_to_work_is_hopeless_in_the_end() -> None:
    process = Process("engine", 1)
    for _ in range(TRIES - 1):
        process.died(0.0, worked=False)
    assert not process.hopeless
    process.died(0.0, worked=True)
    for _ in range(TRIES):
        assert not process.hopeless
        process.died(0.0, worked=False)
    assert process.hopeless


@pytest.mark.parametrize(
    ("code", "words"), [(0, "ended with 0"), (3, "ended with 3"), (-signal.SIGKILL, "was ended by SIGKILL")]
)
def test_how_a_child_ended_is_said_in_words(code: int, words: str) -> None:
    assert how_ended(code) == words
