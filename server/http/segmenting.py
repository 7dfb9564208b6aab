"""One segmentation request: parameters, the gate, the body, the line for every picture in it, and the answer.

One picture gives its answer as it is; several give `{"results": [...]}` in order, a bad one as `{"error": problem}` in
its place, with status 200 unless all failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.errors import DeadlineExceeded, RequestError, ServiceError
from server.http.bodies import is_raw, unpack
from server.http.body import read_body
from server.http.envelope import Record
from server.http.gate import Gate
from server.http.problems import problem_content
from server.parameters import Parameters, parse_parameters
from server.pipeline import Pipeline, Result
from server.repository import Repository, Served
from server.stages import Stages

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may be."""

    max_body_bytes: int
    body_timeout_s: float
    max_images: int


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
        deadline = None if parameters.timeout_ms is None else record.stages.began + parameters.timeout_ms / 1000
        try:
            async with asyncio.timeout(None if deadline is None else deadline - record.stages.clock()):
                results = await self._results(request, model, parameters, deadline)
        except TimeoutError:
            late = f"no answer within timeout_ms={parameters.timeout_ms:g}"
            raise DeadlineExceeded(late, retry_after_s=0.0) from None
        return await self._respond(results, record)

    async def _results(
        self, request: Request, model: Served, parameters: Parameters, deadline: float | None
    ) -> list[Result | RequestError | ServiceError]:
        """Through the gate, the body off the wire, every picture down the line."""
        record: Record = request.scope["record"]
        content_type = request.headers.get("content-type", "")
        limits = self._limits
        with self._gate.enter():
            _, scheduler = model.ready()
            scheduler.check_admission()
            body = await read_body(request.scope, request.receive, limits.max_body_bytes, limits.body_timeout_s)
            if is_raw(content_type):
                payloads = [body]
            else:
                payloads = await self._pipeline.in_thread(unpack, body, content_type, limits.max_images)
            del body
            record.stages.mark("receive")
            admit = _once(scheduler.check_admission)
            clocks = [record.stages.fork() for _ in payloads]
            work = asyncio.gather(
                *(
                    _kept(self._pipeline.segment(model, payload, parameters, clock, deadline, admit))
                    for payload, clock in zip(payloads, clocks, strict=True)
                )
            )
            del payloads
            results = await _unless_client_goes(work, request.receive)
        record.stages = max(clocks, key=lambda clock: clock.last)  # the picture that was answered last
        return results

    async def _respond(self, results: Sequence[Result | RequestError | ServiceError], record: Record) -> Response:
        """The answer to a request, or the error of its only picture raised."""
        failures = [result for result in results if not isinstance(result, Result)]
        if len(results) == 1 and failures:
            raise failures[0]
        record.images = [(result.pixels, result.instances) for result in results if isinstance(result, Result)]
        contents = [
            result.content if isinstance(result, Result) else {"error": problem_content(result, record.request_id)}
            for result in results
        ]
        content: dict[str, Any] = contents[0] if len(results) == 1 else {"results": contents}
        body = await self._pipeline.in_thread(orjson.dumps, content)
        status = 200
        if failures:
            record.failed = [failure.code for failure in failures]
            status = failures[0].status if len(failures) == len(results) else 200
        return Response(body, status, media_type="application/json", headers=_timing(record.stages))


def _once(check: Callable[[], None]) -> Callable[[], None]:
    """Ask for the first picture of a request; once it is let in, the others belong to it."""
    asked = False

    def ask() -> None:
        nonlocal asked
        if not asked:
            check()
            asked = True

    return ask


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


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _timing(stages: Stages) -> dict[str, str]:
    encode = f"encode;dur={stages.since_mark() * 1000:.3f}"
    return {"server-timing": ", ".join([*stages.server_timing(), encode])}
