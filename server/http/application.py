"""What uvicorn is given: our own layers, with the framework as the innermost of them."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send


class Application:
    """ASGI.

    Args:
        layers: what a request passes, the outermost.
        framework: the innermost of them; it keeps the state.
    """

    def __init__(self, layers: ASGIApp, framework: FastAPI) -> None:
        self._layers = layers
        self.state: State = framework.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._layers(scope, receive, send)
