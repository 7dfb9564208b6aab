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
    return importlib.util.find_spec("tensorrt") is not None or _installed("onnxruntime-gpu")


def choose_workers(wanted: int | Literal["auto"], cores: int, gpu: bool) -> int:
    """How many front processes; 1 means that one process does everything.

    A network on a CPU takes every core there is, and a front beside it only helps once HTTP, decoding and masks keep
    one core busy all by themselves: never on 4 cores. Beyond, two fronts, so that one may die or stall. A GPU leaves
    the cores to the fronts: half as many, since each decodes and computes masks in threads besides its event loop.
    """
    if wanted != "auto":
        return wanted
    if gpu:
        return max(1, min(cores // 2, 16))
    return 1 if cores <= 4 else 2


def codec_threads(fronts: int) -> int:
    """Workers of each front: its share of the cores, and one more for when it has more than its share."""
    return min(usable_cores(), usable_cores() // fronts + 1)


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
