"""The paths of the contract, and nothing else: each route is a few lines that hand over to a room."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.errors import DeadlineExceeded, UnknownModel, UnsupportedMedia
from server.http.body import read_body
from server.http.envelope import Record
from server.http.gate import Gate
from server.metrics import Metrics
from server.parameters import Parameters, parse_parameters
from server.pipeline import Pipeline, Result
from server.repository import Repository, Served

T = TypeVar("T")

NOT_YET = ("multipart/", "application/json")


@dataclass(frozen=True, slots=True)
class Context:
    """What the routes need."""

    repository: Repository
    pipeline: Pipeline
    metrics: Metrics
    gate: Gate
    max_body_bytes: int
    body_timeout_s: float


def create_router(context: Context) -> APIRouter:
    router = APIRouter()
    documented: dict[str, Any] = {
        "openapi_extra": {
            "parameters": _query_documentation(),
            "requestBody": {
                "required": True,
                "description": "the picture's bytes: JPEG, PNG, WebP, BMP, TIFF or GIF",
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            },
        }
    }

    @router.post("/v1/segment", **documented)
    async def segment_default(request: Request) -> Response:
        """Segment one image with the only (or the default) model."""
        return await _segment(context, request, None, None)

    @router.post("/v1/models/{model}/segment", **documented)
    async def segment_model(request: Request, model: str) -> Response:
        """Segment one image with the highest ready version of a model."""
        return await _segment(context, request, model, None)

    @router.post("/v1/models/{model}/versions/{version}/segment", **documented)
    async def segment_version(request: Request, model: str, version: str) -> Response:
        """Segment one image with one version of a model."""
        return await _segment(context, request, model, version)

    @router.get("/v1/models")
    async def models() -> Response:
        """What is loaded, with state, defaults and manifest."""
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
        """200 while the process can answer at all."""
        return _json({"live": True})

    @router.get("/readyz")
    async def readyz() -> Response:
        """200 when every model has reproduced its golden sample and the server is not shutting down."""
        states = {f"{model.name}/{model.version}": model for model in context.repository.models}
        ready = not context.gate.draining and all(model.state == "ready" for model in states.values())
        content = {
            "ready": ready,
            "draining": context.gate.draining,
            "models": {key: {"state": model.state, "reason": model.reason} for key, model in states.items()},
        }
        return _json(content, 200 if ready else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        """Prometheus."""
        return Response(context.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


async def _segment(context: Context, request: Request, name: str | None, version: str | None) -> Response:
    record: Record = request.scope["record"]
    model = context.repository.pick(name, version)
    record.model, record.version = model.key
    parameters = parse_parameters(request.query_params.multi_items())
    media = request.headers.get("content-type", "").lower()
    if media.startswith(NOT_YET):
        raise UnsupportedMedia(f"'{media[:80]}' bodies are not taken; send the picture's bytes as they are")
    deadline = None if parameters.timeout_ms is None else record.stages.began + parameters.timeout_ms / 1000
    try:
        async with asyncio.timeout(None if deadline is None else deadline - record.stages.clock()):
            result = await _answer(context, request, model, parameters, deadline)
    except TimeoutError:
        raise DeadlineExceeded(f"no answer within timeout_ms={parameters.timeout_ms:g}", retry_after_s=0.0) from None
    record.pixels, record.instances = result.pixels, result.instances
    timing = f"{record.stages.server_timing()}, encode;dur={record.stages.since_mark() * 1000:.3f}"
    return Response(result.body, media_type="application/json", headers={"server-timing": timing})


async def _answer(
    context: Context, request: Request, model: Served, parameters: Parameters, deadline: float | None
) -> Result:
    """Through the gate, the body off the wire, down the line."""
    record: Record = request.scope["record"]
    with context.gate.enter():
        _, scheduler = model.ready()
        scheduler.check_admission()
        payload = await read_body(request.scope, request.receive, context.max_body_bytes, context.body_timeout_s)
        record.stages.mark("receive")
        work = context.pipeline.segment(model, payload, parameters, record.stages, deadline)
        return await _unless_client_goes(work, request.receive)


async def _unless_client_goes(work: Awaitable[T], receive: Receive) -> T:
    """Wait for `work`, but drop it when the client hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _describe(model: Served) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": model.name,
        "version": str(model.version),
        "state": model.state,
        "reason": model.reason,
    }
    if model.loaded is not None:
        manifest = model.loaded.bundle.manifest
        content |= {
            "engine": model.loaded.engine.name,
            "defaults": manifest.defaults.model_dump(),
            "manifest": manifest.model_dump(mode="json"),
        }
    return content


def _query_documentation() -> list[dict[str, Any]]:
    """The query parameters in OpenAPI's words, from their declaration."""
    properties = Parameters.model_json_schema()["properties"]
    documentation = []
    for name, schema in properties.items():
        options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
        documentation.append({"name": name, "in": "query", "description": schema["description"], "schema": options[0]})
    return documentation
