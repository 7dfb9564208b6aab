"""The models that are served: found on disk, and how each of them is doing.

found -> loading -> ready            or  -> failed, with a reason that /readyz repeats
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from server.bundle_files import MANIFEST_FILE, sha256_of
from server.errors import BadManifest, BadParameter, HashMismatch, NotReady, StartupError, UnknownModel, UnknownVersion

if TYPE_CHECKING:  # the supervisor, which knows the models and opens none, is to stay small
    from server.manifest import Manifest
    from server.scheduling import Answer, Picture

log = logging.getLogger("maskserve")

T = TypeVar("T")

State = Literal["loading", "ready", "failed", "closed"]


class Batcher(Protocol):
    """Where pictures meet in batches: the `Scheduler` of this process, or the way to that of the engine process."""

    def check_admission(self, priority: int = 0) -> None:
        """
        Args:
            priority: of a request, which waits only for what goes before it.

        Raises:
            NotReady, Draining, Overloaded: a request that came now would be refused.
        """

    def worker_seconds(self, pixels: float) -> float:
        """What an image of `pixels` takes of this process' workers besides decoding and masks."""

    async def submit(
        self,
        picture: Picture | Callable[[], Picture],
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


def find_models(bundles: Path) -> list[Served]:
    """Everything below one bundles folder, which holds `<model>/<version>/manifest.json`.

    Raises:
        BadManifest: the folder holds no bundle at all.
    """
    found = [(path.parent.parent.name, path.parent) for path in sorted(bundles.glob(f"*/*/{MANIFEST_FILE}"))]
    models = [Served(name, int(folder.name), folder) for name, folder in found if folder.name.isdecimal()]
    if not models:
        raise BadManifest(f"no bundle in '{bundles}' (looked for <model>/<version>/{MANIFEST_FILE}); see --bundles")
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
        if len(versions) == 1:
            return versions[0]
        return max(versions, key=lambda model: (model.condition.state == "ready", model.version))

    def fail(self, model: Served, error: Exception) -> None:
        """Remember why a model is not served. Paths stay in the log; the world is told the kind of failure."""
        bug = None if isinstance(error, StartupError) else error
        log.error("model %s/%s failed to load: %s", *model.key, error, exc_info=bug)
        known = isinstance(error, StartupError)
        model.condition.become("failed", f"{type(error).__name__}, see the log" if known else "internal error")
