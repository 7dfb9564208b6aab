"""Fixtures more than one test file uses."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

GPU_TESTS = pytest.StashKey[list[str]]()  # that were not run


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Remember the tests that need a GPU and are left out for it."""
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        left_out[0].config.stash.setdefault(GPU_TESTS, []).extend(item.nodeid for item in left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Count and name the tests that need a GPU and were not run: green without them says nothing about GPUs."""
    skipped = [report.nodeid for report in terminalreporter.getreports("skipped") if "gpu" in report.keywords]
    names = [*config.stash.get(GPU_TESTS, []), *skipped]
    if names:
        terminalreporter.section("need a GPU")
        terminalreporter.line(f"{len(names)} tests that need a GPU were not run; scripts/gpu_check.sh runs them:")
        for name in names:
            terminalreporter.line(f"  {name}")


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
