"""pw.io.host: a limit of a container or a job is heard of before it kills."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

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
    there = psutil.virtual_memory().total
    assert 0 < host.free_memory() <= there  # no Linux
    (linux / "membership").write_text("0::/\n")
    group(linux / "groups", 2, "max", 10, 0)
    assert 1e6 < host.free_memory() <= there
