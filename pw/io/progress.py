"""Progress of work and time left, as text."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TextIO

from pw.io.console import printable

Progress = Callable[[int, int], None]  # called with (done, total) while work proceeds


def duration(seconds: float) -> str:
    """0.12 s, 98 s, 8.4 min, 34.5 h."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


class Pace:
    """Estimates the time left from the pace since the start or restart; `done` is the work done before that."""

    def __init__(self, done: float = 0) -> None:
        self.restart(done)

    def restart(self, done: float = 0) -> None:
        self.began, self.done = time.perf_counter(), done

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def rate(self, done: float) -> float:
        return max(1e-9, done - self.done) / max(1e-9, self.elapsed)

    def time_left(self, done: float, total: float) -> str:
        """The time left as text; empty if nothing is done yet."""
        return duration(round(max(0, total - done) / self.rate(done))) if done > self.done else ""


class ProgressLine:
    """A line of progress: updated in place on a terminal, else a new line every 15 s."""

    def __init__(self, stream: TextIO | None = None, seconds: float = 15.0) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.is_live = self.stream.isatty()
        self.seconds = 0.5 if self.is_live else seconds
        self._last = time.perf_counter()

    @property
    def is_due(self) -> bool:
        """Whether it is time to write the line again."""
        return time.perf_counter() - self._last >= self.seconds

    def show(self, text: str, *, last: bool = False) -> None:
        """Write the line, whether it is due or not. last: end it with a newline."""
        self._last = time.perf_counter()
        with ignore_closed_stream(self.stream):
            text = printable(text)
            text, end = (f"\r\x1b[2K{text}", "" if not last else "\n") if self.is_live else (text, "\n")
            print(text, end=end, file=self.stream, flush=True)

    def clear(self) -> None:
        if self.is_live:
            with ignore_closed_stream(self.stream):
                print("\r\x1b[2K", end="", file=self.stream, flush=True)


@contextmanager
def ignore_closed_stream(stream: TextIO) -> Generator[None]:
    """Ignore errors when writing to a stream. If its terminal or reader is gone, send the rest to /dev/null."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            return  # a full disk may have room again
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # else the buffered text fails again, at the latest at exit
        os.close(null)
