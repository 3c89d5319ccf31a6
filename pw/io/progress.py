"""How far work is and how long it takes, in words."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TextIO

Progress = Callable[[int, int], None]  # called by work as it goes, with what is done and how much there is


def duration(seconds: float) -> str:
    """0.12 s, 98 s, 8.4 min, 34.5 h."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


class Pace:
    """The time left, at the pace since this was made or restarted: what was done before took no time."""

    def __init__(self, done: float = 0) -> None:
        self.restart(done)

    def restart(self, done: float = 0) -> None:
        self.began, self.done = time.perf_counter(), done

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.began

    def rate(self, done: float) -> float:
        return max(1e-9, done - self.done) / max(1e-9, self.spent)

    def left(self, done: float, total: float) -> str:
        """The time left, in words; empty where nothing is done yet."""
        return duration(round(max(0, total - done) / self.rate(done))) if done > self.done else ""


class ProgressLine:
    """One line that says how far work is: rewritten on a terminal, elsewhere written anew every 15 s."""

    def __init__(self, stream: TextIO | None = None, seconds: float = 15.0) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.is_live = self.stream.isatty()
        self.seconds = 0.5 if self.is_live else seconds
        self._last = time.perf_counter()

    @property
    def is_due(self) -> bool:
        """Whether the line is old enough to be written again."""
        return time.perf_counter() - self._last >= self.seconds

    def show(self, text: str, *, last: bool = False) -> None:
        """Write the line, whether it is due or not. last: what follows goes below it."""
        self._last = time.perf_counter()
        with ignore_closed_stream(self.stream):
            text, end = (f"\r\x1b[2K{text}", "" if not last else "\n") if self.is_live else (text, "\n")
            print(text, end=end, file=self.stream, flush=True)

    def clear(self) -> None:
        if self.is_live:
            with ignore_closed_stream(self.stream):
                print("\r\x1b[2K", end="", file=self.stream, flush=True)


@contextmanager
def ignore_closed_stream(stream: TextIO) -> Generator[None]:
    """While it lasts, words that cannot be written end no work. A terminal that is gone, or a reader, gets no more."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            return  # a full disk may have room again
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # else what is still to be written fails again, at the latest at the end
        os.close(nowhere)
