"""What uvicorn is given: our own layers, with the framework as the innermost of them."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.types import Receive, Scope, Send

from server.http.envelope import Envelope


class Application:
    """ASGI.

    Args:
        envelope: the outermost layer.
        framework: the innermost of them; it keeps the state.
    """

    def __init__(self, envelope: Envelope, framework: FastAPI) -> None:
        self._envelope = envelope
        self.refusal = envelope.refusal
        self.state: State = framework.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._envelope(scope, receive, send)
