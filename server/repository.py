"""The models that are served: found on disk, verified, loaded, and proven on their golden sample before they are ready.

found -> loading -> ready            or  -> failed, with a reason that /readyz repeats
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from server.engines import Engine, load_engine
from server.errors import (
    BadManifest,
    BadParameter,
    GoldenMismatch,
    NotReady,
    StartupError,
    UnknownModel,
    UnknownVersion,
)
from server.manifest import GOLDEN_FILE, MODEL_FILE, Bundle, Manifest, read_bundle
from server.masks import bind
from server.scheduling import Scheduler

log = logging.getLogger("maskserve")

State = Literal["loading", "ready", "failed", "closed"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine that has reproduced its bundle's golden sample."""

    bundle: Bundle
    engine: Engine
    pace_s: float  # seconds per input pixel, of the warm-up


@dataclass(slots=True)
class Served:
    """One version of one model, and how it is doing."""

    name: str
    version: int
    folder: Path
    state: State = "loading"
    reason: str = "waits to be loaded"
    loaded: Loaded | None = None
    scheduler: Scheduler | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The `model` and `version` labels."""
        return self.name, str(self.version)

    @property
    def manifest(self) -> Manifest:
        return self.ready()[0]

    def ready(self) -> tuple[Manifest, Scheduler]:
        """
        Raises:
            NotReady: still loading, or failed to.
        """
        if self.state != "ready" or self.loaded is None or self.scheduler is None:
            raise NotReady(f"model '{self.name}' version {self.version} is {self.state}", retry_after_s=1.0)
        return self.loaded.bundle.manifest, self.scheduler


def load(folder: Path, threads: int) -> Loaded:
    """Verify a bundle, open its model, and hold it against its golden sample. Blocks for seconds.

    Raises:
        StartupError: anything is wrong with it.
    """
    bundle = read_bundle(folder)
    engine = load_engine(folder / MODEL_FILE, threads)
    try:
        pace_s = prove_golden(bundle, engine)
    except BaseException:
        engine.close()
        raise
    return Loaded(bundle, engine, pace_s)


def prove_golden(bundle: Bundle, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> float:
    """Run the golden sample twice: once to compare, once warm to measure.

    Returns:
        Seconds per input pixel.

    Raises:
        GoldenMismatch: the engine answers something else than the bundle was exported with.
    """
    manifest = bundle.manifest
    kind = f"{engine.name}/{manifest.precision}"
    tolerance = manifest.golden.tolerance.get(kind)
    if tolerance is None:
        raise GoldenMismatch(
            f"{bundle.folder}: no golden tolerance for '{kind}'; it has {sorted(manifest.golden.tolerance)}"
        )
    with np.load(bundle.folder / GOLDEN_FILE, allow_pickle=False) as sample:
        golden = {name: sample[name] for name in sample.files}
    inputs = {name: golden.pop(name) for name in ("images", "sizes")}
    outputs = engine.run(inputs)
    bind({name: tensor[0] for name, tensor in outputs.items()}, manifest.masks.legend)
    for name, wanted in golden.items():
        error = float(np.abs(outputs[name].astype(np.float64) - wanted).max())
        if not error <= tolerance:
            raise GoldenMismatch(
                f"{bundle.folder}: output '{name}' differs from the golden sample by {error:.2g}, "
                f"allowed is {tolerance:.2g} on {kind}; run the export again on this machine"
            )
    began = clock()
    engine.run(inputs)
    return float((clock() - began) / (inputs["images"].shape[1] * inputs["images"].shape[2]))


class Repository:
    """Everything below one bundles folder.

    Args:
        bundles: holds `<model>/<version>/manifest.json`.
        default_model: what no name means when there are several.

    Raises:
        BadManifest: the folder holds no bundle at all, or not the default model.
    """

    def __init__(self, bundles: Path, default_model: str | None) -> None:
        found = [(path.parent.parent.name, path.parent) for path in sorted(bundles.glob("*/*/manifest.json"))]
        self.models = [Served(name, int(folder.name), folder) for name, folder in found if folder.name.isdecimal()]
        if not self.models:
            raise BadManifest(f"no bundle in '{bundles}' (looked for <model>/<version>/manifest.json); see --bundles")
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
        return max(versions, key=lambda model: (model.state == "ready", model.version))

    def fail(self, model: Served, error: Exception) -> None:
        """Remember why a model is not served. Paths stay in the log; the world is told the kind of failure."""
        log.error("model %s/%s failed to load: %s", *model.key, error)
        model.state = "failed"
        model.reason = f"{type(error).__name__}, see the log" if isinstance(error, StartupError) else "internal error"
