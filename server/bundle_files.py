"""The files of a bundle's folder, by name and by sha256; `server.manifest` says what they mean."""

from __future__ import annotations

import hashlib
from pathlib import Path

from server.errors import BadManifest, HashMismatch

MODEL_FILE = "model.onnx"
TWIN_FILE = "model.trt.onnx"
PLAN_FILE = "model.plan"
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden/sample.npz"


def check_file(folder: Path, name: str, promised: str) -> None:
    """
    Args:
        folder: the bundle.
        name: of the file, relative to it.
        promised: its sha256, in hexadecimal.

    Raises:
        BadManifest: it leads outside the folder.
        HashMismatch: it is missing, or differs.
    """
    path = folder / name
    inside = path.resolve().is_relative_to(folder.resolve())
    if not inside or path.is_symlink():
        raise BadManifest(f"{folder}: '{name}' leads outside the bundle; only plain files inside it are served")
    if not path.is_file():
        raise HashMismatch(f"{path} is missing; the bundle is incomplete, copy or export it again")
    found = sha256_of(path)
    if found != promised:
        raise HashMismatch(f"{path} has sha256 {found[:12]}..., the manifest says {promised[:12]}...; export it again")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
