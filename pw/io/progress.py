"""Progress of work and time left, as text."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TextIO

from pw.io.console import printable

GONE = (errno.EIO, errno.EPIPE)  # the terminal, the reader of a pipe
Progress = Callable[[int, int], None]  # called with (done, total) while work proceeds


def duration(seconds: float) -> str:
    """0.12 s, 98 s, 8.4 min, 34.5 h, 75.8 days, 12.3 years."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    for unit, length, end in (("min", 60, 7200), ("h", 3600, 72 * 3600), ("days", 86400, 730 * 86400)):
        if seconds < end:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / (365.25 * 86400):,.1f} years"


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
        if error.errno in GONE:  # else a full disk, which may have room again
            _discard_output(stream)


class LenientStream(io.TextIOWrapper):
    """stdout or stderr of a command whose work goes on when the reader of its output ends (`pw … | head -1`)."""

    def write(self, text: str, /) -> int:
        self._attempt(lambda: super(LenientStream, self).write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(super().flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno in GONE:
                _discard_output(self)
            elif self.fileno() != 2:  # a full disk; if it is stderr's, there is no place to say so
                raise


def open_streams() -> None:
    """Give the process the streams that it was started without (`>&-`), and make its output `LenientStream`s."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, so that no file of ours gets it
            stream = os.fdopen(null, "r" if number == 0 else "w", encoding="utf-8")
            setattr(sys, f"__{name}__", stream)
            setattr(sys, name, stream)
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)  # stays open, as sys.__stdout__
        options = {key: getattr(old, key) for key in ("encoding", "line_buffering", "write_through")}
        setattr(sys, name, LenientStream(old.buffer, errors="backslashreplace", **options))  # names it cannot encode


def finish_stream(stream: TextIO) -> OSError | None:
    """Write what is buffered at the end of the process; if that fails, discard it and return the error."""
    try:
        stream.flush()
    except OSError as error:
        _discard_output(stream)
        return error
    return None


def _discard_output(stream: TextIO) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())  # else the buffered text fails again, at the latest at exit
    os.close(null)
