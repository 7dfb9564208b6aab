"""Who computes goes before who talks: the event loop's thread asks less of the cores than the workers beside it.

What was let in is done by the workers; the event loop lets in, refuses and answers. A crowd that is refused and comes
again at once can keep it busy without end, and would take half of every core from the pictures that were let in. With
`NICENESS` it gets what they leave, and where they leave nothing a quarter: weights of 335 to 1024 (sched(7)).

Not in a front: its event loop carries pictures to the engine, and what an engine waits for goes before all.
"""

from __future__ import annotations

import logging
import os
import sys

log = logging.getLogger("maskserve")

NICENESS = 5  # with 7 some refusals wait for 15 ms, with this for 7: docs/decisions/0016-giving-way.md


def give_way() -> None:
    """For the thread that calls, and those that it starts from now on: call it when all that computes has begun.

    Elsewhere than on Linux nothing is done: there a priority is that of a whole process.
    """
    if sys.platform != "linux":
        return
    try:
        os.nice(NICENESS)
    except OSError as error:  # a sandbox may forbid it
        log.info("the event loop keeps its priority: %s", error.strerror)
