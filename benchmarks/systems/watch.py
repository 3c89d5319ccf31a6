"""Processes that end with the one that started them, however that ends: nothing is left that holds a GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager

GRACE = 5.0  # s between asking a program to end and ending it


@contextmanager
def ending_with_us(pid: int, *, group: bool = False) -> Generator[None]:
    """While in it, a process (or its process group) is ended when we are gone, `kill -9` and a full memory included.

    A shell of its own session reads from a pipe that nobody but us holds open, which closes as we end.
    """
    target = f"-{pid}" if group else str(pid)
    script = f'read -r _; kill -s TERM -- "$1"; sleep {GRACE:g}; kill -s KILL -- "$1"'
    quiet = subprocess.DEVNULL
    watcher = subprocess.Popen(
        ["sh", "-c", script, "sh", target], stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        yield
    finally:
        watcher.kill()  # before its pipe closes
        watcher.communicate()
