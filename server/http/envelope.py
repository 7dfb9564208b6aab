"""The outermost layer of the application: a request id, a clock, one way to answer errors, and the counting.

Pure ASGI: middleware built on `BaseHTTPMiddleware` hides disconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Internal, RequestError, ServiceError
from server.http.problems import problem
from server.metrics import Metrics
from server.stages import Stages

log = logging.getLogger("maskserve")

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
SEGMENT_PATH = re.compile(r"/v1/(models/[^/]*/(versions/[^/]*/)?)?segment")

CLIENT_GONE = 499  # never sent: how a request is counted whose client hung up (nginx's number)

REJECTIONS = frozenset(("overloaded", "not_ready", "draining", "deadline_exceeded", "rate_limited"))
LINGER_S = 1.0  # how long the rest of a refused body is read and dropped


@dataclass(slots=True)
class Record:
    """What is known of one request; routes fill it in, the envelope counts it."""

    request_id: str
    stages: Stages = field(default_factory=Stages)
    model: str = ""
    version: str = ""
    status: int = 0
    failed: list[str] = field(default_factory=list)  # codes: of the request, or of some of its pictures
    response_bytes: int = 0
    images: list[tuple[int, int]] = field(default_factory=list)  # (pixels, instances) of every picture answered


class Envelope:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(_request_id(scope))
        scope["record"] = record

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.request_id.encode())]
            elif message["type"] == "http.response.body":
                record.response_bytes += len(message.get("body", b""))
            await send(message)

        lingers = False
        try:
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            record.status = CLIENT_GONE
        except Exception as error:
            if record.status:  # too late to say anything else; the connection is dropped
                raise
            known = error if isinstance(error, RequestError | ServiceError) else Internal("this is a bug in the server")
            if known.status == 500:
                log.error("request %s failed: %s", record.request_id, known.code, exc_info=error)
            record.failed = [known.code]
            status, headers, body = problem(known, record.request_id)
            lingers = (b"connection", b"close") in headers
            await send_marked({"type": "http.response.start", "status": status, "headers": headers})
            await send_marked({"type": "http.response.body", "body": body, "more_body": lingers})
        finally:
            if SEGMENT_PATH.fullmatch(scope["path"]):
                self._count(record)
        if lingers:
            await _discard_body(receive)
            await send({"type": "http.response.body", "body": b""})

    def _count(self, record: Record) -> None:
        metrics, key = self._metrics, (record.model, record.version)
        metrics.requests.labels(*key, str(record.status)).inc()
        if record.status == CLIENT_GONE:
            metrics.cancelled.labels(*key, record.stages.current).inc()
        for code in record.failed:
            metrics.failures.labels(*key, code).inc()
            if code in REJECTIONS:
                metrics.rejected.labels(*key, code).inc()
        metrics.request_seconds.labels(*key).observe(record.stages.close())
        for stage, seconds in record.stages.seconds.items():
            metrics.stage_seconds.labels(*key, stage).observe(seconds)
        metrics.response_bytes.labels(*key).observe(record.response_bytes)
        for pixels, instances in record.images:
            metrics.images.labels(*key).inc()
            metrics.image_pixels.labels(*key).observe(pixels)
            metrics.instances.labels(*key).observe(instances)


async def _discard_body(receive: Receive) -> None:
    """Read on for a moment before the connection closes: data left unread would reset it, and the answer with it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass


def _request_id(scope: Scope) -> str:
    """The caller's, when it is harmless; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
