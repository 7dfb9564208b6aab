"""One segmentation request: parameters, the gate, the body, the line for every picture in it, and the answer.

One picture gives its answer as it is; several give `{"results": [...]}` in order, a bad one as `{"error": problem}` in
its place, with status 200 unless all failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import orjson
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.errors import BadParameter, BadRequest, DeadlineExceeded, Forbidden, RequestError, ServiceError
from server.http.access import Picture, Record
from server.http.bodies import is_raw, unpack
from server.http.body import read_body
from server.http.gate import Gate
from server.http.problems import problem_content
from server.parameters import Parameters, parse_parameters
from server.pipeline import Pipeline, Result, Task
from server.repository import Repository, Served
from server.stages import Stages
from server.workers import Rank

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may be."""

    max_body_bytes: int
    body_timeout_s: float
    max_images: int
    max_response_bytes: int


class Segmenting:
    """Answers segmentation requests."""

    def __init__(self, repository: Repository, pipeline: Pipeline, gate: Gate, limits: Limits) -> None:
        self._repository = repository
        self._pipeline = pipeline
        self._gate = gate
        self._limits = limits

    async def answer(self, request: Request, name: str | None, version: str | None) -> Response:
        """
        Raises:
            RequestError, ServiceError: the request failed as a whole.
        """
        record: Record = request.scope["record"]
        model = self._repository.pick(name, version)
        record.model, record.version = model.key
        parameters = parse_parameters(request.query_params.multi_items())
        if parameters.priority is not None and "priority" not in request.scope.get("may", ()):
            raise Forbidden("'priority' is for keys that hold it; leave it out")
        drawn = wants_overlay(request.headers.get("accept", "*/*"))
        if drawn and "masks" in request.query_params:
            raise BadParameter(
                "'masks' is for JSON; with 'Accept: image/png' the answer is a picture, leave one of them out"
            )
        deadline = None if parameters.timeout_ms is None else record.stages.began + parameters.timeout_ms / 1000
        try:
            async with asyncio.timeout(None if deadline is None else deadline - record.stages.clock()):
                results = await self._results(request, model, parameters, deadline, drawn)
        except TimeoutError:
            late = f"no answer within timeout_ms={parameters.timeout_ms:g}"
            raise DeadlineExceeded(late, retry_after_s=0.0) from None
        return await self._respond(results, record)

    async def _results(
        self, request: Request, model: Served, parameters: Parameters, deadline: float | None, drawn: bool
    ) -> list[Result | RequestError | ServiceError]:
        """Through the gate, the body off the wire, every picture down the line."""
        record: Record = request.scope["record"]
        content_type = request.headers.get("content-type", "")
        limits = self._limits
        with self._gate.enter():
            self._pipeline.check_admission(model)
            body = await read_body(request.scope, request.receive, limits.max_body_bytes, limits.body_timeout_s)
            if is_raw(content_type):
                payloads = [body]
            else:
                payloads = await self._pipeline.in_thread(Rank.DECODE, unpack, body, content_type, limits.max_images)
            del body
            record.stages.mark("receive")
            self._pipeline.check_admission(model)  # again: others came while the body did
            if drawn and len(payloads) > 1:
                raise BadRequest(f"an overlay is one picture, and {len(payloads)} were sent; send one, or ask for JSON")
            share = limits.max_response_bytes // len(payloads)
            tasks = [Task(model, payload, parameters, record.stages.fork(), deadline, share) for payload in payloads]
            line = self._pipeline.overlay if drawn else self._pipeline.segment
            work = asyncio.gather(*(_kept(line(task)) for task in tasks))
            del payloads
            results = await _unless_client_goes(work, request.receive)
        record.stages = max((task.stages for task in tasks), key=lambda clock: clock.last)  # the last one answered
        return results

    async def _respond(self, results: Sequence[Result | RequestError | ServiceError], record: Record) -> Response:
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
            return Response(content, media_type="image/png", headers=_timing(record.stages))
        body = orjson.dumps(content)  # the large parts are JSON already
        status = 200
        if failures:
            record.failed = [failure.code for failure in failures]
            record.error = next((failure for failure in failures if failure.status == 500), None)
            status = failures[0].status if len(failures) == len(results) else 200
        return Response(body, status, media_type="application/json", headers=_timing(record.stages))


def wants_overlay(accept: str) -> bool:
    """Whether a client prefers a picture: `image/png` is named, and JSON is not named at the same or a higher quality.

    `*/*` counts for JSON only where `image/png` has a lower quality: who wants no picture does not name it.
    """
    quality: dict[str, float] = {}
    for entry in accept.lower().split(","):
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


async def _unless_client_goes(work: Awaitable[T], receive: Receive) -> T:
    """Wait for `work`, but drop it when the client hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)  # else asyncio logs what nobody asked for


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _timing(stages: Stages) -> dict[str, str]:
    encode = f"encode;dur={stages.since_mark() * 1000:.3f}"
    return {"server-timing": ", ".join([*stages.server_timing(), encode])}
