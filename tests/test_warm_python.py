"""Tests that are killed leave no process behind."""

from __future__ import annotations

import subprocess
import sys

import psutil

KILLED = """if True:
    import subprocess, sys
    import psutil
    from warm_python import warm_python
    with warm_python([]) as python:
        work = "import time; print('runs', flush=True); time.sleep(600)"
        command = subprocess.Popen([python, "-m", "timeit", "-n1", "-r1", work], stdout=subprocess.PIPE)
        command.stdout.readline()
        print(*(process.pid for process in psutil.Process().children(recursive=True)), flush=True)
        sys.stdin.read()
"""


def test_what_was_started_warm_ends_with_tests_that_are_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=__file__.rpartition("/")[0], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as tests:
        assert tests.stdout is not None
        processes = [psutil.Process(int(number)) for number in tests.stdout.readline().split()]
        assert len(processes) >= 4  # who asks, the server, its watch, who waits, what runs
        tests.kill()
    _, alive = psutil.wait_procs(processes, timeout=900)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
