"""The real builder, where it is installed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from export.errors import ExportError
from export.tensorrt.package import Package, find
from server.bundle_files import MODEL_FILE, TWIN_FILE, sha256_of


@pytest.fixture(scope="session")
def rtx() -> Package:
    """`tensorrt-rtx`, which needs no GPU to build; without it a test is skipped, or failed where `CI` is `true`."""
    try:
        return find("tensorrt-rtx")
    except ExportError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{error}; CI must have it", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture
def twinned(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny U-Net's bundle with a twin, which is the same graph; to spoil."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny" / "1"))
    return with_twin(bundle, bundle / MODEL_FILE)


def with_twin(bundle: Path, twin: Path, **fields: object) -> Path:
    """Put a twin and other fields of the manifest into a bundle."""
    shutil.copyfile(twin, bundle / TWIN_FILE)
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][TWIN_FILE] = sha256_of(bundle / TWIN_FILE)
    manifest["twin"] = {"parity": manifest["parity"]}
    path.write_text(json.dumps(manifest | fields))
    return bundle
