"""Writing a bundle, whole or not at all: into a temporary folder beside the target, which is renamed at the end."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import ExportError
from export.graph import tensor_shapes
from export.parity import inputs_for, run_model
from export.source import Exportable
from server.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    ClassName,
    Defaults,
    Golden,
    Manifest,
    Parity,
    TensorSpec,
    sha256_of,
)

GOLDEN_TOLERANCE = {"onnxruntime-cpu/fp32": 1e-3}


@contextmanager
def whole_or_nothing(target: Path, replace: bool) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes when it does not.

    Raises:
        ExportError: the target exists and `replace` is not given, or its name is no bundle's.
    """
    if not target.name.isdecimal() or int(target.name) < 1:
        raise ExportError(f"--out {target} should end in <model>/<version>, as in bundles/nuclei/1")
    if target.exists() and not replace:
        raise ExportError(f"{target} exists; choose the next version, or give --replace")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
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


def write_golden(model: Exportable, folder: Path) -> None:
    """One small input and what PyTorch makes of it."""
    inputs = inputs_for(model, 1, seed=7)
    path = folder / GOLDEN_FILE
    path.parent.mkdir()
    np.savez_compressed(path, **inputs, **run_model(model, inputs))  # type: ignore[arg-type]


def write_manifest(
    model: Exportable,
    folder: Path,
    target: Path,
    *,
    max_batch: int,
    classes: tuple[str, ...],
    score_threshold: float,
    parity: Parity,
    provenance: dict[str, Any],
) -> Manifest:
    """The promise, last of all: it lists the sha256 of everything else."""
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    outputs = [
        TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape})
        for name, (dtype, shape) in tensor_shapes(folder / MODEL_FILE).items()
    ]
    manifest = Manifest(
        schema_version=1,
        name=target.parent.name,
        version=int(target.name),
        input=model.input,
        masks=model.masks,
        classes=[ClassName(id=number, name=name) for number, name in enumerate(classes, start=1)],
        outputs=outputs,
        max_batch=max_batch,
        precision="fp32",
        defaults=Defaults(score_threshold=score_threshold),
        golden=Golden(origin="pytorch", tolerance=GOLDEN_TOLERANCE),
        files=files,
        provenance=provenance | {"written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")},
        parity=parity,
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest
