"""How many cores this process may really use: the host's, less affinity, less the container's quota.

Sizing thread pools by the host's count inside a container of two cores is the classic way to lose the tail latency.
"""

from __future__ import annotations

import math
import os
from pathlib import Path


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
