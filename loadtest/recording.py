"""What happened to every request of a run: plain arrays, one row per request, nothing summed up or thrown away.

Percentiles are then exact. A row is 38 bytes, so the default bound of 200 000 requests takes 8 MB.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PENDING = -1  # not answered when the run ended
GOOD = 0
MAX_KINDS = 100


class Recording:
    """
    Times are seconds from the start of the run; `outcome` is a position in `kinds`, of which the first is 'ok'.

    Args:
        capacity: requests at most.
    """

    def __init__(self, capacity: int) -> None:
        self._due = np.zeros(capacity)
        self._sent = np.zeros(capacity)
        self._done = np.full(capacity, np.nan)
        self._outcome = np.full(capacity, PENDING, np.int16)
        self._answer_bytes = np.zeros(capacity, np.int64)
        self.kinds: list[str] = ["ok"]
        self.statuses: dict[str, int] = {}  # kind -> HTTP status, 0 for what never became an answer
        self.details: dict[str, str] = {}  # kind -> the first explanation that came
        self.count = 0  # rows in use
        self.full = False  # requests were due that found no room
        self.cut_at_s: float | None = None  # when the run was stopped before its end

    @property
    def capacity(self) -> int:
        return len(self._due)

    def begin(self, due: float) -> int:
        """A row for a request that is due; its number."""
        row = self.count
        self._due[row] = due
        self.count += 1
        return row

    def end(self, row: int, sent: float, done: float, kind: str, status: int, size: int, why: str) -> None:
        if kind not in self.kinds:
            if len(self.kinds) >= MAX_KINDS:  # a server that makes up codes
                kind = self.kinds[-1]
            else:
                self.kinds.append(kind)
                self.statuses[kind] = status
                self.details[kind] = why
        self._sent[row], self._done[row] = sent, done
        self._answer_bytes[row] = size
        self._outcome[row] = self.kinds.index(kind)

    def correct(self, row: int, kind: str, why: str) -> None:
        """A second look has found the answer wrong."""
        self.end(row, self._sent[row], self._done[row], kind, 200, int(self._answer_bytes[row]), why)

    # the rows in use

    @property
    def due(self) -> npt.NDArray[np.float64]:
        return self._due[: self.count]

    @property
    def sent(self) -> npt.NDArray[np.float64]:
        return self._sent[: self.count]

    @property
    def done(self) -> npt.NDArray[np.float64]:
        return self._done[: self.count]

    @property
    def outcome(self) -> npt.NDArray[np.int16]:
        return self._outcome[: self.count]

    @property
    def answer_bytes(self) -> npt.NDArray[np.int64]:
        return self._answer_bytes[: self.count]
