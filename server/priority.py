"""Whose turn it is: the oldest goes first, a step of priority is worth a second of waiting, so nobody waits for ever.

    arrived   priority   urgency
    10.0 s        0        10.0     second
    11.5 s        0        11.5     third
    12.0 s        3         9.0     first

Turns in the queue, predicted waits and deadlines all go by it.
"""

from __future__ import annotations

SECOND = 1.0  # of waiting that outweighs one step of priority
PRIORITIES = 10  # 0 to 9


def urgency(since: float, priority: int) -> float:
    """Lower goes first. It does not change while one waits, since everybody ages alike.

    Args:
        since: when it came, seconds on the clock of all that wait.
    """
    return since - priority * SECOND
