"""`manifest.json`: the promise beside the model file, and the bundle folder it describes.

    bundles/nuclei/1/
        manifest.json       this
        model.onnx          the graph
        model.trt.onnx      optional: the graph without operators that TensorRT lacks
        model.plan          optional: a TensorRT engine built from that
        golden/             a small input and what the graph makes of it

A bundle is intact when every file it lists has the sha256 it states and no path leads outside the folder. A sha256 does
not prove where a file came from.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.bundle_files import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, check_file
from server.errors import BadManifest
from server.masks import AnyMasks
from server.preprocess import AnyInput

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassName(_Strict):
    """One class; `id` is the COCO category id that answers carry."""

    id: int = Field(ge=0)
    name: str = Field(min_length=1, max_length=200)


class TensorSpec(_Strict):
    """One output of the graph; a string in `shape` is a free axis."""

    name: str
    dtype: Literal["float32", "int32", "uint8"]
    shape: list[int | str]


class Defaults(_Strict):
    """What a request gets that does not ask."""

    score_threshold: float = Field(ge=0.0, le=1.0)


class Golden(_Strict):
    """How closely an engine must reproduce the golden sample."""

    origin: Literal["pytorch", "onnxruntime-cpu"]
    tolerance: dict[str, float] = Field(description="per '<engine>/<precision>', measured as `parity.tolerance` is")


class ParityRun(_Strict):
    """The reference against the graph at one batch size."""

    batch: int
    input_size: tuple[int, int]
    largest_error: dict[str, float] = Field(description="per output, absolute")
    rows: int = Field(0, description="that either side uses, all images together; 0 where there are no candidates")
    distance: float | None = Field(None, description="of fp16 and int8 alone: server/distance.py")
    rows_without_partner: int = Field(
        0, description="of these, objects that only one side answers: a tie, or an overlap that hangs on the last bit"
    )
    alone_error: float = Field(description="row i of the batch against the image alone, absolute, all outputs")


class Parity(_Strict):
    reference: str = Field(description="PyTorch; of an adopted graph, each image alone")
    engine: str
    tolerance: float = Field(
        description="fp32: a share of each output's unit, server/agreement.py has those that are not 1; fp16 and int8: "
        "a distance"
    )
    runs: list[ParityRun]


class Twin(_Strict):
    """`model.trt.onnx`, which answers like `model.onnx` and holds nothing that a stock TensorRT lacks."""

    nms_rounds: int | None = Field(None, description="of cluster-NMS; none where nothing is suppressed")
    parity: Parity


class Lowered(_Strict):
    """What became of a network whose precision was lowered, and what was measured on the way."""

    pictures: int = Field(description="that it was calibrated or measured on")
    scheme: str = Field(description="which numbers have fewer bits")
    lowered: list[str] = Field(description="modules, or weights, that have fewer bits")
    kept: dict[str, str] = Field(description="those that had to stay in fp32, and what was measured of them")
    alone: dict[str, float] = Field(description="distance from fp32 with one of them alone lowered, where measured")
    bound: float = Field(description="distance that was allowed for all together")
    distance: float = Field(description="and what it came to")


class Profile(_Strict):
    """One optimisation profile: which shapes an engine takes."""

    smallest: dict[str, list[int]] = Field(description="per input")
    best: dict[str, list[int]] = Field(description="what it was tuned for")
    largest: dict[str, list[int]]


class Passport(_Strict):
    """Where `model.plan` was built and where it runs: TensorRT refuses an engine of another version or GPU."""

    package: Literal["tensorrt", "tensorrt-rtx"]
    package_version: str
    platform: str = Field(description="as in linux-x86_64")
    compute_capabilities: list[str] = Field(min_length=1, description="as in 8.6")
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    version_compatible: bool = Field(False, description="later versions of the same major may run it")
    gpu: str | None = Field(None, description="that it was built on; none where it was built without one")
    driver: str | None = None
    precision: Literal["fp32", "fp16", "int8"]
    layers: dict[str, int] = Field(description="of the built engine, by the narrowest type they compute with")
    layers_read_from: Literal["engine", "builder"] = Field(
        "engine",
        description="the loaded engine, or what its builder listed at the end: without a GPU none can be loaded",
    )
    products_asked: dict[str, int] = Field({}, description="convolutions and matrix products of the twin, by type")
    products: dict[str, int] = Field({}, description="the same in the built engine, of those that it names")
    share: float | None = Field(None, ge=0, le=1, description="of these products, that have the passport's precision")
    verified: str = Field("not run", description="the GPU that it ran on and answered like the twin, or 'not run'")
    profiles: list[Profile] = Field(min_length=1)
    twin_sha256: Sha256
    plan_sha256: Sha256
    build: dict[str, Any] = Field(description="builder options, seconds, bytes")

    @model_validator(mode="after")
    def _profiles_take_pictures(self) -> Passport:
        for profile in self.profiles:
            if any(len(shapes.get("images", [])) != 4 for shapes in (profile.smallest, profile.largest)):
                raise ValueError("every profile needs the smallest and the largest 'images', four numbers: B, h, w, 3")
        return self


class Manifest(_Strict):
    schema_version: Literal[1]
    name: Name
    version: int = Field(ge=1)
    input: AnyInput
    masks: AnyMasks
    classes: list[ClassName] = Field(min_length=1, description="in label order")
    outputs: list[TensorSpec]
    max_batch: int = Field(ge=1)
    precision: Literal["fp32", "fp16", "int8"]
    defaults: Defaults
    golden: Golden
    files: dict[str, Sha256]
    provenance: dict[str, Any]
    parity: Parity
    accuracy: dict[str, Any] | None = None
    lowered: dict[str, Lowered] | None = Field(None, description="of fp16 and int8: by file, how")
    twin: Twin | None = None
    plan: Passport | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Manifest:
        names = {output.name for output in self.outputs}
        if names != set(self.masks.legend):
            raise ValueError(f"outputs {sorted(names)} are not those of kind '{self.masks.kind}'")
        for key in ("id", "name"):
            values = [getattr(entry, key) for entry in self.classes]
            if len(set(values)) != len(values):
                raise ValueError(f"two classes share one {key}")
        return self


@dataclass(frozen=True, slots=True)
class Bundle:
    """A manifest and the folder whose files it vouches for."""

    folder: Path
    manifest: Manifest


def read_bundle(folder: Path, leave_out: Container[str] = ()) -> Bundle:
    """Read and verify a bundle; nothing in it is executed.

    Args:
        leave_out: files that whoever opens them verifies, or that nobody opens.

    Raises:
        BadManifest: `manifest.json` is missing, malformed, or lists a path outside the folder.
        HashMismatch: a file is missing or differs from its sha256.
    """
    manifest = read_manifest(folder)
    for name, promised in manifest.files.items():
        if name not in leave_out:
            check_file(folder, name, promised)
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle, and leave its other files alone.

    Raises:
        BadManifest: `manifest.json` is missing, malformed, or does not list what it must.
    """
    path = folder / MANIFEST_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadManifest(f"{folder} holds no {MANIFEST_FILE}; write a bundle with 'python -m export'") from None
    except ValueError as error:
        raise BadManifest(f"{path} is not JSON: {error}") from None
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BadManifest(f"{path}: {where}: {first['msg']} ({error.error_count()} in all)") from None
    if (folder.parent.name, folder.name) != (manifest.name, str(manifest.version)):
        found = f"{folder.parent.name}/{folder.name}"
        raise BadManifest(
            f"{path} says {manifest.name}/{manifest.version} but lies in {found}; move or export it again"
        )
    for needed in (MODEL_FILE, GOLDEN_FILE):
        if needed not in manifest.files:
            raise BadManifest(f"{path}: files does not list {needed}")
    return manifest
