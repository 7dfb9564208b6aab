"""The playground: the files of `page/`, kept in memory and served under the names they have there, and no others.

    GET /                 page/index.html
    GET /page/page.css    page/page.css

A name from the outside is a key of a dictionary that was filled at the start; no path is ever made of it. The page asks
nobody but this server, and its Content-Security-Policy has the browser hold it to that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

from server.errors import NotFound

FOLDER = Path(__file__).parent / "page"

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)

HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # keep it, and ask with the ETag whether it still holds: an update is seen at once
}


@dataclass(frozen=True, slots=True)
class PageFile:
    content: bytes
    media_type: str
    etag: str


def read_page(folder: Path = FOLDER) -> dict[str, PageFile]:
    """By name, every file of the folder whose kind is known."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in MEDIA_TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[path.name] = PageFile(content, MEDIA_TYPES[path.suffix], etag)
    return files


def create_playground_router() -> APIRouter:
    files = read_page()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def playground(request: Request) -> Response:
        return _answer(request, files["index.html"])

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def page_file(request: Request, name: str) -> Response:
        if name not in files:
            raise NotFound("the page has no such file; it begins at /")
        return _answer(request, files[name])

    return router


def _answer(request: Request, file: PageFile) -> Response:
    """The file, or 304 when the caller's copy is the same."""
    headers = HEADERS | {"etag": file.etag}
    known = request.headers.get("if-none-match", "")
    if file.etag in known or known == "*":
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
