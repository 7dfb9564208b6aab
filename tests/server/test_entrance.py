"""What is refused before the body: the same words whether a connection asks or the application does."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from uvicorn.server import ServerState

from server.http.app import create_app
from server.http.application import Application
from server.http.protocol import connection_class
from server.settings import Settings
from tests.server.fakes import FakeLoader
from tests.server.test_http import png, wait_until
from tests.server.test_transport import Remembering

KEY = {"Authorization": "Bearer s3cret", "X-Request-Id": "mine"}


@pytest.fixture
def app(tiny_bundle: Path, tmp_path: Path) -> Iterator[tuple[Application, TestClient]]:
    keys = [{"name": "a", "sha256": hashlib.sha256(b"s3cret").hexdigest(), "may": ["segment", "metrics"]}]
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": keys}))
    wanted = {"bundles": tiny_bundle.parent.parent, "threads": 1, "keys": file, "queue_limit": 1}
    app = create_app(Settings.model_validate(wanted), FakeLoader())
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield app, client


def connected(app: Application) -> tuple[Any, Remembering]:
    config = uvicorn.Config(app, log_config=None, lifespan="off", server_header=False, date_header=False)
    protocol: Any = connection_class(10.0, lambda transport, read: False, app.refusal)(config, ServerState(), {})
    transport = Remembering()
    protocol.connection_made(transport)
    return protocol, transport


def told_at_once(app: Application, method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """What a connection writes within the call that brought a request; nothing where the application is to answer."""

    async def run() -> bytes:
        protocol, transport = connected(app)
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        protocol.data_received("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        written = b"".join(transport.writes)
        for task in protocol.tasks:
            task.cancel()
        return written

    return asyncio.run(run())


CASES = [
    ("POST", "/v1/segment", {}, 401),
    ("GET", "/nothing", {}, 401),
    ("GET", "/v1/segment", KEY, 405),
    ("POST", "/v1/models/none/segment", KEY, 404),
    ("POST", "/v1/models/tiny/versions/9/segment", KEY, 404),
    ("POST", "/v1/segment?score_threshold=2", KEY, 422),
    ("POST", "/v1/segment?priority=1", KEY, 403),
    ("POST", "/v1/segment?masks=png", KEY | {"Accept": "image/png"}, 422),
]


@pytest.mark.parametrize(("method", "path", "headers", "status"), CASES)
def test_a_connection_says_what_the_application_says(
    app: tuple[Application, TestClient], method: str, path: str, headers: dict[str, str], status: int
) -> None:
    application, client = app
    head, _, body = told_at_once(application, method, path, headers, b"x").partition(b"\r\n\r\n")
    answer = client.request(method, path, headers=headers, content=b"x")
    assert answer.status_code == status
    first, *lines = head.decode().split("\r\n")
    assert first.startswith(f"HTTP/1.1 {status} ")
    told = [tuple(line.split(": ", 1)) for line in lines]
    problem, said = json.loads(body), answer.json()
    if "X-Request-Id" not in headers:  # each has one of its own
        told = [(name, value) for name, value in told if name != "x-request-id"]
        answer.headers.pop("x-request-id")
        assert problem.pop("request_id") != said.pop("request_id")
    assert told == answer.headers.multi_items()
    assert problem == said


def test_too_many_are_refused_at_once_and_counted_and_others_let_in(app: tuple[Application, TestClient]) -> None:
    application, client = app

    def counted() -> str:
        text = client.get("/metrics", headers=KEY).text
        return "\n".join(line for line in text.splitlines() if 'reason="overloaded"' in line)

    assert told_at_once(application, "POST", "/v1/segment", KEY, png()) == b""
    with application.state.gate:
        told = told_at_once(application, "POST", "/v1/segment", KEY, png())
        assert told.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nx-request-id: mine\r\n" in told
        assert b'"code":"overloaded"' in told
        assert told_at_once(application, "GET", "/v1/models", KEY, b"") == b""
    assert counted().endswith(" 1.0")
    assert client.post("/v1/segment", headers=KEY, content=png()).status_code == 200


def test_who_is_told_that_the_connection_ends_is_told_by_the_application(app: tuple[Application, TestClient]) -> None:
    """It reads the rest of the body before it closes, or the answer would be lost with it."""
    application, client = app
    application.state.gate.draining = True
    assert told_at_once(application, "POST", "/v1/segment", KEY, png()) == b""
    answer = client.post("/v1/segment", headers=KEY, content=png())
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert answer.headers["connection"] == "close"


def test_a_bug_at_the_entrance_is_answered_as_a_problem(
    app: tuple[Application, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("server.repository.Repository.pick", broken)
    told = told_at_once(app[0], "POST", "/v1/segment", KEY, png())
    assert told.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b'"code":"internal"' in told
    assert b"secret" not in told
