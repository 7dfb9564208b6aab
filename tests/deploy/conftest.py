"""The shipped image, built once for all tests that run it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.deploy.containers import Containers, containers
from tests.tools import tool

IMAGE = "localhost/maskserve:cpu"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    with containers(tmp_path_factory.mktemp("containers")) as here:
        yield here


@pytest.fixture(scope="session")
def base(engine: Containers) -> str:
    """What the Dockerfile is built from, stood in for."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    version = re.search(r"(?m)^ARG PYTHON=(\S+)", text)
    assert version is not None
    tag = f"docker.io/library/python:{version[1]}-slim"
    engine.stand_in(tag, python_prefix(version[1]))
    return tag


@pytest.fixture(scope="session")
def image(engine: Containers, base: str) -> str:
    """The cpu target of the Dockerfile, unchanged."""
    engine.build(ROOT, IMAGE, "--target", "cpu", "--build-arg", "REVISION=test")
    return IMAGE


def python_prefix(version: str) -> Path:
    """Where a CPython of this version with a shared library is installed; pyenv knows, else the program itself."""
    prefixes = []
    for command in (["pyenv", "prefix", version], [f"python{version}", "-c", "import sys; print(sys.base_prefix)"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        prefixes += [Path(done.stdout.strip())] if done.returncode == 0 else []
    fitting = [prefix for prefix in prefixes if (prefix / f"lib/libpython{version}.so").exists()]
    return fitting[0] if fitting else Path(tool(f"python{version}"))
