"""What a request is refused for before its body is read: its key, its quota, what it names and asks, too many others.

All of it is known once the headers are there, and nothing has to be waited for. So a refusal needs no task and no turn
of the event loop: the connection asks while it parses (`server.http.protocol`).
"""

from __future__ import annotations

from starlette.types import Scope

from server.errors import MethodNotAllowed
from server.http.access import Record, Target
from server.http.keys import Guard
from server.http.segmenting import Segmenting


class Entrance:
    """
    Args:
        guard: None where there are no keys.
    """

    def __init__(self, guard: Guard | None, segmenting: Segmenting) -> None:
        self._guard = guard
        self._segmenting = segmenting

    def check(self, scope: Scope, target: Target | None) -> None:
        """Put what a segmentation asks for into the scope, as `asked`.

        Args:
            target: None where the request is no segmentation.

        Raises:
            RequestError, ServiceError: it is refused.
        """
        if self._guard is not None:
            self._guard.check(scope)
        if target is not None:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{scope['method']} is not for this path; allowed: POST", "POST")
            record: Record = scope["record"]
            scope["asked"] = self._segmenting.ask(scope, record, target)
