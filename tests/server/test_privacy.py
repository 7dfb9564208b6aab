"""What the server must not tell: ONNX Runtime's telemetry stays off, in the server and in the export stage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

OPEN = """
import sys
{first}
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""


def files_left_behind(first: str, model: Path, home: Path) -> list[str]:
    """What opening a model writes into a home folder; telemetry keeps the number of the machine there."""
    unasked = {"CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in unasked} | {"HOME": str(home)}
    program = OPEN.format(first=first)
    command = [sys.executable, "-c", program, str(model)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60, capture_output=True)
    return [str(path) for path in home.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("room", ["server.engines.onnxruntime_cpu", "export.parity"])
def test_opening_a_model_leaves_no_trace_at_home(room: str, tmp_path: Path) -> None:
    assert files_left_behind(f"import {room}", ROOT / "bundles/nuclei/1/model.onnx", tmp_path) == []


@pytest.mark.slow
def test_without_us_it_would(tmp_path: Path) -> None:
    """Should this fail, ONNX Runtime has changed its manners, and the test above shows nothing any more."""
    assert files_left_behind("", ROOT / "bundles/nuclei/1/model.onnx", tmp_path)
