"""The straight line: bytes in, JSON out, for one image.

    bytes -> images.decode -> preprocess.place -> scheduler.submit -> manifest.masks.decode -> FORMATS[name] -> JSON

Async functions wait, plain functions compute; everything that computes runs in the workers, never on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from server import images, memory, overlay
from server.errors import ImageTooLarge, ModelOutputInvalid
from server.formats import FORMATS
from server.geometry import Frame
from server.manifest import Manifest
from server.masks import bind
from server.parameters import Parameters, chosen_labels
from server.preprocess import AnyInput, place
from server.repository import Served
from server.scheduling import Answer, Backlog, Cost, Mean, Picture, check_wait
from server.segments import Segment
from server.stages import Stages
from server.workers import Rank, Workers

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
    max_bytes: int  # of the answer: instances beyond it are cut, and the answer says so


@dataclass(frozen=True, slots=True)
class Result:
    """A picture's answer, and what the metrics and the log want to know of it."""

    content: dict[str, Any] | bytes  # ready for JSON; or a PNG file, the overlay
    size: tuple[int, int]  # (height, width)
    instances: int
    batch_size: int  # of the engine run it was in


@dataclass(frozen=True, slots=True)
class _Placed:
    """A decoded picture in the network's input, and when each step ended."""

    tensor: NDArray[np.uint8]  # (h, w, 3)
    frame: Frame
    image: NDArray[np.uint8] | None  # (H, W, 3), where it is drawn upon later
    began: float
    decoded: float
    placed: float

    @property
    def pixels(self) -> int:
        """Of the network's input."""
        return int(self.tensor.shape[0] * self.tensor.shape[1])


@dataclass(frozen=True, slots=True)
class _Found:
    """What the network said of a picture."""

    manifest: Manifest
    labels: set[int] | None  # of the classes asked for; None for all
    placed: _Placed
    answer: Answer


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    """What the last step made, and when."""

    content: T
    instances: int
    size: tuple[int, int]
    answer: Answer
    began: float
    ended: float

    @property
    def batch_size(self) -> int:
        return self.answer.batch_size


class Pipeline:
    """
    Args:
        workers: where computing happens.
        max_pixels: larger images are refused from their header.
        max_wait_s: `check_admission` refuses when the workers are predicted to be busy for longer.
    """

    def __init__(self, workers: Workers, max_pixels: int, max_wait_s: float) -> None:
        self._workers = workers
        self._max_pixels = max_pixels
        self._max_wait_s = max_wait_s
        self._backlog = Backlog(workers.width)
        self._decode = Cost(1e-4, 1e-8)  # seconds per file and per byte of it
        self._masks = Cost(3e-4, 2e-5)  # seconds per picture and per instance
        self._instances = Mean(10.0)
        self._input_pixels = Mean(250_000.0)

    def check_admission(self, model: Served, priority: int) -> None:
        """Should a picture be let in now? Cheap: asked before a body is read and after.

        Args:
            priority: of its request; it waits only for what goes before it.

        Raises:
            NotReady, Draining: the model does not answer now.
            Overloaded: too many wait, or for too long; never while a worker and the engine are idle.
        """
        batcher = model.ready()[1]
        inside_s = self._backlog.wait_s(priority)  # for all steps of what is inside, mostly more than for the engine
        check_wait(inside_s, self._max_wait_s)
        batcher.check_admission(priority)

    async def segment(self, task: Task) -> Result:
        """A picture's instances, in the form its parameters ask for.

        Raises:
            RequestError, ServiceError: as the tree in `server.errors` says.
        """
        done = await self._through(task, _render, keep_image=False)
        timing = {"timing_ms": task.stages.milliseconds(), "batch_size": done.batch_size}
        return Result(done.content | timing, done.size, done.instances, done.batch_size)

    async def overlay(self, task: Task) -> Result:
        """The picture with its masks drawn in, at its full size.

        Raises:
            RequestError, ServiceError: as the tree in `server.errors` says.
        """
        done = await self._through(task, _draw, keep_image=True)
        return Result(done.content, done.size, done.instances, done.batch_size)

    async def _through(self, task: Task, last: Callable[[Task, _Found], tuple[T, int]], keep_image: bool) -> _Done[T]:
        """The line, whose last step makes the answer's content and says how many instances are in it."""
        manifest, scheduler = task.model.ready()
        labels = chosen_labels(task.parameters.classes, manifest.classes)  # an unknown one is refused before any work
        made: list[_Placed] = []  # by a worker, which goes on without a word to the event loop

        def make() -> Picture:
            placed = _decode_and_place(task, self._max_pixels, manifest.input, keep_image)
            made.append(placed)
            entry.expects(scheduler.worker_seconds(placed.pixels) + self._masks.predict(1, self._instances.value))
            return Picture(placed.tensor, placed.frame.content)

        def finish(answer: Answer) -> _Done[T]:
            began = task.stages.clock()
            content, instances = last(task, _Found(manifest, labels, made[0], answer))
            return _Done(content, instances, made[0].frame.size, answer, began, task.stages.clock())

        priority = task.parameters.priority or 0
        with self._backlog.enter(self._expected_s(task), priority) as entry:
            try:
                done = await scheduler.submit(make, finish, task.deadline, priority)
            finally:
                for placed in made:  # whatever came of it
                    self._decoded(task, placed)
        task.stages.mark("queue", done.answer.began)
        task.stages.mark("inference", done.answer.ended)
        task.stages.mark("masks", done.ended)
        self._masks.learn(done.ended - done.began, 1, done.instances)
        self._instances.learn(done.instances)
        return done

    def _decoded(self, task: Task, placed: _Placed) -> None:
        task.stages.mark("decode", placed.decoded)
        task.stages.mark("preprocess", placed.placed)
        self._decode.learn(placed.placed - placed.began, 1, len(task.payload))
        self._input_pixels.learn(placed.pixels)

    def _expected_s(self, task: Task) -> float:
        """Seconds of a worker that a picture will take, of which nothing is known but its file's size."""
        run_s = task.model.ready()[1].worker_seconds(self._input_pixels.value)
        masks_s = self._masks.predict(1, self._instances.value)
        return self._decode.predict(1, len(task.payload)) + run_s + masks_s

    async def in_thread(self, rank: Rank, work: Callable[..., T], *args: Any) -> T:
        """Compute in a worker."""
        return await self._workers.run(rank, work, *args)


def _decode_and_place(task: Task, max_pixels: int, spec: AnyInput, keep_image: bool) -> _Placed:
    """One hop for both, so that the full-size picture lives no longer than it must."""
    began = task.stages.clock()
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
    return _Placed(tensor, frame, image, began, decoded, task.stages.clock())


def _segments(task: Task, found: _Found) -> list[Segment]:
    """All segments that were asked for, best first."""
    manifest, threshold = found.manifest, task.parameters.score_threshold
    bind(found.answer.outputs, manifest.masks.legend)
    min_score = manifest.defaults.score_threshold if threshold is None else threshold
    segments = list(manifest.masks.decode(found.answer.outputs, found.placed.frame, min_score))
    if any(not 0 <= segment.label < len(manifest.classes) for segment in segments):
        raise ModelOutputInvalid(f"the network answered a class that is none of the {len(manifest.classes)} it has")
    if found.labels is not None:
        segments = [segment for segment in segments if segment.label in found.labels]
    return sorted(segments, key=lambda segment: -segment.score)


def _render(task: Task, found: _Found) -> tuple[dict[str, Any], int]:
    """From tensors to the answer's content, its large parts as JSON already, all but the timing; and its instances."""
    segments = _segments(task, found)
    manifest, size = found.manifest, found.placed.frame.size
    render = FORMATS[task.parameters.masks]
    kept = segments[: task.parameters.max_instances]
    content = render(kept, size, manifest.classes)
    parts = _to_json(content)
    while kept and len(orjson.dumps(parts)) > task.max_bytes:
        kept = kept[: _how_many_fit(content, task.max_bytes)]
        content = render(kept, size, manifest.classes)
        parts = _to_json(content)
    head = {
        "model": manifest.name,
        "version": str(manifest.version),
        "image": {"width": size[1], "height": size[0]},
    }
    return head | parts | {"truncated": len(kept) < len(segments)}, len(kept)


def _to_json(content: dict[str, Any]) -> dict[str, orjson.Fragment]:
    """Encoded here, in a worker; the event loop then only copies."""
    return {key: orjson.Fragment(orjson.dumps(value)) for key, value in content.items()}


def _how_many_fit(content: dict[str, Any], max_bytes: int) -> int:
    """How many instances, best first, fit an answer of `max_bytes`; fewer than there are."""
    instances = content["instances"]
    left = max_bytes - len(orjson.dumps(content | {"instances": []}))
    for count, instance in enumerate(instances):
        left -= len(orjson.dumps(instance)) + 1
        if left < 0:
            return count
    return len(instances) - 1


def _draw(task: Task, found: _Found) -> tuple[bytes, int]:
    """The overlay, and how many instances are in it."""
    image = found.placed.image
    if image is None:
        raise RuntimeError("an overlay without its picture. This is a bug in the pipeline.")
    segments = _segments(task, found)[: task.parameters.max_instances]
    drawing = overlay.draw(image, segments)
    if len(drawing) > task.max_bytes:
        size = f"the overlay is {len(drawing) / 1e6:.0f} MB; the limit is {task.max_bytes / 1e6:g} MB"
        raise ImageTooLarge(f"{size} (MASKSERVE_MAX_RESPONSE_MB); ask for JSON and draw it yourself")
    return drawing, len(segments)
