"""The straight line: bytes in, JSON out, for one image.

    bytes -> images.decode -> preprocess.place -> scheduler.submit -> manifest.masks.decode -> FORMATS[name] -> JSON

Async functions wait, plain functions compute; everything that computes runs in the codec pool, never on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from server import images
from server.formats import FORMATS
from server.geometry import Frame
from server.manifest import Manifest
from server.masks import bind
from server.parameters import Parameters, chosen_labels
from server.preprocess import InputSpec, place
from server.repository import Served
from server.scheduling import Answer
from server.stages import Stages

T = TypeVar("T")

INSTANCE_BYTES = 200  # what an instance takes in the answer besides its mask, roughly


@dataclass(frozen=True, slots=True)
class Result:
    """An image's answer, ready for JSON, and what the metrics want to know of it."""

    content: dict[str, Any]
    pixels: int
    instances: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A decoded picture in the network's input, and when each step ended."""

    tensor: NDArray[np.uint8]  # (h, w, 3)
    frame: Frame
    decoded: float
    placed: float


class Pipeline:
    """
    Args:
        pool: where computing happens.
        max_pixels: larger images are refused from their header.
        max_response_bytes: instances beyond it are cut, and the answer says so.
    """

    def __init__(self, pool: Executor, max_pixels: int, max_response_bytes: int) -> None:
        self._pool = pool
        self._max_pixels = max_pixels
        self._max_response_bytes = max_response_bytes

    async def segment(
        self,
        model: Served,
        payload: bytes,
        parameters: Parameters,
        stages: Stages,
        deadline: float | None,
        admit: Callable[[], None],
    ) -> Result:
        """
        Args:
            admit: asked once more before the engine's queue, since others came while this image was decoded.
            deadline: on the clock of `stages`; the scheduler refuses what cannot meet it.

        Raises:
            RequestError, ServiceError: as the tree in `server.errors` says.
        """
        manifest, scheduler = model.ready()
        labels = chosen_labels(parameters.classes, manifest.classes)
        placed = await self.in_thread(_decode_and_place, payload, self._max_pixels, manifest.input, stages.clock)
        stages.mark("decode", placed.decoded)
        stages.mark("preprocess", placed.placed)
        admit()
        answer = await scheduler.submit(placed.tensor, placed.frame.content, deadline)
        stages.mark("queue", answer.began)
        stages.mark("inference", answer.ended)
        build = _Build(manifest, placed.frame, answer, parameters, labels, self._max_response_bytes)
        content, masks_done = await self.in_thread(_render, build, stages.clock)
        stages.mark("masks", masks_done)
        content |= {"timing_ms": stages.milliseconds(), "batch_size": answer.batch_size}
        height, width = placed.frame.size
        return Result(content, height * width, len(content["instances"]))

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Compute in the codec pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)


def _decode_and_place(payload: bytes, max_pixels: int, spec: InputSpec, clock: Callable[[], float]) -> Placed:
    """One hop for both, so that the full-size picture lives no longer than it must."""
    image = images.decode(payload, max_pixels)
    decoded = clock()
    tensor, frame = place(image, spec)
    return Placed(tensor, frame, decoded, clock())


@dataclass(frozen=True, slots=True)
class _Build:
    manifest: Manifest
    frame: Frame
    answer: Answer
    parameters: Parameters
    labels: set[int] | None
    max_bytes: int


def _render(build: _Build, clock: Callable[[], float]) -> tuple[dict[str, Any], float]:
    """From tensors to the answer's content, all but its timing; and when that was done."""
    manifest, frame, parameters = build.manifest, build.frame, build.parameters
    threshold = parameters.score_threshold
    min_score = manifest.defaults.score_threshold if threshold is None else threshold
    bind(build.answer.outputs, manifest.masks.legend)
    segments = list(manifest.masks.decode(build.answer.outputs, frame, min_score))
    if build.labels is not None:
        segments = [segment for segment in segments if segment.label in build.labels]
    segments.sort(key=lambda segment: -segment.score)
    kept = segments[: parameters.max_instances]
    content = FORMATS[parameters.masks](kept, frame.size, manifest.classes)
    fitting = _how_many_fit(content["instances"], build.max_bytes)
    content["instances"] = content["instances"][:fitting]
    height, width = frame.size
    head = {"model": manifest.name, "version": str(manifest.version), "image": {"width": width, "height": height}}
    return head | content | {"truncated": len(content["instances"]) < len(segments)}, clock()


def _how_many_fit(instances: list[dict[str, Any]], max_bytes: int) -> int:
    """How many instances, best first, fit an answer of `max_bytes`."""
    used = 0
    for count, instance in enumerate(instances):
        used += INSTANCE_BYTES + len(instance.get("segmentation", {}).get("counts", ""))
        if used > max_bytes:
            return count
    return len(instances)
