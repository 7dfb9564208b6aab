"""Small HTTP clients for servers in containers."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, path: str, body: bytes | None = None, timeout_s: float = 60.0) -> tuple[int, bytes]:
    """The status and body of one request on a connection of its own; POST where there is a body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def ask_json(port: int, path: str, body: bytes | None = None) -> Any:
    status, answer = ask(port, path, body)
    assert status == 200, (path, status, answer[:500])
    return json.loads(answer)


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200 now."""
    try:
        return ask(port, path, timeout_s=2.0)[0] == 200
    except (OSError, http.client.HTTPException):
        return False
