"""Cores from the cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.cores import usable_cores

HOST = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", HOST), ("50000 100000", 1), ("100000 100000", 1), ("nonsense", HOST)]
)
def test_the_quota_of_the_container_bounds_the_threads(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_cores(tmp_path) == cores


def test_a_version_1_cgroup_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == 1


def test_without_a_cgroup_the_affinity_decides(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == HOST
