"""One segmentation request: what it asks for, the gate, the body, the line for every picture in it, and the answer.

One picture gives its answer as it is; several give `{"results": [...]}` in order, a bad one as `{"error": problem}` in
its place, with status 200 unless all failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope

from server.errors import BadParameter, BadRequest, DeadlineExceeded, Forbidden, RequestError, ServiceError
from server.http.access import Picture, Record, Target
from server.http.bodies import is_raw, unpack
from server.http.body import read_body
from server.http.gate import Gate
from server.http.hanging_up import unless_client_goes
from server.http.problems import problem_content
from server.http.reply import Reply
from server.parameters import Parameters, parse_parameters
from server.pipeline import Pipeline, Result, Task
from server.repository import Repository, Served
from server.stages import Stages
from server.workers import Rank

NOTHING_ASKED = Parameters()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may be."""

    max_body_bytes: int
    body_timeout_s: float
    max_images: int
    max_response_bytes: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What the head of a request asks for."""

    model: Served
    parameters: Parameters
    deadline: float | None  # on the clock of the request's stages
    drawn: bool  # a picture with the masks drawn in


class Segmenting:
    """Answers segmentation requests."""

    def __init__(self, repository: Repository, pipeline: Pipeline, gate: Gate, limits: Limits) -> None:
        self._repository = repository
        self._pipeline = pipeline
        self._gate = gate
        self._limits = limits

    def ask(self, scope: Scope, record: Record, target: Target) -> Asked:
        """
        Raises:
            RequestError, ServiceError: it is refused, whatever its body may be.
        """
        model = self._repository.pick(target.model, target.version)
        record.model, record.version = model.key
        query: bytes = scope["query_string"]
        asked = parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else []
        parameters = parse_parameters(asked) if asked else NOTHING_ASKED
        if parameters.priority is not None and "priority" not in scope.get("may", ()):
            raise Forbidden("'priority' is for keys that hold it; leave it out")
        drawn = wants_overlay(_header(scope, b"accept", "*/*"))
        if drawn and any(name == "masks" for name, _ in asked):
            raise BadParameter(
                "'masks' is for JSON; with 'Accept: image/png' the answer is a picture, leave one of them out"
            )
        self._gate.check()
        self._pipeline.check_admission(model, parameters.priority or 0)
        deadline = None if parameters.timeout_ms is None else record.stages.began + parameters.timeout_ms / 1000
        return Asked(model, parameters, deadline, drawn)

    async def answer(self, scope: Scope, receive: Receive, asked: Asked) -> Reply:
        """
        Raises:
            RequestError, ServiceError: the request failed as a whole.
        """
        record: Record = scope["record"]
        work = self._results(scope, receive, asked)
        if asked.deadline is None:
            return self._reply(await work, record)
        try:
            async with asyncio.timeout(asked.deadline - record.stages.clock()):
                return self._reply(await work, record)
        except TimeoutError:
            late = f"no answer within timeout_ms={asked.parameters.timeout_ms:g}"
            raise DeadlineExceeded(late, retry_after_s=0.0) from None

    async def _results(
        self, scope: Scope, receive: Receive, asked: Asked
    ) -> list[Result | RequestError | ServiceError]:
        """Through the gate, the body off the wire, every picture down the line."""
        record: Record = scope["record"]
        model, drawn = asked.model, asked.drawn
        content_type = _header(scope, b"content-type", "")
        limits = self._limits
        with self._gate:
            body = await read_body(scope, receive, limits.max_body_bytes, limits.body_timeout_s)
            if is_raw(content_type):
                payloads = [body]
            else:
                payloads = await self._pipeline.in_thread(Rank.DECODE, unpack, body, content_type, limits.max_images)
            del body
            record.stages.mark("receive")
            self._pipeline.check_admission(model, asked.parameters.priority or 0)  # others came while the body did
            if drawn and len(payloads) > 1:
                raise BadRequest(f"an overlay is one picture, and {len(payloads)} were sent; send one, or ask for JSON")
            share = limits.max_response_bytes // len(payloads)
            tasks = [
                Task(model, payload, asked.parameters, record.stages.fork(), asked.deadline, share)
                for payload in payloads
            ]
            line = self._pipeline.overlay if drawn else self._pipeline.segment
            del payloads
            try:
                if len(tasks) == 1:
                    results = [await unless_client_goes(_kept(line(tasks[0])), receive)]
                else:
                    results = await unless_client_goes(asyncio.gather(*(_kept(line(task)) for task in tasks)), receive)
            finally:  # the last one answered, or where its client left it
                record.stages = max((task.stages for task in tasks), key=lambda clock: clock.last)
        return results

    def _reply(self, results: Sequence[Result | RequestError | ServiceError], record: Record) -> Reply:
        """The answer to a request, or the error of its only picture raised."""
        failures = [result for result in results if not isinstance(result, Result)]
        if len(results) == 1 and failures:
            raise failures[0]
        record.images = [
            Picture(result.size, result.instances, result.batch_size)
            for result in results
            if isinstance(result, Result)
        ]
        contents = [
            result.content if isinstance(result, Result) else {"error": problem_content(result, record.request_id)}
            for result in results
        ]
        content = contents[0] if len(results) == 1 else {"results": contents}
        if isinstance(content, bytes):
            return _timed(200, content, b"image/png", record.stages)
        body = orjson.dumps(content)  # the large parts are JSON already
        status = 200
        if failures:
            record.failed = [failure.code for failure in failures]
            record.error = next((failure for failure in failures if failure.status == 500), None)
            status = failures[0].status if len(failures) == len(results) else 200
        return _timed(status, body, b"application/json", record.stages)


def wants_overlay(accept: str) -> bool:
    """Whether a client prefers a picture: `image/png` is named, and JSON is not named at the same or a higher quality.

    `*/*` counts for JSON only where `image/png` has a lower quality: who wants no picture does not name it.
    """
    accept = accept.lower()
    if "image/png" not in accept:
        return False
    quality: dict[str, float] = {}
    for entry in accept.split(","):
        kind, *options = (part.strip() for part in entry.split(";"))
        weights = [option[2:] for option in options if option.startswith("q=")]
        try:
            quality[kind] = float(weights[0]) if weights else 1.0
        except ValueError:
            quality[kind] = 0.0
    picture = quality.get("image/png", 0.0)
    json = quality.get("application/json")
    return picture > 0.0 and (picture > json if json is not None else picture >= quality.get("*/*", 0.0))


async def _kept(work: Awaitable[Result]) -> Result | RequestError | ServiceError:
    """A picture's failure as a value, so that it is told in its place."""
    try:
        return await work
    except (RequestError, ServiceError) as error:
        return error


def _header(scope: Scope, name: bytes, default: str) -> str:
    """The first of that name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return default


def _timed(status: int, body: bytes, media_type: bytes, stages: Stages) -> Reply:
    timing = ", ".join([*stages.server_timing(), f"encode;dur={stages.since_mark() * 1000:.3f}"])
    headers = [
        (b"server-timing", timing.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"content-type", media_type),
    ]
    return Reply(status, headers, body)
