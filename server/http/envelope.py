"""The outermost layer of the application: a request id, a clock, one way to answer errors, counting and logging.

Pure ASGI: middleware built on `BaseHTTPMiddleware` hides disconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Internal, RequestError, ServiceError
from server.http.access import CLIENT_GONE, Record, RequestLog, segment_route
from server.http.counting import Counting
from server.http.problems import problem
from server.metrics import Metrics

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")

LINGER_S = 1.0  # how long the rest of a refused body is read and dropped


class Envelope:
    def __init__(self, app: ASGIApp, metrics: Metrics, requests: RequestLog) -> None:
        self._app = app
        self._counting = Counting(metrics)
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(_request_id(scope))
        scope["record"] = record
        route = segment_route(scope["path"])
        lingers = counted = False

        def count() -> None:
            """Before the last byte leaves: whoever has an answer finds it in the metrics, in those of any process."""
            nonlocal counted
            if not counted:
                counted = True
                if route is not None:
                    self._counting.count(record)
                else:
                    record.stages.close()

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.request_id.encode())]
            elif message["type"] == "http.response.body":
                record.response_bytes += len(message.get("body", b""))
                if lingers or not message.get("more_body", False):
                    count()
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            record.status = CLIENT_GONE
        except Exception as error:
            if record.status:  # too late to say anything else; the connection is dropped
                record.error = error
                raise
            known = error if isinstance(error, RequestError | ServiceError) else Internal("this is a bug in the server")
            if known.status == 500:
                record.error = error
            record.failed = [known.code]
            reply = problem(known, record.request_id)
            lingers = (b"connection", b"close") in reply.headers
            await reply.send(send_marked, more_body=lingers)
        finally:
            count()
            self._requests.write(record, scope["method"], route)
            record.error = None  # its traceback holds frames that hold the record, and pictures
        if lingers:
            await _discard_body(receive)
            await send({"type": "http.response.body", "body": b""})


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
    return f"{random.getrandbits(128):032x}"  # to be told apart, not to be kept secret
