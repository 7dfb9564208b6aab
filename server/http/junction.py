"""Where requests part: segmentations go straight to their room, all others on to the framework.

    POST /v1/models/nuclei/segment     Segmenting
    GET  /v1/models/nuclei             FastAPI

A framework's way to a function, which matches routes, solves dependencies and serialises what comes back, costs the
event loop more than all else that a request needs of it. Nothing of it is of use to a body that is read by hand and
answered with bytes.
"""

from __future__ import annotations

from starlette.datastructures import URL
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.access import segmentation
from server.http.segmenting import Segmenting


class Junction:
    """ASGI; an envelope around it has put a record into the scope, the entrance what a segmentation asks for.

    Args:
        app: for every path that is no segmentation.
    """

    def __init__(self, app: ASGIApp, segmenting: Segmenting) -> None:
        self._app = app
        self._segmenting = segmenting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if "asked" in scope:
            reply = await self._segmenting.answer(scope, receive, scope["asked"])
            await reply.send(send)
        elif path.endswith("/") and segmentation(path.rstrip("/"))[1] is not None:
            without = URL(scope=dict(scope, path=path.rstrip("/")))
            await RedirectResponse(without)(scope, receive, send)  # as the framework does for its paths
        else:
            await self._app(scope, receive, send)
