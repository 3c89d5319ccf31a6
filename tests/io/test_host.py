"""pw.io.host: the cores and the memory that a container or a job allows, and the threads that a scoring takes."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from benchmarks.measure.folder_scoring import FolderScoring
from benchmarks.measure.measurement import MeasureOptions
from pw.io import host


def group(folder: Path, version: int, limit: str, used: int, files: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    cached = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{cached} {files}\n")


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(host, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(host, "MEMBERSHIP", tmp_path / "membership")
    return tmp_path


@pytest.mark.parametrize(("version", "line"), [(2, "0::"), (1, "4:memory:")])
def test_the_tightest_limit_above_a_process_counts_and_files_that_were_read_do_not(
    linux: Path, version: int, line: str
) -> None:
    root = linux / "groups" / ("" if version == 2 else "memory")
    (linux / "membership").write_text(f"3:cpuset:/\n{line}/job/step\n")
    group(root / "job", version, "5000", 3000, 500)
    group(root / "job" / "step", version, "4000", 1000, 0)
    assert host.free_memory() == 2500
    group(root / "job" / "step", version, "1000", 3000, 0)
    assert host.free_memory() == 0


def test_a_container_that_is_told_its_name_outside_finds_its_limit_at_the_root(linux: Path) -> None:
    (linux / "membership").write_text("0::/outside/docker-1\n")
    group(linux / "groups", 2, "4000", 1000, 0)
    assert host.free_memory() == 3000


def test_without_a_limit_it_is_the_machines(linux: Path) -> None:
    total = psutil.virtual_memory().total
    assert 0 < host.free_memory() <= total  # no Linux
    (linux / "membership").write_text("0::/\n")
    group(linux / "groups", 2, "max", 10, 0)
    assert 1e6 < host.free_memory() <= total


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A job with two of 64 cores, in no container."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(host, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_a_scoring_takes_the_cores_of_its_job_and_not_of_the_machine(two_cores: None, tmp_path: Path):
    assert threads(tmp_path) == 2
    assert threads(tmp_path, threads=5) == 5


@pytest.mark.parametrize(("value", "count"), [("1", 1), ("5", 5), ("4,2", 4), ("0", 2), ("", 2), ("many", 2)])
def test_omp_num_threads_is_heeded_as_torch_does(
    value: str, count: int, two_cores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads(tmp_path) == count


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 2), ("150000 100000", 1), ("20000 100000", 1), ("", 2)])
def test_a_containers_quota_is_heeded(quota: str, cores: int, two_cores: None, tmp_path: Path):
    (tmp_path / "cpu.max").write_text(quota)
    assert host.usable_cores() == cores


def test_where_there_is_no_affinity_all_cores_are_taken(two_cores: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert host.usable_cores() == 64


def threads(folder: Path, **options: int) -> int:
    """Threads of a scoring with these options."""
    return FolderScoring({}, [], MeasureOptions(cache=folder, **options)).threads
