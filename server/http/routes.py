"""The paths of the contract but those of segmentation (`server.http.junction`): a few lines each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Response

from server.errors import UnknownModel
from server.http.gate import Gate
from server.metrics import Metrics
from server.repository import Repository, Served


@dataclass(frozen=True, slots=True)
class Context:
    """What the routes need."""

    repository: Repository
    metrics: Metrics
    gate: Gate
    is_sound: Callable[[], bool]  # whether this process can ever do its work again


def create_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> Response:
        """What is loaded, with state, defaults and manifest; `engine` says what runs it, and `engine_note` why that is
        not a better one, where there might have been one."""
        return _json({"models": [_describe(model) for model in context.repository.models]})

    @router.get("/v1/models/{model}")
    async def model_versions(model: str) -> Response:
        """All versions of one model."""
        versions = [_describe(served) for served in context.repository.models if served.name == model]
        if not versions:
            raise UnknownModel(f"no such model; served are {', '.join(context.repository.names)}")
        return _json({"models": versions})

    @router.get("/livez")
    async def livez() -> Response:
        """200 while the process can do its work; 503 once an engine of its own hangs, or its device failed: only a new
        process cures that."""
        return _json({"live": context.is_sound()}, 200 if context.is_sound() else 503)

    @router.get("/readyz")
    async def readyz() -> Response:
        """200 when every model has reproduced its golden sample and the server is not shutting down."""
        states = {f"{model.name}/{model.version}": model for model in context.repository.models}
        ready = not context.gate.draining and all(model.condition.state == "ready" for model in states.values())
        content = {
            "ready": ready,
            "draining": context.gate.draining,
            "models": {
                key: {"state": model.condition.state, "reason": model.condition.reason} for key, model in states.items()
            },
        }
        return _json(content, 200 if ready else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        """Prometheus."""
        return Response(context.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _describe(model: Served) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": model.name,
        "version": str(model.version),
        "state": model.condition.state,
        "reason": model.condition.reason,
    }
    if model.manifest is not None and model.condition.engine:
        content |= {
            "engine": model.condition.engine,
            "engine_note": model.condition.note,
            "defaults": model.manifest.defaults.model_dump(),
            "manifest": model.manifest.model_dump(mode="json"),
        }
    return content
