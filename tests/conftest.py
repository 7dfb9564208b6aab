"""Fixtures more than one test file uses."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def unused_port() -> Callable[[], int]:
    """A port of 127.0.0.1 that was free a moment ago."""

    def probe() -> int:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            return int(sock.getsockname()[1])

    return probe


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `models.unet:unet_tiny`, seeded."""
    import torch
    from safetensors.torch import save_file

    from models.unet import unet_tiny

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(unet_tiny().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<bundles>/tiny/1`, written by the export command as a person would run it."""
    out = tmp_path_factory.mktemp("bundles") / "tiny" / "1"
    command = [
        sys.executable,
        "-m",
        "export",
        "models.unet:unet_tiny",
        "--weights",
        str(tiny_weights),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out
