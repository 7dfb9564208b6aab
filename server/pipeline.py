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
import orjson
from numpy.typing import NDArray

from server import images, memory, overlay
from server.errors import ImageTooLarge
from server.formats import FORMATS
from server.geometry import Frame
from server.manifest import Manifest
from server.masks import bind
from server.parameters import Parameters, chosen_labels
from server.preprocess import InputSpec, place
from server.repository import Served
from server.scheduling import Answer
from server.segments import Segment
from server.stages import Stages

T = TypeVar("T")

LARGE_PIXELS = 2_000_000  # of a picture after which freed memory goes back to the system


@dataclass(frozen=True, slots=True)
class Task:
    """One picture of a request, and what is asked of it."""

    model: Served
    payload: bytes
    parameters: Parameters
    stages: Stages
    deadline: float | None  # on the clock of `stages`; the scheduler refuses what cannot meet it
    admit: Callable[[], None]  # asked before the engine's queue, since others came while this picture was decoded
    max_bytes: int  # of the answer: instances beyond it are cut, and the answer says so


@dataclass(frozen=True, slots=True)
class Result:
    """A picture's answer, and what the metrics want to know of it."""

    content: dict[str, Any] | bytes  # ready for JSON; or a PNG file, the overlay
    pixels: int
    instances: int


@dataclass(frozen=True, slots=True)
class _Placed:
    """A decoded picture in the network's input, and when each step ended."""

    tensor: NDArray[np.uint8]  # (h, w, 3)
    frame: Frame
    image: NDArray[np.uint8] | None  # (H, W, 3), where it is drawn upon later
    decoded: float
    placed: float


@dataclass(frozen=True, slots=True)
class _Found:
    """What the network said of a picture."""

    manifest: Manifest
    labels: set[int] | None  # of the classes asked for; None for all
    placed: _Placed
    answer: Answer


class Pipeline:
    """
    Args:
        pool: where computing happens.
        max_pixels: larger images are refused from their header.
    """

    def __init__(self, pool: Executor, max_pixels: int) -> None:
        self._pool = pool
        self._max_pixels = max_pixels

    async def segment(self, task: Task) -> Result:
        """A picture's instances, in the form its parameters ask for.

        Raises:
            RequestError, ServiceError: as the tree in `server.errors` says.
        """
        found = await self._find(task, keep_image=False)
        content, done = await self.in_thread(_render, task, found)
        task.stages.mark("masks", done)
        content |= {"timing_ms": task.stages.milliseconds(), "batch_size": found.answer.batch_size}
        height, width = found.placed.frame.size
        return Result(content, height * width, len(content["instances"]))

    async def overlay(self, task: Task) -> Result:
        """The picture with its masks drawn in, at its full size.

        Raises:
            RequestError, ServiceError: as the tree in `server.errors` says.
        """
        found = await self._find(task, keep_image=True)
        drawing, instances, done = await self.in_thread(_draw, task, found)
        task.stages.mark("masks", done)
        height, width = found.placed.frame.size
        return Result(drawing, height * width, instances)

    async def _find(self, task: Task, keep_image: bool) -> _Found:
        """The line as far as the network's answer."""
        manifest, scheduler = task.model.ready()
        labels = chosen_labels(task.parameters.classes, manifest.classes)  # an unknown one is refused before any work
        placed = await self.in_thread(_decode_and_place, task, self._max_pixels, manifest.input, keep_image)
        task.stages.mark("decode", placed.decoded)
        task.stages.mark("preprocess", placed.placed)
        task.admit()
        answer = await scheduler.submit(
            placed.tensor, placed.frame.content, task.deadline, task.parameters.priority or 0
        )
        task.stages.mark("queue", answer.began)
        task.stages.mark("inference", answer.ended)
        return _Found(manifest, labels, placed, answer)

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Compute in the codec pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)


def _decode_and_place(task: Task, max_pixels: int, spec: InputSpec, keep_image: bool) -> _Placed:
    """One hop for both, so that the full-size picture lives no longer than it must."""
    file = images.survey(task.payload, max_pixels)
    frame = spec.frame(file.size)
    whole = keep_image or not spec.reduced_decoding
    picture = images.decode(file, None if whole else frame.content)
    decoded = task.stages.clock()
    tensor = place(picture, frame)
    image = picture.pixels if keep_image else None
    del picture
    if frame.size[0] * frame.size[1] > LARGE_PIXELS:
        memory.give_back()
    return _Placed(tensor, frame, image, decoded, task.stages.clock())


def _segments(task: Task, found: _Found) -> list[Segment]:
    """All segments that were asked for, best first."""
    manifest, threshold = found.manifest, task.parameters.score_threshold
    bind(found.answer.outputs, manifest.masks.legend)
    min_score = manifest.defaults.score_threshold if threshold is None else threshold
    segments = list(manifest.masks.decode(found.answer.outputs, found.placed.frame, min_score))
    if found.labels is not None:
        segments = [segment for segment in segments if segment.label in found.labels]
    return sorted(segments, key=lambda segment: -segment.score)


def _render(task: Task, found: _Found) -> tuple[dict[str, Any], float]:
    """From tensors to the answer's content, all but its timing; and when that was done."""
    segments = _segments(task, found)
    manifest, size = found.manifest, found.placed.frame.size
    render = FORMATS[task.parameters.masks]
    kept = segments[: task.parameters.max_instances]
    content = render(kept, size, manifest.classes)
    while kept and len(orjson.dumps(content)) > task.max_bytes:
        kept = kept[: _how_many_fit(content, task.max_bytes)]
        content = render(kept, size, manifest.classes)
    head = {
        "model": manifest.name,
        "version": str(manifest.version),
        "image": {"width": size[1], "height": size[0]},
    }
    return head | content | {"truncated": len(kept) < len(segments)}, task.stages.clock()


def _how_many_fit(content: dict[str, Any], max_bytes: int) -> int:
    """How many instances, best first, fit an answer of `max_bytes`; fewer than there are."""
    instances = content["instances"]
    left = max_bytes - len(orjson.dumps(content | {"instances": []}))
    for count, instance in enumerate(instances):
        left -= len(orjson.dumps(instance)) + 1
        if left < 0:
            return count
    return len(instances) - 1


def _draw(task: Task, found: _Found) -> tuple[bytes, int, float]:
    """The overlay, how many instances are in it, and when that was done."""
    image = found.placed.image
    if image is None:
        raise RuntimeError("an overlay without its picture. This is a bug in the pipeline.")
    segments = _segments(task, found)[: task.parameters.max_instances]
    drawing = overlay.draw(image, segments)
    if len(drawing) > task.max_bytes:
        size = f"the overlay is {len(drawing) / 1e6:.0f} MB; the limit is {task.max_bytes / 1e6:g} MB"
        raise ImageTooLarge(f"{size} (MASKSERVE_MAX_RESPONSE_MB); ask for JSON and draw it yourself")
    return drawing, len(segments), task.stages.clock()
