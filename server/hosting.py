"""The models of this process: loaded one after the other in the background, proven, given a scheduler, closed in order.

    Hosting.start()   found -> loading -> ready, or failed with a reason
    Hosting.close()   every scheduler runs what waits; then the loader is joined and the engines are closed

An engine may hang: a run that never ends, in a driver or a library. Or its device fails, and then nothing that this
process asks of it can be trusted. Nothing here can cure either, so the `Guarded` scheduler answers 504 (or 503) to
everybody inside and 503 to whoever comes later, and `Hosting.broken` tells the process to end, for another to begin.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from server import memory
from server.engines.choice import Wanted
from server.errors import DeadlineExceeded, DeviceFault, NotReady, ServiceError
from server.loading import Loaded, load
from server.metrics import Metrics
from server.repository import Repository, Served, check_digest
from server.scheduling import Answer, Observer, Picture, Run, Scheduler
from server.scheduling.scheduler import DEVICE_FAILED
from server.settings import Settings
from server.watchdog import RunClock, until_it_hangs
from server.workers import Workers, tell

log = logging.getLogger("maskserve")

T = TypeVar("T")

Load = Callable[[Path, Wanted], Loaded]


class Guarded:
    """A scheduler whose callers are let go when its engine hangs or its device fails; a `Batcher`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._inside: set[asyncio.Timeout] = set()
        self._late: ServiceError | None = None  # what whoever comes later gets, once all is over
        self._inside_gets: Callable[[], ServiceError] = _hangs

    def check_admission(self, priority: int = 0) -> None:
        if self._late is not None:
            raise NotReady(str(self._late), self._late.retry_after_s)
        self.scheduler.check_admission(priority)

    def worker_seconds(self, pixels: float) -> float:
        return self.scheduler.worker_seconds(pixels)

    async def submit(
        self,
        picture: Picture | Callable[[], Picture],
        finish: Callable[[Answer], T],
        deadline: float | None = None,
        priority: int = 0,
    ) -> T:
        if self._late is not None:
            self.check_admission()
        patience = asyncio.timeout(None)
        try:
            async with patience:
                self._inside.add(patience)
                return await self.scheduler.submit(picture, finish, deadline, priority)
        except TimeoutError:
            raise self._inside_gets() from None
        finally:
            self._inside.discard(patience)

    def give_up(self, inside: Callable[[], ServiceError], late: NotReady) -> None:
        """Let everybody go, and nobody in.

        Args:
            inside: makes what those inside get.
            late: what whoever comes from now on gets.
        """
        self._late, self._inside_gets = late, inside
        for patience in self._inside:
            patience.reschedule(asyncio.get_running_loop().time())

    async def close(self, limit_s: float) -> None:
        await self.scheduler.close(limit_s if self._late is None else 0.0)


class Hosting:
    """Use it on one event loop.

    Args:
        load: from a bundle's folder and what is wanted of engines to a proven one.
        workers: run the engines; not closed here.
        threads: cores that a lone run may use, these and those of other processes.
        crowded: whether other processes have work for the cores too; asked before every run, in a worker.
        mark: hears of every model when its engine begins to run, and 0.0 when it ends; in the engine's thread.
        self_watch: whether a run that hangs is found here. A process that somebody else watches is ended from outside.
        on_settled: called when every model is ready, or has failed; before anybody can be told so.
    """

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        metrics: Metrics,
        load: Load = load,
        *,
        workers: Workers,
        threads: int | None = None,
        crowded: Callable[[], bool] = lambda: False,
        mark: Callable[[Served, float], None] = lambda model, since: None,
        self_watch: bool = True,
        on_settled: Callable[[], None] = lambda: None,
    ) -> None:
        self.broken = False  # an engine hangs, or its device failed
        self.settled = False  # every model is ready, or has failed
        self._workers = workers
        self._threads = threads or workers.width
        self._crowded = crowded
        self._settings = settings
        self._repository = repository
        self._metrics = metrics
        self._load = load
        self._mark = mark
        self._self_watch = self_watch
        self._on_settled = on_settled
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._loaded: dict[tuple[str, str], tuple[Loaded, RunClock]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to load; `settled` tells when that is over."""
        self._tasks.append(asyncio.create_task(self._load_all(), name="loading"))

    async def close(self, limit_s: float) -> None:
        for task in self._tasks:
            task.cancel()
        for model in self._repository.models:
            if model.batcher is not None:
                await model.batcher.close(limit_s)
        self._loader.shutdown(wait=not self.broken)
        for loaded, clock in self._loaded.values():
            if not (self.broken or clock.since):  # a device that failed may end the process for being asked to close
                loaded.engine.close()
        for model in self._repository.models:
            if model.condition.state != "failed":
                model.condition.become("closed", "the server is shutting down")

    async def _load_all(self) -> None:
        settings = self._settings
        wanted = Wanted(
            self._threads,
            settings.engine,
            settings.max_batch,
            int(settings.max_batch_megapixels * 1e6),
            settings.cuda_graphs,
        )
        for model in self._repository.models:
            self._metrics.model_ready.labels(*model.key).set(0)
            self._metrics.begin_at_zero(model.key)
        for model in self._repository.models:
            model.condition.become("loading", "is being loaded and checked")
            work = asyncio.get_running_loop().run_in_executor(
                self._loader, self._load_one, model.folder, replace(wanted, graph_file=model.graph_file)
            )
            try:
                loaded = await work
                check_digest(model)
                self._serve(model, loaded)
            except DeviceFault as fault:
                self._device_failed(model, None, fault)
                return
            except Exception as error:
                self._repository.fail(model, error)
        self.settled = True  # with no turn of the loop since the last model became ready
        self._on_settled()
        gc.collect()
        gc.freeze()  # what has been loaded stays: without this the collector walks it now and then, for 25 ms

    def _load_one(self, folder: Path, wanted: Wanted) -> Loaded:
        """In the loader's thread. What loading took goes back before anybody can ask for a run: what the first runs
        take would lie between, and much of it would stay for good."""
        loaded = self._load(folder, wanted)
        loaded.engine.give_back()
        memory.give_back()
        return loaded

    def _serve(self, model: Served, loaded: Loaded) -> None:
        """Give a proven model its scheduler."""
        manifest, key, settings, metrics = loaded.bundle.manifest, model.key, self._settings, self._metrics
        engine = loaded.engine
        most = min(loaded.max_batch or manifest.max_batch, manifest.max_batch)
        precision = loaded.precision or manifest.precision
        clock = RunClock(lambda since: self._mark(model, since))
        self._loaded[key] = loaded, clock
        depth, wasted = metrics.queue_depth.labels(*key), metrics.wasted_images.labels(*key)
        batch, busy = metrics.batch_size.labels(*key), metrics.engine_busy.labels(*key)

        def ran(size: int, seconds: float) -> None:
            batch.observe(size)
            busy.inc(seconds)

        scheduler = Scheduler(
            self._watched(model, clock.timed(engine.run)),
            self._workers,
            max_batch=min(settings.max_batch or most, most),
            max_batch_pixels=int(settings.max_batch_megapixels * 1e6),
            max_queue=settings.queue_limit * settings.max_images,
            max_wait_s=settings.max_wait_ms / 1000,
            run_s=loaded.run_s,
            pace_s=loaded.pace_s,
            tried=loaded.tried or most,
            slots=min(engine.slots, self._workers.width),
            delay_s=settings.batch_delay_ms / 1000,
            run_alone=self._watched(model, clock.timed(engine.run_alone)),
            crowded=self._crowded,
            observer=Observer(batch=ran, depth=depth.set, wasted=wasted.inc),
        )
        guarded = Guarded(scheduler)
        model.manifest, model.batcher = manifest, guarded
        model.condition.become("ready", "golden sample reproduced", loaded.engine.name, loaded.note)
        metrics.model_info.labels(*key, manifest.masks.kind, loaded.engine.name, precision).set(1)
        metrics.model_ready.labels(*key).set(1)
        metrics.queue_limit.labels(*key).set(settings.queue_limit * settings.max_images)
        why = f" ({loaded.note})" if loaded.note else ""
        log.info("model %s/%s is ready on %s with %d threads%s", *key, engine.name, self._workers.width, why)
        if self._self_watch:
            self._tasks.append(asyncio.create_task(self._watch(model, guarded, clock), name="engine watch"))

    async def _watch(self, model: Served, guarded: Guarded, clock: RunClock) -> None:
        limit_s = self._settings.engine_timeout_s
        await until_it_hangs(clock, limit_s)
        self.broken = True
        log.critical(
            "the engine of model %s/%s hangs: a run has lasted more than %g s (MASKSERVE_ENGINE_TIMEOUT_S); "
            "its requests get 504, and this process has to end",
            *model.key,
            limit_s,
        )
        self._metrics.model_ready.labels(*model.key).set(0)
        model.condition.become("failed", f"the engine hangs: a run has lasted more than {limit_s:g} s")
        later = "the engine does not answer any more, the server has to start again"
        guarded.give_up(_hangs, NotReady(later, retry_after_s=10.0))
        self._workers.give_up(_hangs)

    def _watched(self, model: Served, run: Run) -> Run:
        """An engine's `run`, whose device is given up for lost when it says so."""
        loop = asyncio.get_running_loop()

        def watched(inputs: dict[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
            try:
                return run(inputs)
            except DeviceFault as fault:
                tell(loop, self._device_failed, model, model.batcher, fault)
                raise

        return watched

    def _device_failed(self, model: Served, batcher: object, fault: DeviceFault) -> None:
        """On the event loop: say so, let everybody go, and have this process end."""
        if model.condition.state == "failed":
            return
        self.broken = True
        log.critical(
            "the device of model %s/%s failed: %s; its requests get 503, and this process has to end",
            *model.key,
            fault,
            exc_info=fault,
        )
        self._metrics.model_ready.labels(*model.key).set(0)
        model.condition.become("failed", f"the device failed: {fault}")
        if isinstance(batcher, Guarded):
            batcher.give_up(_device_failed, _device_failed())


def _hangs() -> ServiceError:
    return DeadlineExceeded("the engine did not answer in time", retry_after_s=0.0)


def _device_failed() -> NotReady:
    return NotReady(DEVICE_FAILED, retry_after_s=10.0)
