"""Start the processes of a training, monitor them, and end with them.

A launched process sends its progress and its failure to the launcher, as lines through a socket, and exits when the
launcher is gone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pw.io.arguments import ConfigError
from pw.io.command_line import without_make
from pw.io.console import print_line
from pw.io.files import os_reason
from pw.io.paths import ROOT, SUITE
from pw.io.progress import Progress, ignore_closed_stream
from pw.parallel.signals import STOP_SIGNALS, Stopped, handle_stop_signals, interruptible, print_stop
from pw.parallel.team import PLACE, STORE, place_from_environment, prints_for_user

REPORT, LOG = "PW_REPORT", "PW_LOG"  # environment variables: a socket's file descriptor, a path
CHECKPOINT_SECONDS = 600.0  # time for the checkpoint after a signal to stop
FAILURE_SECONDS = 2.0  # time for the other processes to end after one failed
CLEAR_ERRORS = (ValueError, OSError)  # their message is clear without a traceback


class ProcessFailed(ValueError):
    """A launched process failed; the message is from the first that did. Its traceback, or last output, is in `log`, or
    in this process's stderr if `log` is None."""

    def __init__(self, message: str, log: Path | None) -> None:
        super().__init__(message)
        self.log = log


def launch(command: Sequence[str], processes: int, logs: Path, progress: Progress | None) -> None:
    """Run a command in `processes` processes, each with its place in its environment, and wait for them.

    The first process shares this process's stderr; the others write theirs to `logs`. If one fails, all are ended; if
    this process is killed, they exit (`exit_with_parent`); a signal to stop is forwarded to them.

    Raises ProcessFailed with the message of the first that failed, and Stopped if they were stopped.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with Workers(logs) as workers:
        workers.start(command, processes)
        with workers.forward_signals() as received:
            rank = workers.wait(progress, received)
        if rank is None:
            return
        code = workers.running[rank].poll() or 1
    _, failure = workers.messages.get(rank, (0.0, ""))
    # after a signal to stop, a process may fail to write its checkpoint, and report that
    if code - 128 in STOP_SIGNALS or (received and not failure):
        raise Stopped(received[0] if received else code - 128)
    end = f"was killed by signal {-code} (out of memory?); run the same command again to resume"
    message = failure or f"process {rank} of {processes} {end if code < 0 else f'ended with code {code}'}"
    log = workers.log(rank)
    if not log.stat().st_size:
        raise ProcessFailed(message, None)
    raise ProcessFailed(failure or f"{message}; its last output is in {log}", log)


class Workers:
    """The processes that `launch` starts; on exit those that still run are killed.

    Each sends reports through a socket to this process; the socket closes when this process ends.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.running: list[subprocess.Popen] = []
        self.messages: dict[int, tuple[float, str]] = {}  # rank -> (time, message) of a reported failure
        self._unfinished: dict[int, bytes] = {}  # rank -> the incomplete last line of its reports
        self._reports = selectors.DefaultSelector()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Workers:
        self._folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="pw-"))
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.running:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        self._reports.close()
        self._open.close()

    def log(self, rank: int) -> Path:
        """The file of a process's output and traceback."""
        return self.logs / f"rank-{rank}.log"

    def start(self, command: Sequence[str], processes: int) -> None:
        """Start the processes, each with its place in its environment."""
        outer = os.environ.get("PYTHONPATH")
        path = [*dict.fromkeys([str(SUITE), str(ROOT)]), *([outer] if outer else [])]  # found from any folder
        for rank in range(processes):
            local_socket, worker_socket = socket.socketpair()
            self._reports.register(self._open.enter_context(local_socket), selectors.EVENT_READ, rank)
            environment = {
                "PYTHONPATH": os.pathsep.join(path),
                PLACE: json.dumps([rank, processes, rank]),
                STORE: str(Path(self._folder) / "store"),
                REPORT: str(worker_socket.fileno()),
                LOG: str(self.log(rank)),
            }
            with worker_socket, self.log(rank).open("wb") as log:
                worker = subprocess.Popen(
                    command,
                    env=os.environ | environment,
                    pass_fds=[worker_socket.fileno()],
                    stdout=subprocess.DEVNULL,
                    stderr=None if rank == 0 else log,
                    start_new_session=True,  # Ctrl-C is forwarded once, by this process
                )
            self.running.append(worker)

    @contextlib.contextmanager
    def forward_signals(self) -> Generator[list[int]]:
        """Inside, a signal to stop is sent to all processes as SIGTERM, and a later Ctrl-C kills them. Yields the list
        of received signals."""
        received: list[int] = []

        def forward(number: int, frame: Any) -> None:
            received.append(number)
            if len(received) > 1 and number != signal.SIGINT:
                return  # a runner's worker receives Ctrl-C twice, from the terminal and as the runner's SIGTERM
            for worker in self.running:
                if worker.poll() is None:
                    worker.send_signal(signal.SIGTERM if len(received) == 1 else signal.SIGKILL)

        with handle_stop_signals(forward):
            yield received

    def wait(self, progress: Progress | None, received: Sequence[int]) -> int | None:
        """Wait until all have ended, or for a limited time after one failed. Returns the rank of the first that failed,
        None if all succeeded. received: signals that were forwarded to them."""
        codes: dict[int, int] = {}  # rank -> exit code of those that failed
        deadline = math.inf
        while any(worker.poll() is None for worker in self.running) and time.monotonic() < deadline:
            self._read_reports(progress, timeout=0.2)
            codes = codes or {rank: code for rank, worker in enumerate(self.running) if (code := worker.poll())}
            if (codes or self.messages) and deadline == math.inf:
                # processes that a signal stops end together, and write a checkpoint; after a failure the wait is short
                is_stopping = received or any(code - 128 in STOP_SIGNALS for code in codes.values())
                deadline = time.monotonic() + (CHECKPOINT_SECONDS if is_stopping else FAILURE_SECONDS)
        self._read_reports(progress, timeout=0)
        codes = codes or {rank: worker.returncode for rank, worker in enumerate(self.running) if worker.returncode}
        if not codes and not self.messages:
            return None
        # a killed process makes the others fail; but with SIGABRT NCCL may have aborted it because another one failed:
        # then, and if none was killed, the first report has the cause
        killed = [r for r, code in codes.items() if code < 0 and not (self.messages and code == -signal.SIGABRT)]
        return killed[0] if killed else min(self.messages or codes, key=lambda r: self.messages.get(r, (r, ""))[0])

    def _read_reports(self, progress: Progress | None, timeout: float) -> None:
        for key, _ in self._reports.select(timeout):
            content = os.read(key.fd, 65536)
            if not content:
                self._reports.unregister(key.fileobj)
            *lines, self._unfinished[key.data] = (self._unfinished.get(key.data, b"") + content).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "failed" in message:
                    self.messages.setdefault(key.data, (message["at"], message["failed"]))
                elif progress is not None and key.data == 0:  # all processes are at the same update
                    progress(message["update"], message["updates"])


# ---- in a launched process; these functions do nothing without a launcher


def exit_with_parent() -> None:
    """End this process when its launcher is gone, even if the launcher was killed."""
    if REPORT not in os.environ:
        return

    def wait() -> None:
        with contextlib.suppress(ConnectionError):
            os.read(int(os.environ[REPORT]), 1)  # the launcher writes nothing
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def report(**message: Any) -> None:
    """Send the launcher a short message."""
    if REPORT in os.environ:
        with contextlib.suppress(OSError):
            os.write(int(os.environ[REPORT]), (json.dumps(message) + "\n").encode())


def report_failure(error: BaseException) -> bool:
    """Report a failure to the launcher and write its traceback to this process's log; False without a launcher."""
    if LOG not in os.environ:
        return False
    text = str(error) if isinstance(error, CLEAR_ERRORS) else f"{type(error).__name__}: {error}"
    report(failed=text[:2000], at=time.time())
    with contextlib.suppress(OSError), Path(os.environ[LOG]).open("a") as log:
        traceback.print_exception(error, file=log)
    return True


@contextlib.contextmanager
def report_mistakes() -> Generator[None]:
    """For checks of a call: in a launched process an error is reported and ends it, else it becomes a ConfigError."""
    try:
        yield
    except CLEAR_ERRORS as error:
        if report_failure(error):
            raise SystemExit(2) from error
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error


def explain_clear_errors(error: Exception) -> Exception | None:
    """The error, in words if it is of the file system; None if its message is not clear without a traceback."""
    if isinstance(error, OSError):
        return OSError(os_reason(error))
    return error if isinstance(error, CLEAR_ERRORS) else None


def carry_out(
    work: Callable[[], None],
    resume_hint: str,
    explain: Callable[[Exception], Exception | None] = explain_clear_errors,
) -> int:
    """Do the work of a command; returns its exit status: 0 done, 1 failed, 128 + n stopped by signal n.

    resume_hint  printed when the work is stopped
    explain      error -> error with the message for one line or for the launcher; None to show the traceback
    """
    try:
        work()
    except (Stopped, KeyboardInterrupt) as stop:
        return print_stop(stop, resume_hint, is_shown=prints_for_user())
    except Exception as error:
        explanation = explain(error)
        if not report_failure(explanation or error):
            if explanation is None:
                raise
            print_line(without_make(f"error: {explanation}"))
        return 1
    return 0


def run_and_exit(main: Callable[[list[str]], int], arguments: list[str]) -> NoReturn:
    """Run a command, and end the process with its exit status.

    One of several processes ends at once, without Python's clean-up: in a slow exit gloo's threads may abort it, and
    after a failure it would wait for the threads of the others. A single process, or a launcher, can be stopped by a
    signal at any time.
    """
    place = place_from_environment()
    is_alone = place is None or (place.processes == 1 and not place.is_launched)
    try:
        with interruptible() if is_alone else contextlib.nullcontext():
            status = main(arguments)
    except (Stopped, KeyboardInterrupt) as stop:
        status = print_stop(stop, "nothing was begun", is_shown=prints_for_user())
    except SystemExit as error:
        if not isinstance(error.code, int):
            raise
        status = error.code
    except BaseException as error:
        if is_alone and isinstance(error, OSError):
            print_line(f"error: {os_reason(error)}")
            sys.exit(2)
        if is_alone:
            raise
        traceback.print_exc()
        status = 1
    if is_alone:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with ignore_closed_stream(stream):
            stream.flush()
    os._exit(status)
