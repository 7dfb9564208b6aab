"""How many cores this process may really use: the host's, less affinity, less the container's quota.

Sizing thread pools by the host's count inside a container of two cores is the classic way to lose the tail latency.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
from pathlib import Path
from typing import Literal

MOST = 16  # processes that are chosen without being asked for
SERVER_BYTES = 768e6  # of memory that a whole server should have, with a small model and pictures of some megapixels
NO_LIMIT = 2**60  # what cgroup v1 writes for none


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """At least 1. A quota of 1.5 cores gives 2: the pool may briefly run ahead of the quota, never by a whole core."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(affinity, math.ceil(quota)) if quota else affinity)


def _quota(cgroup: Path) -> float | None:
    """Cores granted by cgroup v2, else v1, else None."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        micros = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        period_micros = int((cgroup / "cpu/cpu.cfs_period_us").read_text())
        return micros / period_micros if micros > 0 and period_micros > 0 else None
    except (OSError, ValueError):
        return None


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether there is an NVIDIA device and a runtime that uses it is installed."""
    if not any(devices.glob("nvidia[0-9]*")):
        return False
    runtimes = ("tensorrt", "tensorrt_rtx")
    return _installed("onnxruntime-gpu") or any(importlib.util.find_spec(name) is not None for name in runtimes)


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the container grants, by cgroup v2, else v1; infinite without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = (cgroup / name).read_text().strip()
        except OSError:
            continue
        if limit.isdecimal() and int(limit) < NO_LIMIT:
            return int(limit)
    return math.inf


def choose_workers(wanted: int | Literal["auto"], cores: int, shared: bool, memory: float) -> int:
    """How many processes answer HTTP; 1 means that one process does everything.

    One Python lock feeds about two cores: whole servers are one for each core up to 4, then one for two cores. Where an
    engine process serves all, on a GPU, the cores are the fronts': half as many, since each decodes and computes masks
    in threads besides its event loop.

    Args:
        wanted: by the user.
        shared: whether there is one engine process for all.
        memory: bytes that all together may take.
    """
    if wanted != "auto":
        return wanted
    if shared:
        return max(1, min(cores // 2, MOST))
    return max(1, min(max(min(cores, 4), cores // 2), MOST, int(min(memory / SERVER_BYTES, MOST))))


def share_of_cores(cores: int, servers: int) -> int:
    """Workers of each whole server, so that together they leave no core idle."""
    return math.ceil(cores / servers)


def codec_threads(fronts: int) -> int:
    """Workers of each front: its share of the cores, and one more for when it has more than its share."""
    return min(usable_cores(), usable_cores() // fronts + 1)


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
