"""Segmentations do not pass the framework, and nobody outside can tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from server.http.access import MODEL_ROUTE, VERSION_ROUTE, Target, segmentation
from server.http.app import create_app
from server.settings import Settings
from tests.server.fakes import FakeLoader

PATHS = ["/v1/segment", "/v1/models/tiny/segment", "/v1/models/tiny/versions/1/segment"]


@pytest.fixture
def client(tiny_bundle: Path) -> TestClient:
    settings = Settings.model_validate({"bundles": tiny_bundle.parent.parent, "threads": 1})
    return TestClient(create_app(settings, FakeLoader()), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1/segment", Target(None, None)),
        ("/v1/models/a b/segment", Target("a b", None)),
        ("/v1/models/a/versions/2/segment", Target("a", "2")),
        ("/v1/models/versions/versions/segment/segment", Target("versions", "segment")),
        ("/v1/models//segment", None),
        ("/v1/models/a/versions//segment", None),
        ("/v1/models/a/b/segment", None),
        ("/v1/segment/", None),
        ("/v1/segment\n", None),
        ("/v1/segments", None),
    ],
)
def test_a_path_names_a_model(path: str, target: Target | None) -> None:
    assert segmentation(path)[1] == target


@pytest.mark.parametrize("path", PATHS)
def test_the_framework_never_sees_a_segmentation(
    client: TestClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def seen(self: FastAPI, *_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(FastAPI, "__call__", seen)
    assert client.get("/livez").json()["code"] == "internal"
    assert client.post(path, content=b"x").json()["code"] == "not_ready"  # nothing has been loaded here
    assert client.get(path).status_code == 405
    assert client.post(path + "/", content=b"x", follow_redirects=False).status_code == 307


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_another_method_is_refused_with_those_allowed(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert answer.json()["detail"] == f"{method} is not for this path; allowed: POST"


@pytest.mark.parametrize("path", PATHS)
def test_a_slash_too_many_is_redirected(client: TestClient, path: str) -> None:
    answer = client.post(f"{path}/?masks=none", content=b"x", follow_redirects=False)
    assert answer.status_code == 307
    assert answer.headers["location"] == f"http://testserver{path}?masks=none"
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_the_documentation_tells_of_all_three_paths_first(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    routes = ["/v1/segment", MODEL_ROUTE, VERSION_ROUTE]
    assert list(paths)[:4] == [*routes, "/v1/models"]
    operations = [paths[path]["post"] for path in routes]
    assert [operation["operationId"] for operation in operations] == [
        "segment_default_v1_segment_post",
        "segment_model_v1_models__model__segment_post",
        "segment_version_v1_models__model__versions__version__segment_post",
    ]
    for operation, names in zip(operations, ([], ["model"], ["model", "version"]), strict=True):
        inside = [parameter for parameter in operation["parameters"] if parameter["in"] == "path"]
        assert [parameter["name"] for parameter in inside] == names
        assert all(parameter["required"] for parameter in inside)
        queried = [parameter for parameter in operation["parameters"] if parameter["in"] == "query"]
        assert queried == operations[0]["parameters"]
        assert operation["requestBody"] == operations[0]["requestBody"]
        assert operation["responses"].keys() == operations[0]["responses"].keys()
        assert operation["description"].startswith("Segment one image with ")


def test_a_bug_in_a_room_of_the_framework_is_answered_as_a_problem(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("server.metrics.Metrics.exposition", broken)
    answer = client.get("/metrics")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text
