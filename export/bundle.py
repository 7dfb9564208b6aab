"""Writing a bundle, whole or not at all: into a temporary folder beside the target, which is renamed at the end."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from export.errors import ExportError
from export.laws import Axes
from server.agreement import golden_tolerance
from server.bundle_files import GOLDEN_FILE, MANIFEST_FILE, sha256_of
from server.engines import Tensors
from server.manifest import ClassName, Defaults, Golden, Lowered, Manifest, Parity, ParityRun, TensorSpec, Twin
from server.masks import AnyMasks
from server.preprocess import AnyInput

Precision = Literal["fp32", "fp16", "int8"]


@contextmanager
def whole_or_nothing(target: Path, replace: bool) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes when it does not.

    Raises:
        ExportError: the target exists and `replace` is not given, its name is no bundle's, or its folder takes nothing.
    """
    if not target.name.isdecimal() or int(target.name) < 1:
        raise ExportError(f"--out {target} should end in <model>/<version>, as in bundles/nuclei/1")
    if target.exists() and not replace:
        raise ExportError(f"{target} exists; choose the next version, or give --replace")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    except OSError as error:
        raise ExportError(
            f"cannot write in {target.parent}: {error.strerror}; choose a folder that may be written"
        ) from None
    try:
        yield folder
        folder.chmod(0o755)
        if target.exists():
            old = folder.with_name(folder.name.replace(".writing-", ".old-"))
            target.rename(old)
            folder.rename(target)
            shutil.rmtree(old)
        else:
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_golden(folder: Path, inputs: Tensors, outputs: Tensors) -> None:
    """One small input and what the reference makes of it."""
    path = folder / GOLDEN_FILE
    path.parent.mkdir()
    np.savez_compressed(path, **inputs, **outputs)  # type: ignore[arg-type]


def write_manifest(
    folder: Path,
    target: Path,
    *,
    input: AnyInput,  # noqa: A002 - the manifest's word
    masks: AnyMasks,
    outputs: Mapping[str, tuple[str, Axes]],
    max_batch: int,
    classes: Sequence[str],
    score_threshold: float,
    origin: Literal["pytorch", "onnxruntime-cpu"],
    precision: Precision,
    parity: Parity,
    provenance: dict[str, Any],
    twin: Twin | None = None,
    lowered: Mapping[str, Lowered] | None = None,
    accuracy: dict[str, Any] | None = None,
) -> Manifest:
    """The promise, last of all: it lists the sha256 of everything else.

    Args:
        outputs: name -> (dtype, shape) of what the graph answers.
        origin: who answered the golden sample.
    """
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    manifest = Manifest(
        schema_version=1,
        name=target.parent.name,
        version=int(target.name),
        input=input,
        masks=masks,
        classes=[ClassName(id=number, name=name) for number, name in enumerate(classes, start=1)],
        outputs=[
            TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape})
            for name, (dtype, shape) in outputs.items()
        ],
        max_batch=max_batch,
        precision=precision,
        defaults=Defaults(score_threshold=score_threshold),
        golden=Golden(origin=origin, tolerance=golden_tolerance(precision)),
        files=files,
        provenance=provenance | {"written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")},
        parity=parity,
        twin=twin,
        lowered=dict(lowered) if lowered else None,
        accuracy=accuracy,
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def read_classes(path: Path) -> tuple[str, ...]:
    """One name a line, in label order; empty lines do not count.

    Raises:
        ExportError: no such file, no names, or one of them twice.
    """
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"cannot read --classes {path}: {error}") from None
    if not names or len(set(names)) != len(names):
        raise ExportError(f"{path} names {len(names)} classes, {len(set(names))} of them different; one name a line")
    return names


def check_options(max_batch: int, score_threshold: float | None) -> None:
    """
    Raises:
        ExportError: a number of the command line lies outside its range.
    """
    if max_batch < 1:
        raise ExportError(f"--max-batch {max_batch} should be at least 1")
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise ExportError(f"--score-threshold {score_threshold} should lie in 0..1")


def proven_batches(max_batch: int) -> list[int]:
    """Batch sizes that are tried: 1, 2, 3 and the largest."""
    return sorted({1, 2, 3, max_batch} & set(range(1, max_batch + 1)))


def print_bundle(manifest: Manifest, target: Path, seconds: float) -> None:
    """What was written, what was measured, and what to do next."""
    print(f"\nwrote {target} in {seconds:.0f} s: kind {manifest.masks.kind}, {len(manifest.classes)} classes")
    _print_parity(manifest.parity)
    if manifest.twin is not None:
        rounds = manifest.twin.nms_rounds
        print("the graph for TensorRT" + ("" if rounds is None else f", {rounds} rounds of cluster-NMS"))
        _print_parity(manifest.twin.parity)
    if manifest.accuracy is not None:
        told = {name: measured["ap"] for name, measured in manifest.accuracy.items() if isinstance(measured, dict)}
        found = ", ".join(f"{ap:.4f} in {name}" for name, ap in told.items())
        print(f"AP {found}, on {manifest.accuracy['pictures']} pictures")
    print(f"serve it: python -m server --bundles {target.parent.parent}")


def _print_parity(parity: Parity) -> None:
    width = max(28, *(len(_errors(run)) for run in parity.runs))
    columns = ("rows, without partner", "row against alone")
    print(f"{'batch':>7}  {'input':>11}  {'largest error':>{width}}  {columns[0]}  {columns[1]}")
    for run in parity.runs:
        size = f"{run.input_size[0]:>5}x{run.input_size[1]:<5}"
        rows = f"{run.rows}, {run.rows_without_partner}" if run.rows else "none"
        apart = f"{run.alone_error:g}"
        print(f"{run.batch:>7}  {size}  {_errors(run):>{width}}  {rows:>{len(columns[0])}}  {apart:>{len(columns[1])}}")


def _errors(run: ParityRun) -> str:
    return ", ".join(f"{name} {error:.1e}" for name, error in run.largest_error.items() if error) or "none"
