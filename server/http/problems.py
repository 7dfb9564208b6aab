"""Errors as `application/problem+json` (RFC 9457), one shape for all of them.

{"type": "about:blank", "title": "Overloaded", "status": 503, "detail": "620 ms of work wait; ...",
 "code": "overloaded", "request_id": "9f0c...", "retry_after_ms": 120}
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import orjson

from server.errors import MethodNotAllowed, RequestError, ServiceError, Unauthorized
from server.http.reply import Reply

PROBLEM_TYPE = b"application/problem+json"


def problem_content(error: RequestError | ServiceError, request_id: str) -> dict[str, Any]:
    """The members of a problem."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": _title(type(error).__name__),
        "status": error.status,
        "detail": str(error),
        "code": error.code,
        "request_id": request_id,
    }
    if error.status in (429, 503):
        content["retry_after_ms"] = math.ceil(1000 * (getattr(error, "retry_after_s", None) or 0.0))
    return content


@functools.cache
def _title(name: str) -> str:
    """BadImage -> Bad image"""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).capitalize()


def problem(error: RequestError | ServiceError, request_id: str) -> Reply:
    """The answer to an error."""
    content = problem_content(error, request_id)
    headers = [(b"content-type", PROBLEM_TYPE)]
    if "retry_after_ms" in content:
        headers.append((b"retry-after", str(max(1, math.ceil(content["retry_after_ms"] / 1000))).encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
        headers.append((b"www-authenticate", b'Basic realm="maskserve", charset="UTF-8"'))  # a browser asks its user
    if error.code in ("body_too_large", "request_timeout", "draining"):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    body = orjson.dumps(content)
    return Reply(error.status, [*headers, (b"content-length", b"%d" % len(body))], body)
