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
from server.http.access import CLIENT_GONE, Record, RequestLog, segmentation
from server.http.counting import Counting
from server.http.entrance import Entrance
from server.http.problems import problem
from server.http.reply import Reply
from server.metrics import Metrics

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")

LINGER_S = 1.0  # how long the rest of a refused body is read and dropped


class Envelope:
    """
    Args:
        app: answers what is not refused.
        entrance: refuses.
    """

    def __init__(self, app: ASGIApp, entrance: Entrance, metrics: Metrics, requests: RequestLog) -> None:
        self._app = app
        self._entrance = entrance
        self._counting = Counting(metrics)
        self._requests = requests

    def refusal(self, scope: Scope) -> Reply | None:
        """The answer to a request that is refused before its body is read, counted and logged as any other.

        None where the application is to answer; its scope then has a `record`. So has that of a request after whose
        refusal the connection ends: the application reads on for a moment before it does.
        """
        record = scope["record"] = Record(_request_id(scope))
        record.route, target = segmentation(scope["path"])
        try:
            self._entrance.check(scope, target)
        except Exception as error:
            reply = _refused(error, record)
            if _ends(reply):
                scope["refused"] = error
                return None
            record.status, record.response_bytes = reply.status, len(reply.body)
            self._count(record)
            self._log(record, scope)
            return Reply(reply.status, [*reply.headers, _marked(record)], reply.body)
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if "record" not in scope:  # the connection has not asked
            refusal = self.refusal(scope)
            if refusal is not None:
                await refusal.send(send)
                return
        record: Record = scope["record"]
        lingers = counted = False

        def count() -> None:
            """Before the last byte leaves: whoever has an answer finds it in the metrics, in those of any process."""
            nonlocal counted
            if not counted:
                counted = True
                self._count(record)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), _marked(record)]
            elif message["type"] == "http.response.body":
                record.response_bytes += len(message.get("body", b""))
                if lingers or not message.get("more_body", False):
                    count()
            await send(message)

        try:
            if "refused" in scope:
                raise scope.pop("refused")
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            record.status = CLIENT_GONE
        except Exception as error:
            if record.status:  # too late to say anything else; the connection is dropped
                record.error = error
                raise
            reply = _refused(error, record)
            lingers = _ends(reply)
            await reply.send(send_marked, more_body=lingers)
        finally:
            count()
            self._log(record, scope)
        if lingers:
            await _discard_body(receive)
            await send({"type": "http.response.body", "body": b""})

    def _count(self, record: Record) -> None:
        """Close its stages; only segmentations have metrics."""
        if record.route is not None:
            self._counting.count(record)
        else:
            record.stages.close()

    def _log(self, record: Record, scope: Scope) -> None:
        self._requests.write(record, scope["method"])
        record.error = None  # its traceback holds frames that hold the record, and pictures


def _refused(error: Exception, record: Record) -> Reply:
    """The answer to an error, and the record told of it."""
    known = error if isinstance(error, RequestError | ServiceError) else Internal("this is a bug in the server")
    if known.status == 500:
        record.error = error
    record.failed = [known.code]
    return problem(known, record.request_id)


def _ends(reply: Reply) -> bool:
    """Whether the connection does with it."""
    return (b"connection", b"close") in reply.headers


def _marked(record: Record) -> tuple[bytes, bytes]:
    """The header that every answer has."""
    return b"x-request-id", record.request_id.encode()


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
