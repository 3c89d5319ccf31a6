"""CPU cores, memory and ports that this process may use; a job or a container has fewer cores than the machine."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from pw.io.arguments import ConfigError

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
QUOTA = GROUPS / "cpu.max"
HOST = "127.0.0.1"  # where every server of the suite listens, and nowhere else


def usable_cores() -> int:
    """Cores that the process's affinity (taskset, a SLURM job) and the container's quota allow, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()[:2]
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, max(1, int(quota) // int(period)))


def may_have_gpu() -> bool:
    """Whether Linux has a device file of a GPU's driver, told without the seconds that importing torch takes."""
    names = ("nvidiactl", "kfd", "dxg", "nvmap")  # NVIDIA, AMD, WSL, Jetson
    return sys.platform != "linux" or any(Path("/dev", name).exists() for name in names)


def gpu_name() -> str:
    """The name of the first NVIDIA GPU as CUDA has it, from its driver's files; "" if they tell none."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                return value.strip()
    return ""


def default_threads() -> int:
    """OMP_NUM_THREADS, parsed as torch does, else the usable cores."""
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2" is for nested regions
    return int(threads) if threads.isdecimal() and int(threads) else usable_cores()


def free_memory() -> int:
    """Bytes of memory that are free without swapping, or under the limit of a container or job if that is less.

    Above such a limit (SLURM, Docker, Kubernetes) a process is killed, even if the machine has free memory.
    """
    import psutil

    return min([psutil.virtual_memory().available, *_free_under_limits()])


def _free_under_limits() -> Iterator[int]:
    """Free bytes under each limit of Linux' control groups, v1 and v2; the file cache counts as free."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:
            root, files = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, files = GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        limit, used, cached = files
        inner = PurePosixPath(path.lstrip("/"))
        # in a container the path may be the host's, and the group itself is at the root
        for folder in {root / inner, *(root / parent for parent in inner.parents), root}:
            try:
                limit_text, used_text = ((folder / name).read_text(encoding="utf-8").strip() for name in (limit, used))
                statistics = dict(map(str.split, (folder / "memory.stat").read_text(encoding="utf-8").splitlines()))
                if limit_text != "max":
                    yield max(0, int(limit_text) - int(used_text) + int(statistics.get(cached, 0)))
            except (OSError, ValueError):
                continue


def check_port(port: int, likely: str) -> None:
    """Raises ConfigError with a free port if a port of this machine is in use, `likely` by what."""
    if not _is_free(port):
        free_port = next((p for p in range(port + 1, min(port + 100, 65536)) if _is_free(p)), None)
        advice = f"; port={free_port} is free" if free_port else ""
        raise ConfigError(f"port {port} is in use (perhaps by {likely}?){advice}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        with suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False
