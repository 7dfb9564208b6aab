"""Cores from the cgroup."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from server.cores import choose_workers, codec_threads, has_gpu, memory_limit, share_of_cores, usable_cores

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
    ("cores", "shared", "memory", "workers"),
    [
        (1, False, math.inf, 1),
        (2, False, math.inf, 2),
        (2, False, 1e9, 1),
        (4, False, math.inf, 4),
        (6, False, math.inf, 4),
        (16, False, math.inf, 8),
        (16, False, 4e9, 5),
        (128, False, math.inf, 16),
        (16, False, 1e8, 1),
        (1, True, math.inf, 1),
        (4, True, 1e9, 2),
        (16, True, math.inf, 8),
    ],
)
def test_workers_are_chosen_from_cores_memory_and_engines_unless_they_are_given(
    cores: int, shared: bool, memory: float, workers: int
) -> None:
    assert choose_workers("auto", cores, shared, memory) == workers
    assert choose_workers(3, cores, shared, memory) == 3


@pytest.mark.parametrize(("cores", "servers", "each"), [(2, 2, 1), (4, 4, 1), (16, 8, 2), (6, 4, 2), (1, 3, 1)])
def test_whole_servers_share_the_cores(cores: int, servers: int, each: int) -> None:
    assert share_of_cores(cores, servers) == each


def test_the_memory_of_the_container_is_known(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) == math.inf
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit(tmp_path) == math.inf
    (tmp_path / "memory/memory.limit_in_bytes").write_text("1000000\n")
    assert memory_limit(tmp_path) == 1e6
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == 1e6
    (tmp_path / "memory.max").write_text("2000000\n")
    assert memory_limit(tmp_path) == 2e6


def test_a_gpu_counts_when_there_is_a_runtime_for_it(tmp_path: Path) -> None:
    assert not has_gpu(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not has_gpu(tmp_path)


@pytest.mark.parametrize("fronts", [1, 2, 7, 64])
def test_every_front_has_a_thread_to_decode_with(fronts: int) -> None:
    assert 1 <= codec_threads(fronts) <= usable_cores()
