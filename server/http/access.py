"""What is known of one request, and the line that the log gets of it.

Nothing a client wrote reaches the line, but for a request id of harmless characters: the path is the route's, the model
is one of ours, and there is no query, no header, no file name, no address and no key.

Failures always have a line, and so have requests of a second and more. Of the others, which are successes and refusals
by the server's state (a storm of them must not become a storm of lines), a share has one, chosen by a hash of the
request id: the same request is chosen in every process that shares the id and the share.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from server.logs import Event
from server.metrics import REJECTIONS
from server.stages import Stages

log = logging.getLogger("maskserve")

CLIENT_GONE = 499  # never sent: how a request is counted whose client hung up (nginx's number)
SLOW_S = 1.0
MAX_IMAGES = 16  # whose sizes are in a line; `image_count` and `instances` count all

SEGMENT_PATH = re.compile(r"/v1/(?:models/(?P<model>[^/]*)/(?:versions/(?P<version>[^/]*)/)?)?segment")
MODEL_ROUTE = "/v1/models/{model}/segment"
VERSION_ROUTE = "/v1/models/{model}/versions/{version}/segment"


class Target(NamedTuple):
    """The model that a path names."""

    model: str | None  # None: the only one, or the default
    version: str | None  # None: the highest ready one; not yet known to be a number


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture that was answered."""

    size: tuple[int, int]  # (height, width)
    instances: int
    batch_size: int


@dataclass(slots=True)
class Record:
    """What is known of one request; routes fill it in, the envelope counts it and logs it."""

    request_id: str
    route: str | None = None  # of a segmentation: the template of its path
    stages: Stages = field(default_factory=Stages)
    model: str = ""
    version: str = ""
    status: int = 0
    failed: list[str] = field(default_factory=list)  # codes: of the request, or of some of its pictures
    error: Exception | None = None  # behind a 500, or behind a picture that deserved one
    response_bytes: int = 0
    images: list[Picture] = field(default_factory=list)


@functools.lru_cache(maxsize=64)  # clients ask for few
def segmentation(path: str) -> tuple[str | None, Target | None]:
    """The template of a segmentation path, and what it names, unless a name is empty; None twice for other paths."""
    match = SEGMENT_PATH.fullmatch(path)
    if match is None:
        return None, None
    model, version = match.group("model", "version")
    route = VERSION_ROUTE if version is not None else MODEL_ROUTE if model is not None else path
    return route, None if "" in (model, version) else Target(model, version)


class RequestLog:
    """
    Args:
        share: of the successful requests that get a line, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self._below = share * 2**32

    def write(self, record: Record, method: str) -> None:
        """Log a request whose stages are closed; one that was no segmentation has a line only when it met a bug."""
        failed = bool(record.failed) or record.error is not None or not 200 <= record.status < 400
        level = logging.INFO if not failed else logging.WARNING if record.error is None else logging.ERROR
        if not log.isEnabledFor(level):
            return
        if record.route is None:
            if record.error is None:
                return
        elif (not failed or self._is_refusal(record)) and not self._chosen(record):
            return
        log.log(level, Request(record, method), exc_info=record.error)

    @staticmethod
    def _is_refusal(record: Record) -> bool:
        return bool(record.failed) and record.error is None and REJECTIONS.issuperset(record.failed)

    def _chosen(self, record: Record) -> bool:
        if self._below >= 2**32 or record.stages.last - record.stages.began >= SLOW_S:
            return True
        return int.from_bytes(hashlib.blake2b(record.request_id.encode(), digest_size=4).digest()) < self._below


class Request(Event):
    """The line of one request."""

    def __init__(self, record: Record, method: str) -> None:
        stages = record.stages.milliseconds()
        total = stages.pop("total")
        fields: dict[str, Any] = {"request_id": record.request_id, "method": method, "path": record.route or "other"}
        if record.model:
            fields |= {"model": record.model, "version": record.version}
        fields |= {"status": record.status, "ms": total}
        if record.failed:
            fields |= {"codes": sorted(set(record.failed)), "failed": len(record.failed)}
        if record.route is not None:
            fields |= {
                "stages": stages,
                "image_count": len(record.images),
                "images": [
                    {
                        "width": picture.size[1],
                        "height": picture.size[0],
                        "instances": picture.instances,
                        "batch_size": picture.batch_size,
                    }
                    for picture in record.images[:MAX_IMAGES]
                ],
                "instances": sum(picture.instances for picture in record.images),
            }
        super().__init__("request", fields | {"response_bytes": record.response_bytes})

    def __str__(self) -> str:
        fields = self.fields
        where = f"{fields['model']}/{fields['version']}" if "model" in fields else fields["path"]
        why = fields.get("codes", ["client gone"] if fields["status"] == CLIENT_GONE else [])
        words = [" ".join((where, str(fields["status"]), *why, _short(fields["ms"]), "ms"))]
        if fields.get("images"):
            words.append(f"{_pictures(fields['image_count'], fields['images'])} {fields['instances']} instances")
        shown = [f"{stage} {_short(ms)}" for stage, ms in fields.get("stages", {}).items() if ms >= 0.05]
        if shown:
            words.append(f"[{' '.join(shown)}]")
        return "  ".join((*words, f"id={fields['request_id']}"))


def _pictures(count: int, shown: Sequence[dict[str, int]]) -> str:
    return f"{count} images" if count > 1 else f"{shown[0]['width']}x{shown[0]['height']}"


def _short(ms: float) -> str:
    return f"{ms:.1f}" if ms < 10 else f"{ms:.0f}"
