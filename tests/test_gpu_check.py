"""The scripts for a GPU machine: wheels come in parts over several calls, and all steps can be gone without a GPU."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu
from tests.conftest import ROOT


def run(script: str, *args: str, **environment: str | Path) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if name not in ("OUT", "CARRY", "CACHE")}
    told = known | {name: str(value) for name, value in environment.items()}
    command = ["bash", f"scripts/{script}", *args]
    return subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture
def carry(tmp_path: Path) -> Path:
    """Two wheels in loads of two parts: the larger one takes three."""
    folder = tmp_path / "carry"
    (folder / "wheels").mkdir(parents=True)
    random.seed(0)
    for name, size in (("large-1-py3-none-any.whl", 2500), ("small-1-py3-none-any.whl", 300)):
        (folder / "wheels" / name).write_bytes(random.randbytes(size))
    packed = run("gpu_carry.sh", "--pack", str(folder), PART_BYTES="1000", LOAD_BYTES="2000")
    assert packed.returncode == 0, packed.stderr
    return folder


def test_wheels_that_come_in_parts_are_put_together_over_several_calls(carry: Path, tmp_path: Path) -> None:
    loads = sorted(path for path in carry.iterdir() if path.name.isdecimal())
    assert [path.name for path in loads] == ["1", "2"]
    cache, arrived = tmp_path / "cache", tmp_path / "arrived"
    arrived.mkdir()
    told = {"CACHE": cache, "CARRY": arrived, "OUT": tmp_path / "out"}
    shutil.move(loads[1], arrived / "2")
    first = run("gpu_check.sh", "--assemble", **told)
    assert first.returncode == 0
    assert first.stderr == f"gpu_check: still missing: {arrived}/1\n"
    assert run("gpu_check.sh", **told).returncode == 3  # nothing begins before all are here
    shutil.rmtree(arrived / "2")  # as the next call brings the next load alone
    shutil.move(loads[0], arrived / "1")
    second = run("gpu_check.sh", "--assemble", **told)
    assert second.stdout == "gpu_check: all wheels are here: 2\n", second.stderr
    for wheel in (carry / "wheels").iterdir():
        assert (cache / "wheels" / wheel.name).read_bytes() == wheel.read_bytes()
    assert run("gpu_check.sh", "--assemble", **told).stdout == second.stdout  # again, with nothing new


def test_a_part_that_came_damaged_is_told(carry: Path, tmp_path: Path) -> None:
    part = next((carry / "1").glob("large*part-000"))
    part.write_bytes(b"\0" * part.stat().st_size)
    done = run("gpu_check.sh", "--assemble", CACHE=tmp_path / "cache", CARRY=carry, OUT=tmp_path / "out")
    assert done.stderr == "gpu_check: large-1-py3-none-any.whl came damaged; carry its parts again\n"


def test_an_unknown_word_prints_what_is_known(tmp_path: Path) -> None:
    done = run("gpu_check.sh", "--help", OUT=tmp_path / "out")
    assert done.returncode == 2
    assert "--dry-run" in done.stderr


def test_a_bundle_without_a_plan_is_not_a_failure_of_tensorrt(tmp_path: Path) -> None:
    assert gpu.main(["--engine", "tensorrt", "--pretend", "--out", str(tmp_path / "report.md")]) == 0
    assert "nuclei/1: not run, it has no model.plan\n\nnothing failed" in (tmp_path / "report.md").read_text()


@pytest.mark.proof
def test_all_steps_can_be_gone_without_a_gpu(tmp_path: Path) -> None:
    done = run("gpu_check.sh", "--dry-run", PYTHON=sys.executable, OUT=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "report.md").read_text()
    assert report.count("went well") == 2
    assert "no figure below means anything" in report
    assert "images/s" in report
    assert "nothing failed" in report
