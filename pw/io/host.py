"""The cores and the memory that this process may take, which in a job or a container are fewer than the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
QUOTA = GROUPS / "cpu.max"


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


def free_memory() -> int:
    """Bytes that the machine can give without swapping, or that the limits of a container or a job leave, if fewer.

    Beyond a limit (SLURM's, Docker's, Kubernetes') a process is killed however much the machine has.
    """
    import psutil

    return min([psutil.virtual_memory().available, *_left()])


def _left() -> Iterator[int]:
    """What each limit leaves, Linux' control groups of either version; files that are read are given back in need."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:
            root, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        limit, used, cached = names
        inner = PurePosixPath(path.lstrip("/"))
        # a container may be told its group's name outside of it, and finds it at the root
        for folder in {root / inner, *(root / parent for parent in inner.parents), root}:
            try:
                most, taken = ((folder / name).read_text(encoding="utf-8").strip() for name in (limit, used))
                statistics = dict(map(str.split, (folder / "memory.stat").read_text(encoding="utf-8").splitlines()))
                if most != "max":
                    yield max(0, int(most) - int(taken) + int(statistics.get(cached, 0)))
            except (OSError, ValueError):
                continue
