"""Many requests, few workers: who runs next, with whom, and who is refused.

Nothing is decided before somebody is free to do it. A worker that becomes free takes from what waits at that moment,
so a batch that has not started keeps growing, and nobody ever waits on purpose:

    arrivals   a  bc   d e
    worker 1   [a    ][d ][...
    worker 2      [b c  ][e ]

`queue.py` holds the order and the choice of a batch, with anything at all as work; `costs.py` learns what a step takes;
`predictions.py` says from that when an engine will be free; `backlog.py` adds up what has been let in; `line.py` is the
queue and the runs under one lock; `running.py` runs a batch, or its halves; `scheduler.py` puts them together.
"""

from __future__ import annotations

from server.scheduling.backlog import Backlog, check_wait
from server.scheduling.costs import Cost, Mean
from server.scheduling.queue import Queue, Waiting
from server.scheduling.running import Answer, Picture, Run
from server.scheduling.scheduler import Observer, Scheduler

__all__ = [
    "Answer",
    "Backlog",
    "Cost",
    "Mean",
    "Observer",
    "Picture",
    "Queue",
    "Run",
    "Scheduler",
    "Waiting",
    "check_wait",
]
