"""A run without a GPU says which tests it has left out for that."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("wanted", ["not gpu", "gpu"])
def test_tests_that_need_a_gpu_are_counted_and_named_when_they_are_not_run(wanted: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", wanted, "tests/server/engines/test_gpu.py"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}  # also where there is one
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(
        r"(\d+) tests that need a GPU were not run; scripts/gpu_check.sh runs them:\n((  .*\n)+)", done.stdout
    )
    assert found is not None, done.stdout + done.stderr
    assert int(found[1]) == len(found[2].splitlines()) >= 9
    assert "test_gpu.py::test_the_gpu_answers_as_the_cpu_at_every_batch_size[nuclei-1]" in found[2]
