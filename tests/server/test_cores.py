"""Cores from the cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.cores import choose_workers, codec_threads, has_gpu, usable_cores

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


@pytest.mark.parametrize(
    ("cores", "gpu", "workers"),
    [
        (1, False, 1),
        (2, False, 1),
        (4, False, 1),
        (5, False, 2),
        (16, False, 2),
        (1, True, 1),
        (4, True, 2),
        (16, True, 8),
    ],
)
def test_workers_are_chosen_from_the_cores_and_the_gpu_unless_they_are_given(
    cores: int, gpu: bool, workers: int
) -> None:
    assert choose_workers("auto", cores, gpu) == workers
    assert choose_workers(3, cores, gpu) == 3


def test_a_gpu_counts_when_there_is_a_runtime_for_it(tmp_path: Path) -> None:
    assert not has_gpu(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not has_gpu(tmp_path)


@pytest.mark.parametrize("fronts", [1, 2, 7, 64])
def test_every_front_has_a_thread_to_decode_with(fronts: int) -> None:
    assert 1 <= codec_threads(fronts) <= usable_cores()
