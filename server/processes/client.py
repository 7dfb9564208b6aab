"""A front's way to the engine process: a `Batcher` for every model over one connection.

    submit   a place in the arena -> tensor copied -> Job sent -> ... -> Answered: arrays, views of shared memory

A job ends in one of four ways: Answered, Failed, the connection ends (503, or 504 when the engine hung), or its caller
goes (Cancel). Its place in the arena is free again when the engine process has said its last word about it, or is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from server.errors import DeadlineExceeded, EngineFailed, NotReady, Overloaded, ServiceError
from server.processes.arena import Arena, Window
from server.processes.board import Board
from server.processes.wire import INTRODUCTION, Answered, Cancel, Failed, Free, Job, Message, Unpacker, pack
from server.scheduling import Answer, Picture

log = logging.getLogger("maskserve")

T = TypeVar("T")

FIRST_WAIT_S = 2.0  # that a front gives its first connection before it accepts requests


@dataclass(frozen=True, slots=True)
class _Pending:
    model: int
    offset: int
    future: asyncio.Future[Answer]


class Connection(asyncio.Protocol):
    """To one generation of the engine process. Used on the event loop.

    Args:
        generation: which one; the board says who hung by it.
        tensors, outputs: descriptors of shared files, ours to write and ours to read; they stay the caller's.
        lost: called once, when it has ended.
    """

    def __init__(
        self, board: Board, generation: int, tensors: int, outputs: int, lost: Callable[[Connection], None]
    ) -> None:
        self._board = board
        self._generation = generation
        self._tensors = Window(tensors, writable=True)
        self._outputs = Window(outputs, writable=False)
        self._arena = Arena(self._tensors.size)
        self._lost = lost
        self._unpacker = Unpacker()
        self._pending: dict[int, _Pending] = {}
        self._numbers = itertools.count(1)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._unpacker.feed(data):
                self._receive(message)
        except ValueError as error:
            log.error("the engine process talks nonsense: %s. This is a bug in server/processes", error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(self._why(pending.model))
        self._pending.clear()
        self._lost(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def run(self, model: int, picture: Picture, deadline: float | None, priority: int) -> Answer:
        """One job from end to end.

        Raises:
            Overloaded, EngineFailed: no place for the tensor, now or ever.
            ServiceError: what the engine process says, or that it has ended.
        """
        tensor = picture.tensor
        if tensor.nbytes > self._arena.capacity:
            limit = f"the limit is {self._arena.capacity / 1e6:.0f} MB (MASKSERVE_SHARED_MB)"
            raise EngineFailed(f"the network's view of this picture is {tensor.nbytes / 1e6:.0f} MB; {limit}")
        offset = self._arena.allocate(tensor.nbytes)
        if offset is None:
            limit = f"{self._arena.used / 1e6:.0f} MB of pictures wait for the engine, no room for another"
            raise Overloaded(f"{limit} (MASKSERVE_SHARED_MB)", retry_after_s=1.0)
        np.copyto(self._tensors.view(offset, tensor.shape, np.uint8), tensor)
        number = next(self._numbers)
        size = int(tensor.shape[0]), int(tensor.shape[1])
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._pending[number] = _Pending(model, offset, future)
        self._send(Job(number, model, offset, size, picture.content, deadline, priority))
        try:
            return await future
        except asyncio.CancelledError:
            if number in self._pending:
                self._send(Cancel(number))
            raise

    def _receive(self, message: Message) -> None:
        if not isinstance(message, Answered | Failed):
            raise ValueError(f"a {type(message).__name__} from the engine")
        pending = self._pending.pop(message.number, None)
        if pending is None:
            raise ValueError(f"an answer to job {message.number}, which is not open")
        self._arena.free(pending.offset)
        self._tensors.give_back(self._arena.settle())
        if isinstance(message, Failed):
            if not pending.future.done():
                pending.future.set_exception(message.error())
        else:
            outputs = self._read(message)
            if not pending.future.done():
                pending.future.set_result(Answer(outputs, message.began, message.ended, message.batch_size))

    def _read(self, message: Answered) -> dict[str, NDArray[Any]]:
        """Views of an answer's tensors; when the last of them is gone, in whichever thread, so is its place."""
        end = max((tensor.offset + _bytes(tensor.shape, tensor.dtype) for tensor in message.tensors), default=0)
        place = self._outputs.view(message.offset, (end,), np.uint8)
        root = place
        while isinstance(root.base, np.ndarray):  # which numpy lets every view refer to
            root = root.base
        weakref.finalize(root, self._release, message.offset).atexit = False
        return {
            tensor.name: place[tensor.offset : tensor.offset + _bytes(tensor.shape, tensor.dtype)]
            .view(tensor.dtype)
            .reshape(tensor.shape)
            for tensor in message.tensors
        }

    def _release(self, offset: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the connection
            self._loop.call_soon_threadsafe(self._send, Free(offset))

    def _send(self, message: Message) -> None:
        if self._transport is not None:
            self._transport.write(pack(message))

    def _why(self, model: int) -> ServiceError:
        if int(self._board.models["hung"][model]) == self._generation:
            return DeadlineExceeded("the engine did not answer in time", retry_after_s=0.0)
        return NotReady("the engine process ended while it had this picture; try again", retry_after_s=1.0)


class Link:
    """The `Backend` of a front: whichever connection there is to whichever engine process.

    Args:
        control: from the supervisor, who sends the ends of new connections; its end ends the front.
    """

    broken = False  # not here

    def __init__(self, board: Board, control: socket.socket) -> None:
        self._board = board
        self._control = control
        self._connection: Connection | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._first = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def connection(self) -> Connection:
        """
        Raises:
            NotReady: there is no engine process now.
        """
        if self._connection is None:
            raise NotReady("the engine process is being started; try again", retry_after_s=1.0)
        return self._connection

    async def start(self) -> None:
        """Wait a moment for the first connection, so that a front that follows a dead one refuses nobody."""
        self._control.setblocking(False)
        asyncio.get_running_loop().add_reader(self._control, self._hear)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._first.wait(), FIRST_WAIT_S)

    async def close(self, limit_s: float) -> None:
        asyncio.get_running_loop().remove_reader(self._control)
        if self._connection is not None:
            self._connection.close()

    def _hear(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, INTRODUCTION.size, 3)
        except BlockingIOError:
            return
        if len(data) < INTRODUCTION.size:
            asyncio.get_running_loop().remove_reader(self._control)
            log.error("the supervisor is gone; ending")
            signal.raise_signal(signal.SIGTERM)
            return
        task = asyncio.get_running_loop().create_task(self._connect(INTRODUCTION.unpack(data)[1], *descriptors))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, generation: int, sock: int, tensors: int, outputs: int) -> None:
        if self._connection is not None:
            self._connection.close()
        connection = Connection(self._board, generation, tensors, outputs, self._on_lost)
        os.close(tensors)
        os.close(outputs)
        await asyncio.get_running_loop().create_unix_connection(lambda: connection, sock=socket.socket(fileno=sock))
        self._connection = connection
        self._first.set()

    def _on_lost(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
