"""How many requests may be inside at once; the bound on memory for bodies, pictures and answers."""

from __future__ import annotations

from typing import Protocol

from server.errors import Draining, Overloaded


class Tally(Protocol):
    """How many requests are inside."""

    def add(self, change: int) -> None: ...

    def total(self) -> int: ...


class OfThisProcess:
    """A tally where there is one process."""

    def __init__(self) -> None:
        self._inside = 0

    def add(self, change: int) -> None:
        self._inside += change

    def total(self) -> int:
        return self._inside


class Gate:
    """Counts requests in and out: `with gate: ...`. Refuses when full or closed. Used on the event loop only."""

    def __init__(self, limit: int, tally: Tally | None = None) -> None:
        self._limit = limit
        self._tally = tally or OfThisProcess()
        self.draining = False

    def check(self) -> None:
        """
        Raises:
            Draining, Overloaded: nobody is let in now.
        """
        if self.draining:
            raise Draining("the server is shutting down; try another one or come back", retry_after_s=1.0)
        inside = self._tally.total()
        if inside >= self._limit:
            raise Overloaded(f"{inside} requests are inside, the limit (MASKSERVE_QUEUE_LIMIT)", retry_after_s=1.0)

    def __enter__(self) -> None:
        """
        Raises:
            Draining, Overloaded: not let in.
        """
        self.check()
        self._tally.add(1)

    def __exit__(self, *_: object) -> None:
        self._tally.add(-1)
