"""Signals that stop this process."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

from pw.io.progress import ignore_closed_stream

STOP_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
)


class Stopped(SystemExit):
    """A signal stopped the work, a training after its checkpoint. The exit code is 128 + signal, as in shells."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = number


def print_stop(stop: Stopped | KeyboardInterrupt, hint: str, *, is_shown: bool = True) -> int:
    """Print which signal stopped the work and `hint`, in one line; returns the exit status, 128 + signal."""
    number = stop.signal if isinstance(stop, Stopped) else signal.SIGINT
    if is_shown:
        with ignore_closed_stream(sys.stderr):
            print(f"stopped by {signal.Signals(number).name}; {hint}", file=sys.stderr, flush=True)
    return 128 + number


def stop_signals() -> list[signal.Signals]:
    """The signals that stop this process: `STOP_SIGNALS` except those that it ignores from the start, as with nohup."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def interruptible() -> Generator[None]:
    """Inside, a signal to stop raises Stopped, and Ctrl-C raises KeyboardInterrupt.

    While one of these is handled, later signals except Ctrl-C are ignored: when a terminal closes, it and its shell
    both send SIGHUP.
    """

    def stop(number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if not _is_stopping(sys.exception()):
            raise Stopped(number)

    with handle_stop_signals(stop):
        yield


def _is_stopping(error: BaseException | None) -> bool:
    """Whether an error is from a signal to stop, or was raised while handling one."""
    return error is not None and (isinstance(error, Stopped | KeyboardInterrupt) or _is_stopping(error.__context__))


@contextlib.contextmanager
def hold_stop_signals() -> Generator[None]:
    """Inside, signals to stop wait; the first of them is raised again at the end. For work of less than a second."""
    received: list[int] = []
    try:
        with handle_stop_signals(lambda number, frame: received.append(number)):
            yield
    finally:
        if received:
            signal.raise_signal(received[0])


@contextlib.contextmanager
def handle_stop_signals(handle: Callable[[int, Any], None]) -> Generator[None]:
    """Inside, `handle` handles all signals to stop. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handle) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
