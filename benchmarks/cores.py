"""The processor cores that this process may use, which in a job or a container are fewer than the machine has."""

from __future__ import annotations

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores by the process's affinity (taskset, a SLURM job) and by the container's quota, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        allowed, period = QUOTA.read_text(encoding="utf-8").split()[:2]
    except (OSError, ValueError):
        return cores
    return cores if allowed == "max" else min(cores, max(1, int(allowed) // int(period)))


def default_threads() -> int:
    """OMP_NUM_THREADS, as torch takes it, else the usable cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2": of nested regions
    return int(asked) if asked.isdecimal() and int(asked) else usable_cores()
