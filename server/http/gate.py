"""How many requests may be inside at once; the bound on memory for bodies, pictures and answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Draining, Overloaded


class Gate:
    """Counts requests in; refuses when full or closed. Used on the event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self.draining = False

    @contextmanager
    def enter(self) -> Iterator[None]:
        """
        Raises:
            Draining, Overloaded: not let in.
        """
        if self.draining:
            raise Draining("the server is shutting down; try another one or come back", retry_after_s=1.0)
        if self._inside >= self._limit:
            raise Overloaded(
                f"{self._inside} requests are inside, the limit (MASKSERVE_QUEUE_LIMIT)", retry_after_s=1.0
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
