"""Processes that end with the one that started them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks.systems.gpu_processes import end_with_parent

ROOT = Path(__file__).parents[3]
PARENT = """
import subprocess, time
from benchmarks.systems.gpu_processes import end_with_parent
child = subprocess.Popen(["sleep", "60"])
with end_with_parent(child.pid):
    print(child.pid, flush=True)
    time.sleep(60)
"""


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_program_ends_with_the_process_that_was_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not has_ended(pid)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 900
    while not has_ended(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert has_ended(pid)


def test_a_program_that_is_not_watched_any_more_is_left_alone() -> None:
    child = subprocess.Popen(["sleep", "60"])
    with end_with_parent(child.pid):
        pass
    time.sleep(0.3)
    assert child.poll() is None
    child.kill()
    child.wait()
