"""The models that are served: found on disk, verified, loaded, and proven on their golden sample before they are ready.

found -> loading -> ready            or  -> failed, with a reason that /readyz repeats
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.agreement import off
from server.engines import Engine, Tensors
from server.engines.choice import Candidate, Here, Wanted, candidates, here
from server.errors import (
    BadManifest,
    BadParameter,
    DeviceFault,
    DeviceFull,
    GoldenMismatch,
    HashMismatch,
    NoEngine,
    NotReady,
    ShapeRefused,
    StartupError,
    UnknownModel,
    UnknownVersion,
)
from server.manifest import GOLDEN_FILE, MANIFEST_FILE, PLAN_FILE, Bundle, Manifest, read_bundle, sha256_of
from server.masks import bind
from server.scheduling import Answer
from server.scheduling.scheduler import GUESS_RUN_S

log = logging.getLogger("maskserve")

T = TypeVar("T")

State = Literal["loading", "ready", "failed", "closed"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine that has reproduced its bundle's golden sample."""

    bundle: Bundle
    engine: Engine
    pace_s: float  # seconds per input pixel of a run, and ...
    run_s: float = GUESS_RUN_S  # ... seconds of every run besides, both of the warm-up
    max_batch: int | None = None  # images that the engine takes, where that is fewer than the bundle says
    precision: str | None = None  # that the engine computes in, where that is not the bundle's
    note: str = ""  # why it is not a better engine; for people, and without paths


class Batcher(Protocol):
    """Where pictures meet in batches: the `Scheduler` of this process, or the way to that of the engine process."""

    def check_admission(self) -> None:
        """
        Raises:
            NotReady, Draining, Overloaded: a request that came now would be refused.
        """

    def worker_seconds(self, pixels: float) -> float:
        """What an image of `pixels` takes of this process' workers besides decoding and masks."""

    async def submit(
        self,
        tensor: NDArray[np.uint8],
        content: tuple[int, int],
        finish: Callable[[Answer], T],
        deadline: float | None = None,
        priority: int = 0,
    ) -> T:
        """See `Scheduler.submit`."""

    async def close(self, limit_s: float) -> None:
        """Refuse new jobs and finish those that wait, for at most `limit_s`."""


class Condition(Protocol):
    """How a model is doing; several processes may read one."""

    @property
    def state(self) -> State: ...

    @property
    def reason(self) -> str:
        """For people."""

    @property
    def engine(self) -> str:
        """The runtime and its device; empty until the model was ready once."""

    @property
    def note(self) -> str:
        """Why no better engine was chosen; empty where there is nothing to say."""

    def become(self, state: State, reason: str, engine: str | None = None, note: str = "") -> None:
        """Without `engine` that and the note stay as they were."""


@dataclass(slots=True)
class Known:
    """A condition known in one process."""

    state: State = "loading"
    reason: str = "waits to be loaded"
    engine: str = ""
    note: str = ""

    def become(self, state: State, reason: str, engine: str | None = None, note: str = "") -> None:
        self.state, self.reason = state, reason
        if engine is not None:
            self.engine, self.note = engine, note


@dataclass(slots=True)
class Served:
    """One version of one model, and how it is doing."""

    name: str
    version: int
    folder: Path
    condition: Condition = field(default_factory=Known)
    manifest: Manifest | None = None
    batcher: Batcher | None = None
    digest: str | None = None  # sha256 of the manifest that all processes must read; None where there is one process
    graph_file: int | None = None  # of `engines.ready_graph`, for all processes; None where there is one

    @property
    def key(self) -> tuple[str, str]:
        """The `model` and `version` labels."""
        return self.name, str(self.version)

    def ready(self) -> tuple[Manifest, Batcher]:
        """
        Raises:
            NotReady: still loading, or failed to.
        """
        state = self.condition.state
        if state != "ready" or self.manifest is None or self.batcher is None:
            raise NotReady(f"model '{self.name}' version {self.version} is {state}", retry_after_s=1.0)
        return self.manifest, self.batcher


def load(folder: Path, wanted: Wanted, machine: Callable[[], Here] = here) -> Loaded:
    """Verify a bundle, open it with the engine that is wanted, and hold that against its golden sample.

    Blocks for seconds. Of several candidates the first that reproduces the sample serves, and says what became of those
    before it: refused, or failed in a way that no runtime documents.

    Raises:
        StartupError: anything is wrong with it.
        DeviceFault: the GPU failed; no other candidate is tried in this process.
    """
    bundle = read_bundle(folder, leave_out={PLAN_FILE})  # who opens the plan verifies it
    order, note = candidates(bundle, wanted, machine())
    passed_over = [note] if note else []
    for candidate in order[:-1]:
        try:
            return _open_and_prove(bundle, candidate, passed_over)
        except DeviceFault:
            raise
        except Exception as error:
            bug = None if isinstance(error, StartupError) else error
            which = folder.parent.name, folder.name, candidate.name
            log.warning("model %s/%s is not served by %s: %s", *which, error, exc_info=bug)
            told = str(error) if isinstance(error, NoEngine) else f"{type(error).__name__}, see the log"
            passed_over.append(f"not {candidate.name}: {told}")
    return _open_and_prove(bundle, order[-1], passed_over)


def _open_and_prove(bundle: Bundle, candidate: Candidate, passed_over: list[str]) -> Loaded:
    """
    Raises:
        StartupError: it cannot be opened, or answers something else than the golden sample.
        DeviceFault: the GPU failed.
    """
    opened = candidate.open()
    engine = opened.engine
    try:
        sample = prove_golden(bundle, engine, opened.precision)
        pace_s, run_s = measure(engine, sample, opened.max_batch)
    except DeviceFull as error:
        engine.close()
        raise NoEngine(f"{error}: it opened, and has no room left to run") from error
    except ShapeRefused as error:
        engine.close()
        raise NoEngine(f"it does not take the golden sample: {error}") from error
    except BaseException:
        engine.close()
        raise
    return Loaded(bundle, engine, pace_s, run_s, opened.max_batch, opened.precision, "; ".join(passed_over))


def measure(
    engine: Engine, sample: Tensors, max_batch: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Run one image and two, each of them warm: a GPU's first run of a shape tells nothing of the next.

    Returns:
        Seconds per input pixel, and seconds per run besides.
    """

    def seconds(inputs: Tensors) -> float:
        turns = []
        for _ in range(2):
            began = clock()
            engine.run(inputs)
            turns.append(clock() - began)
        return min(turns)

    pixels = sample["images"].shape[1] * sample["images"].shape[2]
    one = seconds(sample)
    if max_batch < 2:
        return one / pixels, GUESS_RUN_S
    two = seconds({name: np.repeat(tensor, 2, axis=0) for name, tensor in sample.items()})
    each = min(max(two - one, one / 10), one)  # a tenth: a measurement this short is never better than that
    return each / pixels, max(one - each, GUESS_RUN_S)


def prove_golden(bundle: Bundle, engine: Engine, precision: str | None = None) -> Tensors:
    """Run the golden sample in both ways an engine has, and compare.

    Args:
        precision: that the engine computes in; the bundle's unless given.

    Returns:
        The sample's inputs, one image.

    Raises:
        GoldenMismatch: the engine answers something else than the bundle was exported with.
    """
    manifest = bundle.manifest
    kind = f"{engine.name}/{precision or manifest.precision}"
    tolerance = manifest.golden.tolerance.get(kind)
    if tolerance is None:
        raise NoEngine(
            f"the bundle does not say how closely '{kind}' must reproduce its golden sample, only "
            f"{', '.join(sorted(manifest.golden.tolerance))}; export it again"
        )
    with np.load(bundle.folder / GOLDEN_FILE, allow_pickle=False) as sample:
        golden = {name: sample[name] for name in sample.files}
    inputs = {name: golden.pop(name) for name in ("images", "sizes")}
    for outputs in (engine.run(inputs), engine.run_alone(inputs)):
        bind({name: tensor[0] for name, tensor in outputs.items()}, manifest.masks.legend)
        value, words = off(outputs, golden, manifest.masks.legend, precision or manifest.precision)
        if not value <= tolerance:
            raise GoldenMismatch(
                f"{bundle.folder}: the answer differs from the golden sample: {words}; the tolerance on {kind} is "
                f"{tolerance:g}; run the export again on this machine"
            )
    return inputs


def find_models(bundles: Path) -> list[Served]:
    """Everything below one bundles folder, which holds `<model>/<version>/manifest.json`.

    Raises:
        BadManifest: the folder holds no bundle at all.
    """
    found = [(path.parent.parent.name, path.parent) for path in sorted(bundles.glob("*/*/manifest.json"))]
    models = [Served(name, int(folder.name), folder) for name, folder in found if folder.name.isdecimal()]
    if not models:
        raise BadManifest(f"no bundle in '{bundles}' (looked for <model>/<version>/manifest.json); see --bundles")
    return models


def check_digest(model: Served) -> None:
    """
    Raises:
        HashMismatch: the manifest on the disk is not the one that the other processes know.
    """
    if model.digest is not None and sha256_of(model.folder / MANIFEST_FILE) != model.digest:
        raise HashMismatch(f"{model.folder} has changed since the server was started; start it again to serve that")


class Repository:
    """All models that are served.

    Args:
        models: at least one.
        default_model: what no name means when there are several.

    Raises:
        BadManifest: the default model is not among them.
    """

    def __init__(self, models: list[Served], default_model: str | None) -> None:
        self.models = models
        self.names = sorted({model.name for model in self.models})
        if default_model is not None and default_model not in self.names:
            raise BadManifest(f"--default-model '{default_model}' is not among {', '.join(self.names)}")
        self._default = default_model

    def pick(self, name: str | None, version: str | None) -> Served:
        """The model a request means; without a version the highest ready one.

        Raises:
            BadParameter: no name, and several models.
            UnknownModel, UnknownVersion: not here.
        """
        if name is None:
            name = self._default or (self.names[0] if len(self.names) == 1 else None)
            if name is None:
                raise BadParameter(f"several models are served, name one in the path: {', '.join(self.names)}")
        versions = [model for model in self.models if model.name == name]
        if not versions:
            raise UnknownModel(f"no such model; served are {', '.join(self.names)}")
        if version is not None:
            for model in versions:
                if str(model.version) == version:
                    return model
            raise UnknownVersion(f"'{name}' has the versions {', '.join(str(model.version) for model in versions)}")
        return max(versions, key=lambda model: (model.condition.state == "ready", model.version))

    def fail(self, model: Served, error: Exception) -> None:
        """Remember why a model is not served. Paths stay in the log; the world is told the kind of failure."""
        bug = None if isinstance(error, StartupError) else error
        log.error("model %s/%s failed to load: %s", *model.key, error, exc_info=bug)
        known = isinstance(error, StartupError)
        model.condition.become("failed", f"{type(error).__name__}, see the log" if known else "internal error")
