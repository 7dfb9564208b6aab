"""`create_app`: the rooms wired together, loaded in the background, closed in order.

Shutting down is a numbered story:

    1. the gate closes: /readyz says no, new requests get 503 draining
    2. uvicorn stops accepting and waits for the requests inside, with a limit
    3. every scheduler runs what waits, then joins its thread
    4. the loader and the codec pool are joined, the engines closed
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.cores import usable_cores
from server.errors import BadRequest, MethodNotAllowed, NotFound
from server.http.documentation import create_documentation_router
from server.http.envelope import Envelope
from server.http.gate import Gate
from server.http.keys import Guard, read_keys
from server.http.playground import create_playground_router
from server.http.routes import Context, create_router
from server.http.segmenting import Limits, Segmenting
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.repository import Loaded, Repository, Served, load
from server.scheduling import Observer, Scheduler
from server.settings import Settings

log = logging.getLogger("maskserve")


def create_app(settings: Settings, load: Callable[[Path, int], Loaded] = load) -> FastAPI:
    """
    Args:
        load: from a bundle's folder and a number of threads to a proven engine.

    Raises:
        BadManifest: there is no bundle to serve.
        BadKeys: the file of keys cannot be used.
    """
    repository = Repository(settings.bundles, settings.default_model)
    metrics = Metrics()
    gate = Gate(settings.queue_limit)
    threads = settings.threads or usable_cores()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="codec")
    pipeline = Pipeline(pool, int(settings.max_megapixels * 1e6))

    def start(model: Served, loaded: Loaded) -> None:
        """On the event loop: give a proven model its scheduler."""
        manifest, key = loaded.bundle.manifest, model.key
        depth, wasted = metrics.queue_depth.labels(*key), metrics.wasted_images.labels(*key)
        batch, busy = metrics.batch_size.labels(*key), metrics.engine_busy.labels(*key)

        def ran(size: int, seconds: float) -> None:
            batch.observe(size)
            busy.inc(seconds)

        model.scheduler = Scheduler(
            loaded.engine.run,
            max_batch=min(settings.max_batch or manifest.max_batch, manifest.max_batch),
            max_batch_pixels=int(settings.max_batch_megapixels * 1e6),
            max_queue=settings.queue_limit * settings.max_images,
            max_wait_s=settings.max_wait_ms / 1000,
            pace_s=loaded.pace_s,
            observer=Observer(batch=ran, depth=depth.set, wasted=wasted.inc),
        )
        model.loaded, model.state, model.reason = loaded, "ready", "golden sample reproduced"
        metrics.model_info.labels(*key, manifest.masks.kind, loaded.engine.name, manifest.precision).set(1)
        metrics.model_ready.labels(*key).set(1)
        metrics.queue_limit.labels(*key).set(settings.queue_limit * settings.max_images)
        log.info("model %s/%s is ready on %s with %d threads", *key, loaded.engine.name, threads)

    async def load_all(loader: ThreadPoolExecutor) -> None:
        for model in repository.models:
            metrics.model_ready.labels(*model.key).set(0)
            model.reason = "is being loaded and checked"
            try:
                start(model, await asyncio.get_running_loop().run_in_executor(loader, load, model.folder, threads))
            except Exception as error:
                repository.fail(model, error)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        loading = asyncio.create_task(load_all(loader), name="loading")
        yield
        gate.draining = True
        loading.cancel()
        for model in repository.models:
            if model.scheduler is not None:
                await model.scheduler.close(settings.drain_s)
        loader.shutdown()
        pool.shutdown()
        for model in repository.models:
            if model.loaded is not None:
                model.loaded.engine.close()
            model.state, model.reason = "closed", "the server is shutting down"

    app = FastAPI(title="maskserve", version="0.1.0", docs_url=None, redoc_url=None, lifespan=lifespan)
    limits = Limits(
        max_body_bytes=int(settings.max_body_mb * 1e6),
        body_timeout_s=settings.body_timeout_s,
        max_images=settings.max_images,
        max_response_bytes=int(settings.max_response_mb * 1e6),
    )
    segmenting = Segmenting(repository, pipeline, gate, limits)
    app.include_router(create_router(Context(repository, segmenting, metrics, gate)))
    app.include_router(create_documentation_router())
    app.include_router(create_playground_router())
    if settings.keys is not None:
        app.add_middleware(Guard, keys=read_keys(settings.keys))
    app.add_middleware(Envelope, metrics=metrics)  # last added, outermost
    app.add_exception_handler(HTTPException, _router_error)
    app.state.gate = gate
    return app


async def _router_error(request: Request, error: Exception) -> Response:
    """The framework's own refusals in our words; the envelope answers them."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        raise NotFound("no such path; POST a picture to /v1/segment, see /openapi.json")
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        raise MethodNotAllowed(f"{request.method} is not for this path; allowed: {allow}", allow)
    raise BadRequest("the request cannot be read")
