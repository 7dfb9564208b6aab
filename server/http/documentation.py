"""What OpenAPI says of a segmentation request, and the page that shows it, which needs no network.

The examples are real answers. The page is Swagger UI, whose files come with the package fastapi-offline.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html

from server import errors
from server.errors import MethodNotAllowed, RateLimited, RequestError, ServiceError
from server.http.access import MODEL_ROUTE, VERSION_ROUTE
from server.http.problems import problem_content
from server.parameters import Parameters

ANSWER: dict[str, Any] = {
    "model": "nuclei",
    "version": "1",
    "image": {"width": 512, "height": 384},
    "instances": [
        {
            "category_id": 1,
            "category": "nucleus",
            "score": 0.9713,
            "bbox": [3.0, 2.0, 4.0, 3.0],
            "area": 10,
            "segmentation": {"size": [384, 512], "counts": "ST12m;1000Oo[m5"},
        }
    ],
    "truncated": False,
    "timing_ms": {
        "receive": 0.214,
        "decode": 2.31,
        "preprocess": 0.342,
        "queue": 0.101,
        "inference": 88.7,
        "masks": 6.02,
        "total": 97.687,
    },
    "batch_size": 1,
}


def _failures(tree: type[Exception]) -> list[type[RequestError | ServiceError]]:
    """The leaves of a branch of the error tree."""
    below = tree.__subclasses__()
    return [leaf for child in below for leaf in _failures(child)] if below else [tree]  # type: ignore[list-item]


def _example(kind: type[RequestError | ServiceError]) -> RequestError | ServiceError:
    detail = (kind.__doc__ or kind.__name__).strip().splitlines()[0]
    if kind is MethodNotAllowed:
        return MethodNotAllowed(detail, "POST")
    if kind is RateLimited:
        return RateLimited(detail, 0.5)
    return kind(detail)


def _responses() -> dict[str, Any]:
    found: dict[str, Any] = {
        "200": {
            "description": "one picture's instances, best first; for several pictures {'results': [...]} in order",
            "content": {"application/json": {"schema": {}, "example": ANSWER}},
        }
    }
    for kind in [*_failures(errors.RequestError), *_failures(errors.ServiceError)]:
        if kind in (errors.NotFound, errors.MethodNotAllowed):
            continue
        entry = found.setdefault(
            str(kind.status), {"description": "", "content": {"application/problem+json": {"examples": {}}}}
        )
        entry["description"] = ", ".join(filter(None, [entry["description"], kind.code]))
        example = problem_content(_example(kind), "4f1d2a")
        entry["content"]["application/problem+json"]["examples"][kind.code] = {"value": example}
    return found


def _parameters() -> list[dict[str, Any]]:
    documentation = []
    for name, schema in Parameters.model_json_schema()["properties"].items():
        options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
        documentation.append({"name": name, "in": "query", "description": schema["description"], "schema": options[0]})
    return documentation


def document_segmentation(app: FastAPI) -> None:
    """Have the framework tell of the paths that never reach it, before its own."""
    document = app.openapi()
    document["paths"] = {
        "/v1/segment": _operation("default", "the only (or the default) model", "/v1/segment"),
        MODEL_ROUTE: _operation("model", "the highest ready version of a model", MODEL_ROUTE),
        VERSION_ROUTE: _operation("version", "one version of a model", VERSION_ROUTE),
    } | document["paths"]


def _operation(name: str, model: str, path: str) -> dict[str, Any]:
    """Of a POST, in the words and the order in which the framework tells of the others."""
    operation: dict[str, Any] = {
        "summary": f"Segment {name.capitalize()}",
        "description": f"Segment one image with {model}.",
        "operationId": re.sub(r"\W", "_", f"segment_{name}{path}_post"),
    }
    responses = _responses()
    named = re.findall(r"{(\w+)}", path)
    if named:
        operation["parameters"] = [
            {"name": each, "in": "path", "required": True, "schema": {"type": "string", "title": each.capitalize()}}
            for each in named
        ]
        unfit = responses["422"]["content"]
        responses["422"]["content"] = {"application/json": {"schema": FRAMEWORKS_422}} | unfit
        responses = {"200": responses["200"], "422": responses["422"]} | responses
    operation["responses"] = responses
    operation["parameters"] = [*operation.get("parameters", []), *_parameters()]
    operation["requestBody"] = REQUEST_BODY
    return {"post": operation}


FRAMEWORKS_422 = {"$ref": "#/components/schemas/HTTPValidationError"}  # it says so of every path with a name in it
BINARY = {"type": "string", "format": "binary"}
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": "a picture's bytes (JPEG, PNG, WebP, BMP, TIFF, GIF), a form of several, or base64 in JSON",
    "content": {
        "application/octet-stream": {"schema": BINARY},
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"image": {"type": "array", "items": BINARY}}}
        },
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "string", "format": "byte"}},
                "required": ["image"],
                "additionalProperties": False,
            }
        },
    },
}


def create_documentation_router() -> APIRouter:
    """`/docs` and the two files it needs."""
    router = APIRouter(include_in_schema=False)
    static = resources.files("fastapi_offline") / "static"

    @router.get("/docs")
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="maskserve",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="data:,",
        )

    @router.get("/docs/swagger-ui-bundle.js")
    async def script() -> Response:
        return Response((static / "swagger-ui-bundle.js").read_bytes(), media_type="text/javascript")

    @router.get("/docs/swagger-ui.css")
    async def style() -> Response:
        return Response((static / "swagger-ui.css").read_bytes(), media_type="text/css")

    return router
