"""The engine process's way to its fronts: jobs come in over each connection and meet in the schedulers.

Every job is answered exactly once, also one that was cancelled: its place in the front's memory is ours until then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import cast

import numpy as np

from server.errors import EngineFailed, Internal, Overloaded, ServiceError
from server.processes.arena import ALIGNMENT, Arena, Window
from server.processes.wire import Answered, Cancel, Failed, Free, Job, Message, Unpacker, lay_out, pack
from server.repository import Served
from server.scheduling import Answer, Picture

log = logging.getLogger("maskserve")

ROOM_S = 30.0  # how long an answer waits until its front has read others


class Front(asyncio.Protocol):
    """One connection to one front. Used on the event loop.

    Args:
        models: as the supervisor lists them.
        tensors, outputs: descriptors of shared files, ours to read and ours to write; they stay the caller's.
        writer: one thread that copies outputs, so that the next batch need not wait for it.
        changed: called when a model's queue has become longer or shorter.
    """

    def __init__(
        self, models: list[Served], tensors: int, outputs: int, writer: Executor, changed: Callable[[int], None]
    ) -> None:
        self._models = models
        self._tensors = Window(tensors, writable=False)
        self._outputs = Window(outputs, writable=True)
        self._arena = Arena(self._outputs.size)
        self._room = asyncio.Event()
        self._writer = writer
        self._changed = changed
        self._unpacker = Unpacker()
        self._waiting: dict[int, asyncio.Timeout] = {}  # jobs that can still be cancelled
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._unpacker.feed(data):
                self._receive(message)
        except ValueError as error:
            log.error("a front talks nonsense: %s. This is a bug in server/processes", error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Its front is gone: nobody waits for its jobs, and both files go when the last view of them does."""
        self._transport = None
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _receive(self, message: Message) -> None:
        if isinstance(message, Job):
            task = asyncio.get_running_loop().create_task(self._serve(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(message, Cancel):
            if message.number in self._waiting:
                self._waiting[message.number].reschedule(asyncio.get_running_loop().time())
        elif isinstance(message, Free):
            self._arena.free(message.offset)
            self._outputs.give_back(self._arena.settle())
            self._room.set()
        else:
            raise ValueError(f"a {type(message).__name__} from a front")

    async def _serve(self, job: Job) -> None:
        try:
            answer = await self._run(job)
            answered = await self._write(job.number, answer)
        except ServiceError as error:
            if error.status == 500:
                log.error("a picture failed in the engine", exc_info=error)
            self._send(Failed(job.number, error.code, str(error), error.retry_after_s))
        except TimeoutError:
            self._send(Failed(job.number, Internal.code, "cancelled", None))  # nobody reads this
        except Exception as error:
            log.error("a job failed. This is a bug in the engine process", exc_info=error)
            self._send(Failed(job.number, Internal.code, "this is a bug in the server", None))
        else:
            self._send(answered)
        finally:
            self._changed(job.model)

    async def _run(self, job: Job) -> Answer:
        """
        Raises:
            TimeoutError: its caller has gone.
        """
        _, batcher = self._models[job.model].ready()
        tensor = self._tensors.view(job.offset, (*job.size, 3), np.uint8)
        cancelled = asyncio.timeout(None)
        try:
            async with cancelled:
                self._waiting[job.number] = cancelled
                asyncio.get_running_loop().call_soon(self._changed, job.model)
                return await batcher.submit(Picture(tensor, job.content), _as_it_is, job.deadline, job.priority)
        finally:
            del self._waiting[job.number]

    async def _write(self, number: int, answer: Answer) -> Answered:
        """
        Raises:
            EngineFailed, Overloaded: no room for the outputs, ever or for now.
        """
        tensors, size = lay_out(answer.outputs, ALIGNMENT)
        if size > self._arena.capacity:
            limit = f"the limit is {self._arena.capacity / 1e6:.0f} MB (MASKSERVE_SHARED_MB)"
            raise EngineFailed(f"the network's answer to this picture is {size / 1e6:.0f} MB; {limit}")
        try:
            async with asyncio.timeout(ROOM_S):
                while (offset := self._arena.allocate(size)) is None:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            raise Overloaded("answers wait to be read, no room for another", retry_after_s=1.0) from None

        def copy() -> None:
            for tensor, array in zip(tensors, answer.outputs.values(), strict=True):
                np.copyto(self._outputs.view(offset + tensor.offset, tensor.shape, tensor.dtype), array)

        await asyncio.get_running_loop().run_in_executor(self._writer, copy)
        return Answered(number, answer.began, answer.ended, answer.batch_size, offset, tensors)

    def _send(self, message: Message) -> None:
        if self._transport is not None:
            self._transport.write(pack(message))


def _as_it_is(answer: Answer) -> Answer:
    """What the front makes of it is made there."""
    return answer
