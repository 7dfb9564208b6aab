"""One batch through an engine: rows for jobs, and where it fails its halves, until the culprit is alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import DeviceFault, ServiceError
from server.scheduling.queue import Waiting

Run = Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One image's tensors, and when its batch began and ended on the scheduler's clock."""

    outputs: dict[str, NDArray[Any]]
    began: float
    ended: float
    batch_size: int


class Picture(NamedTuple):
    """A picture in the network's input."""

    tensor: NDArray[np.uint8]  # (h, w, 3)
    content: tuple[int, int]  # (height, width) of the picture inside the tensor


@dataclass(eq=False, slots=True)
class Job:
    """A picture, what is to be made of its answer, and who waits for that."""

    picture: Picture
    finish: Callable[[Answer], Any]
    future: asyncio.Future[Any]


Item = Waiting[Job]


def fail(item: Item, error: ServiceError, cause: Exception | None = None) -> None:
    """Tell whoever waits, unless they have gone. On their event loop."""
    if not item.work.future.done():
        error.__cause__ = cause
        item.work.future.set_exception(error)


@dataclass(eq=False, slots=True)
class Ran:
    """One run of the engine and what came of it."""

    items: Sequence[Item]
    alone: bool
    began: float
    ended: float = 0.0
    rows: list[dict[str, NDArray[Any]] | None] = field(default_factory=list)
    failure: Exception | None = None

    @property
    def pixels(self) -> int:
        return sum(item.pixels for item in self.items)


def run_halving(run: Run, again: Run, ran: Ran, clock: Callable[[], float]) -> list[Ran]:
    """Run a batch; where it fails, its halves, down to the one that cannot be run. A device that fails ends that: no
    picture is to blame, and none can be run.

    Args:
        run: for the batch.
        again: for its halves.
        ran: the batch; what comes of it is written there.

    Returns:
        `ran` and all runs that followed from it.
    """
    ran.began = clock()
    try:
        ran.rows = _stack_and_run(run, [item.work for item in ran.items])
    except Exception as error:
        ran.failure = error
    ran.ended = clock()
    if ran.failure is None or len(ran.items) == 1 or isinstance(ran.failure, DeviceFault):
        return [ran]
    half = len(ran.items) // 2
    halves = (Ran(items, False, ran.ended) for items in (ran.items[:half], ran.items[half:]))
    return [ran, *(deeper for part in halves for deeper in run_halving(again, again, part, clock))]


def _stack_and_run(run: Run, jobs: list[Job]) -> list[dict[str, NDArray[Any]] | None]:
    """One row of outputs per job, None where they are not finite.

    One picture alone is read where it lies. Once its caller has gone somebody else may write there; nobody reads that
    answer.
    """
    tensors = [job.picture.tensor for job in jobs]
    images = np.stack(tensors) if len(tensors) > 1 else tensors[0][None]  # (B, h, w, 3)
    sizes = np.array([job.picture.content for job in jobs], np.int32)  # (B, 2)
    outputs = run({"images": images, "sizes": sizes})
    rows = [{name: tensor[i] for name, tensor in outputs.items()} for i in range(len(jobs))]
    return [row if all(np.isfinite(tensor).all() for tensor in row.values()) else None for row in rows]
