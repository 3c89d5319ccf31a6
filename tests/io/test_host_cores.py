"""How many cores and threads a scoring takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.measure.folder_scoring import FolderScoring
from benchmarks.measure.measurement import MeasureOptions
from pw.io import host


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A job that was given two cores of however many, in no container."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(host, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_a_scoring_takes_the_cores_of_its_job_and_not_of_the_machine(two_cores: None, tmp_path: Path):
    assert threads(tmp_path) == 2
    assert threads(tmp_path, threads=5) == 5


@pytest.mark.parametrize(("asked", "taken"), [("1", 1), ("5", 5), ("4,2", 4), ("0", 2), ("", 2), ("many", 2)])
def test_omp_num_threads_is_heeded_as_torch_does(
    asked: str, taken: int, two_cores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads(tmp_path) == taken


@pytest.mark.parametrize(("quota", "left"), [("max 100000", 2), ("150000 100000", 1), ("20000 100000", 1), ("", 2)])
def test_a_containers_quota_is_heeded(quota: str, left: int, two_cores: None, tmp_path: Path):
    (tmp_path / "cpu.max").write_text(quota)
    assert host.usable_cores() == left


def test_where_there_is_no_affinity_all_cores_are_taken(two_cores: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert host.usable_cores() == 64


def threads(folder: Path, **options: int) -> int:
    """That a scoring with these options takes."""
    return FolderScoring({}, [], MeasureOptions(cache=folder, **options)).threads
