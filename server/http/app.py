"""`create_app`: the rooms wired together, loaded in the background, closed in order.

Shutting down is a numbered story:

    1. the gate closes: /readyz says no, new requests get 503 draining
    2. uvicorn stops accepting and waits for the requests inside, with a limit
    3. every scheduler has what waits run, then the loader is joined and the engines are closed
    4. the workers are joined
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.cores import usable_cores
from server.errors import BadRequest, MethodNotAllowed, NotFound
from server.hosting import Hosting, Load
from server.http.access import RequestLog
from server.http.application import Application
from server.http.documentation import create_documentation_router, document_segmentation
from server.http.entrance import Entrance
from server.http.envelope import Envelope
from server.http.gate import Gate
from server.http.junction import Junction
from server.http.keys import Bucket, Guard, OwnBucket, read_keys
from server.http.playground import create_playground_router
from server.http.routes import Context, create_router
from server.http.segmenting import Limits, Segmenting
from server.loading import load
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.repository import Repository, find_models
from server.settings import Settings
from server.watchdog import LoopWatch
from server.workers import Workers

log = logging.getLogger("maskserve")


class Backend(Protocol):
    """What fills a repository's models with life: `Hosting`, or the way to the engine process."""

    broken: bool  # an engine of this process hangs, or its device failed: only another process cures that

    async def start(self) -> None:
        """On the event loop, before the first request."""

    async def close(self, limit_s: float) -> None:
        """After the last one."""


def create_app(settings: Settings, load: Load = load, *, on_settled: Callable[[], None] = lambda: None) -> Application:
    """The whole server in one process.

    Args:
        load: from a bundle's folder and what is wanted of engines to a proven one.
        on_settled: called on the event loop when every model is ready, or has failed.

    Raises:
        BadManifest: there is no bundle to serve.
        BadKeys: the file of keys cannot be used.
    """
    repository = Repository(find_models(settings.bundles), settings.default_model)
    log.info("found %s in %s", ", ".join("/".join(model.key) for model in repository.models), settings.bundles)
    metrics = Metrics()
    workers = Workers(settings.threads or usable_cores())
    hosting = Hosting(settings, repository, metrics, load, workers=workers, on_settled=on_settled)
    return assemble(settings, repository, metrics, Gate(settings.queue_limit), hosting, workers)


def assemble(
    settings: Settings,
    repository: Repository,
    metrics: Metrics,
    gate: Gate,
    backend: Backend,
    workers: Workers,
    *,
    bucket: Callable[[int], Bucket] = lambda number: OwnBucket(),
) -> Application:
    """HTTP before a repository whose models `backend` makes ready.

    Args:
        workers: decode and make masks; closed with the application.
        bucket: for the quota of the nth key.

    Raises:
        BadKeys: the file of keys cannot be used.
    """
    pipeline = Pipeline(workers, int(settings.max_megapixels * 1e6), settings.max_wait_ms / 1000)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watch = LoopWatch(metrics.event_loop_lag.observe)
        await backend.start()
        yield
        gate.draining = True
        await backend.close(settings.drain_s)
        workers.close(0.0 if backend.broken else settings.drain_s)
        watch.close()

    app = FastAPI(title="maskserve", version="0.1.0", docs_url=None, redoc_url=None, lifespan=lifespan)
    limits = Limits(
        max_body_bytes=int(settings.max_body_mb * 1e6),
        body_timeout_s=settings.body_timeout_s,
        max_images=settings.max_images,
        max_response_bytes=int(settings.max_response_mb * 1e6),
    )
    segmenting = Segmenting(repository, pipeline, gate, limits)
    app.include_router(create_router(Context(repository, metrics, gate, lambda: not backend.broken)))
    app.include_router(create_documentation_router())
    app.include_router(create_playground_router())
    document_segmentation(app)
    app.add_exception_handler(HTTPException, _router_error)
    app.add_exception_handler(Exception, _hand_on)
    app.state.gate, app.state.backend = gate, backend
    guard = None if settings.keys is None else Guard(read_keys(settings.keys), bucket=bucket)
    entrance = Entrance(guard, segmenting)
    return Application(Envelope(Junction(app, segmenting), entrance, metrics, RequestLog(settings.log_share)), app)


async def _router_error(request: Request, error: Exception) -> Response:
    """The framework's own refusals in our words."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        raise NotFound("no such path; POST a picture to /v1/segment, see /openapi.json")
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        raise MethodNotAllowed(f"{request.method} is not for this path; allowed: {allow}", allow)
    raise BadRequest("the request cannot be read")


async def _hand_on(request: Request, error: Exception) -> Response:
    """The envelope around the framework answers, whatever it is."""
    raise error
