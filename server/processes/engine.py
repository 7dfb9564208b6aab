"""`python -m server.processes.engine`: the process that holds the networks. Started by the supervisor.

1. the board and the connections to the fronts, so that they can be told "not yet"
2. every model is loaded, proven and given its scheduler, as in the single-process form
3. SIGTERM, when the fronts have ended: schedulers, engines, 0
   or the device fails: those inside get 503, schedulers, 1; the supervisor starts another
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from server.cores import usable_cores
from server.hosting import Guarded, Hosting, Load
from server.processes.board import BoardCondition
from server.processes.child import Child, run
from server.processes.serving import Front
from server.processes.wire import INTRODUCTION
from server.repository import Served
from server.watchdog import LoopWatch
from server.workers import Workers

log = logging.getLogger("maskserve")

HEARTBEAT_S = 0.05
PUBLISH_S = 0.002  # after a change, so that a burst is one


class Engine:
    """What the event loop of the engine process does."""

    def __init__(self, child: Child, load: Load) -> None:
        self._child = child
        self._board = child.board
        self._models = child.repository.models
        for number, model in enumerate(self._models):
            model.condition = BoardCondition(child.board, number)
        self._workers = Workers(child.settings.threads or usable_cores())
        self._hosting = Hosting(
            child.settings,
            child.repository,
            child.metrics,
            load,
            workers=self._workers,
            mark=self._mark,
            self_watch=False,
        )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._connections: dict[int, Front] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed: set[int] = set()
        self._publishing: asyncio.TimerHandle | None = None
        self._end = asyncio.Event()

    async def live(self) -> int:
        """
        Returns:
            The exit code: 1 where the device failed, and another process must take over.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        watch = LoopWatch(self._child.metrics.event_loop_lag.observe)
        self._child.control.setblocking(False)
        loop.add_reader(self._child.control, self._hear)
        await self._hosting.start()
        while not self._end.is_set():
            self._beat()
            if self._hosting.broken:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), HEARTBEAT_S)
        log.info("finishing what the engines have")
        await self._hosting.close(self._child.settings.drain_s)
        self._workers.close()
        for connection in self._connections.values():
            connection.close()
        self._writer.shutdown()
        watch.close()
        for name in ("running_since", "free_at"):
            self._board.models[name] = 0.0
        return 1 if self._hosting.broken else 0

    def _mark(self, model: Served, since: float) -> None:
        self._board.models["running_since"][self._models.index(model)] = since

    def _beat(self) -> None:
        """Twenty times a second: alive, and this busy."""
        if self._hosting.settled:
            self._board.engine["settled"] = self._child.spec.generation
        for number in range(len(self._models)):
            self._publish(number)
        self._board.engine_process["heartbeat"] = time.perf_counter()

    def _note(self, model: int) -> None:
        self._changed.add(model)
        if self._publishing is None:
            self._publishing = asyncio.get_running_loop().call_later(PUBLISH_S, self._publish_changed)

    def _publish_changed(self) -> None:
        self._publishing = None
        for model in self._changed:
            self._publish(model)
        self._changed.clear()

    def _publish(self, model: int) -> None:
        batcher = self._models[model].batcher
        if isinstance(batcher, Guarded):
            row, line, now = self._board.models[model : model + 1], batcher.scheduler.line, time.perf_counter()
            row["free_at"] = [now + wait_s if wait_s else 0.0 for wait_s in line.waits_s()]
            row["image_s"] = line.image_wait_s()
            row["told_at"] = now

    def _hear(self) -> None:
        """The supervisor introduces a front."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._child.control, INTRODUCTION.size, 3)
        except BlockingIOError:
            return
        if len(data) < INTRODUCTION.size:
            asyncio.get_running_loop().remove_reader(self._child.control)
            log.error("the supervisor is gone; ending")
            self._end.set()
            return
        task = asyncio.get_running_loop().create_task(self._connect(INTRODUCTION.unpack(data)[0], *descriptors))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, number: int, sock: int, tensors: int, outputs: int) -> None:
        if number in self._connections:
            self._connections[number].close()
        front = Front(self._models, tensors, outputs, self._writer, self._note)
        os.close(tensors)
        os.close(outputs)
        await asyncio.get_running_loop().create_unix_connection(lambda: front, sock=socket.socket(fileno=sock))
        self._connections[number] = front


def work(child: Child) -> int:
    module, name = child.spec.load.split(":")
    load: Load = getattr(importlib.import_module(module), name)

    async def live() -> int:
        return await Engine(child, load).live()

    factory = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(live())


if __name__ == "__main__":
    run(work)
