"""A front's way to a model's scheduler in the engine process, and what it predicts of it.

What waits there is on the board, as the engine process last told. It could not know of what a front still decodes or
has only just sent, and as long as it does not, a crowd that was refused would be let in all at once:

    told   |                        |  told
           a let in    b let in     c asks: a and b come on top of what was told
           a decoded   a sent

Each of those is reckoned with as a picture like those seen lately, and so are as many for every other front, since
connections are spread evenly; but no more than there are requests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from server.priority import urgency
from server.processes.board import Board
from server.processes.client import Link
from server.scheduling import Answer, Picture, check_wait
from server.workers import Rank, Workers

T = TypeVar("T")

TRANSIT_S = 0.001  # from a front until a job is in the queue


@dataclass(eq=False, slots=True)
class _Coming:
    """A picture between admission and its answer."""

    turn: float  # its urgency
    sent_at: float = math.inf


class RemoteBatcher:
    """The `Batcher` of one model in a front.

    Args:
        workers: finish what comes back.
        model: its place in the list of models.
        max_wait_s: as in `Scheduler`: refuse when a job would wait longer.
    """

    def __init__(
        self,
        link: Link,
        board: Board,
        workers: Workers,
        model: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._link = link
        self._workers = workers
        self._row = board.models[model : model + 1]
        self._free_at = board.models["free_at"][model]
        self._inside = board.fronts["inside"]
        self._model = model
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._coming: set[_Coming] = set()

    def predicted_wait_s(self, priority: int) -> float:
        """Seconds until a job that came now would begin; 0 where there is room, and at most one on its way to it."""
        now, free_at = self._clock(), float(self._free_at[priority])
        coming = self._unknown(urgency(now, priority))
        if not free_at:
            return max(0, coming - 1) * float(self._row["image_s"][0])
        return max(0.0, free_at - now) + coming * float(self._row["image_s"][0])

    def _unknown(self, turn: float) -> int:
        """Pictures that go before such an urgency and that the engine process could not know of when it told."""
        known = float(self._row["told_at"][0]) - TRANSIT_S
        ours = sum([coming.sent_at > known and coming.turn <= turn for coming in self._coming])
        requests: int = sum(self._inside.tolist())
        return max(ours, min(ours * len(self._inside), requests))

    def check_admission(self, priority: int = 0) -> None:
        _ = self._link.connection
        check_wait(self.predicted_wait_s(priority), self._max_wait_s)

    def worker_seconds(self, pixels: float) -> float:
        """Nothing: the engine process has workers of its own."""
        return 0.0

    async def submit(
        self,
        picture: Picture | Callable[[], Picture],
        finish: Callable[[Answer], T],
        deadline: float | None = None,
        priority: int = 0,
    ) -> T:
        coming = _Coming(urgency(self._clock(), priority))
        self._coming.add(coming)
        try:
            if not isinstance(picture, Picture):
                picture = await self._workers.run(Rank.DECODE, picture)
            coming.sent_at = self._clock()
            answer = await self._link.connection.run(self._model, picture, deadline, priority)
        finally:
            self._coming.discard(coming)
        return await self._workers.run(Rank.MASKS, finish, answer)

    async def close(self, limit_s: float) -> None:
        """Nothing: the connection is the link's, the queue the engine process's."""
