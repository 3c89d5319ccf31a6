"""Start several processes that are one training, follow them, and end with them.

A launched process reports its progress and its failure to the one that launched it, line by line through a socket, and
ends when that one is gone.
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
from pw.io.paths import ROOT, import_paths
from pw.io.progress import Progress, ignore_closed_stream
from pw.parallel.signals import STOP_SIGNALS, Stopped, handle_stop_signals, interruptible
from pw.parallel.team import PLACE, STORE, place_from_environment, prints_for_user

REPORT, LOG = "PW_REPORT", "PW_LOG"  # environment variables: a socket's file descriptor, a path
CHECKPOINT_SECONDS = 600.0  # that processes which were told to stop have for their checkpoint
FAILURE_SECONDS = 2.0  # that the others have when one failed
EXPECTED = (ValueError, OSError)  # errors whose message says what is wrong


class ProcessFailed(ValueError):
    """The message of the first of several processes to fail. Its traceback, or its last output, is in `log`; None where
    that went to this process's stderr."""

    def __init__(self, message: str, log: Path | None) -> None:
        super().__init__(message)
        self.log = log


def launch(command: Sequence[str], processes: int, logs: Path, progress: Progress | None) -> None:
    """Run a command as so many processes in this folder, each told its place, and wait for them.

    The first one's stderr is ours, that of the others goes to `logs`. When one fails all are ended; when this process
    is killed, all end by themselves (`exit_with_parent`); a signal to stop is sent on to them.

    Raises ProcessFailed with the message of the first to fail, and Stopped when they were stopped.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with Workers(logs) as workers:
        workers.start(command, processes)
        with workers.forwarded_signals() as received:
            rank = workers.wait(progress, received)
        if rank is None:
            return
        code = workers.running[rank].poll() or 1
    _, reported = workers.messages.get(rank, (0.0, ""))
    # one may fail at the checkpoint that it is to write, and report that
    if code - 128 in STOP_SIGNALS or (received and not reported):
        raise Stopped(received[0] if received else code - 128)
    killed = f"was killed by signal {-code} (out of memory?); the same command goes on"
    message = reported or f"process {rank} of {processes} {killed if code < 0 else f'ended with code {code}'}"
    log = workers.log(rank)
    if not log.stat().st_size:
        raise ProcessFailed(message, None)
    raise ProcessFailed(reported or f"{message}; its last words are in {log}", log)


class Workers:
    """The processes that `launch` starts; on exit those that still run are killed.

    Each has a socket to this process, which it reports through, and which closes with this process.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.running: list[subprocess.Popen] = []
        self.messages: dict[int, tuple[float, str]] = {}  # rank -> (time, message) of a failure that was reported
        self._unfinished: dict[int, bytes] = {}  # rank -> the line of a report that has yet to end
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
        """Where a process's output and traceback go."""
        return self.logs / f"rank-{rank}.log"

    def start(self, command: Sequence[str], processes: int) -> None:
        """Start the processes, each with its place in its environment."""
        given = os.environ.get("PYTHONPATH")
        path = [*dict.fromkeys([*import_paths(), str(ROOT)]), *([given] if given else [])]  # found from any folder
        for rank in range(processes):
            ours, theirs = socket.socketpair()
            self._reports.register(self._open.enter_context(ours), selectors.EVENT_READ, rank)
            environment = {
                "PYTHONPATH": os.pathsep.join(path),
                PLACE: json.dumps([rank, processes, rank]),
                STORE: str(Path(self._folder) / "store"),
                REPORT: str(theirs.fileno()),
                LOG: str(self.log(rank)),
            }
            with theirs, self.log(rank).open("wb") as log:
                worker = subprocess.Popen(
                    command,
                    env=os.environ | environment,
                    pass_fds=[theirs.fileno()],
                    stdout=subprocess.DEVNULL,
                    stderr=None if rank == 0 else log,
                    start_new_session=True,  # Ctrl-C is sent on by us, once
                )
            self.running.append(worker)

    @contextlib.contextmanager
    def forwarded_signals(self) -> Generator[list[int]]:
        """Inside, a signal to stop is sent to all processes as SIGTERM, and a Ctrl-C after that kills them; yields the
        signals that came."""
        received: list[int] = []

        def forward(number: int, frame: Any) -> None:
            received.append(number)
            if len(received) > 1 and number != signal.SIGINT:
                return  # to a runner's worker Ctrl-C comes twice, by the terminal and as the runner's SIGTERM
            for worker in self.running:
                if worker.poll() is None:
                    worker.send_signal(signal.SIGTERM if len(received) == 1 else signal.SIGKILL)

        with handle_stop_signals(forward):
            yield received

    def wait(self, progress: Progress | None, received: Sequence[int]) -> int | None:
        """Wait until all have ended, or for a while after one failed: the first to fail, None if all ended well.

        received  signals that were sent on to them
        """
        codes: dict[int, int] = {}  # rank -> exit code of those that failed
        deadline = math.inf
        while any(worker.poll() is None for worker in self.running) and time.monotonic() < deadline:
            self._read_reports(progress, timeout=0.2)
            codes = codes or {rank: code for rank, worker in enumerate(self.running) if (code := worker.poll())}
            if (codes or self.messages) and deadline == math.inf:
                # those that a signal stops end together; nobody waits long for one that failed, nor for the others
                stops = received or any(code - 128 in STOP_SIGNALS for code in codes.values())
                deadline = time.monotonic() + (CHECKPOINT_SECONDS if stops else FAILURE_SECONDS)
        self._read_reports(progress, timeout=0)
        codes = codes or {rank: worker.returncode for rank, worker in enumerate(self.running) if worker.returncode}
        if not codes and not self.messages:
            return None
        # one that was killed takes the others along, but NCCL aborts processes whose partner failed (SIGABRT): then,
        # and otherwise, the first to report knows why
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
                elif progress is not None and key.data == 0:  # all are at the same update
                    progress(message["update"], message["updates"])


# ---- in a launched process; without a launcher these do nothing


def exit_with_parent() -> None:
    """End this process when its launcher is gone, even if that was killed."""
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
    text = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
    report(failed=text[:2000], at=time.time())
    with contextlib.suppress(OSError), Path(os.environ[LOG]).open("a") as log:
        traceback.print_exception(error, file=log)
    return True


@contextlib.contextmanager
def reported_mistakes() -> Generator[None]:
    """Inside, a call is checked: a launched process reports what is wrong and ends, another raises ConfigError."""
    try:
        yield
    except EXPECTED as error:
        if report_failure(error):
            raise SystemExit(2) from error
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error


def carry_out(
    work: Callable[[], None],
    resumes: str,
    explain: Callable[[Exception], Exception | None] = lambda error: error if isinstance(error, EXPECTED) else None,
) -> int:
    """Do the work of a command; its exit status: 0 done, 1 failed, 128 + n stopped by a signal.

    resumes  what is said when it is stopped
    explain  an error -> what is said of it, in a line or to the launcher; None where its traceback is to be seen
    """
    try:
        work()
    except (Stopped, KeyboardInterrupt) as stopped:
        number = stopped.signal if isinstance(stopped, Stopped) else signal.SIGINT
        if prints_for_user():
            with ignore_closed_stream(sys.stderr):
                print(f"stopped by {signal.Signals(number).name}; {resumes}", file=sys.stderr, flush=True)
        return 128 + number
    except Exception as error:
        explained = explain(error)
        if not report_failure(explained or error):
            if explained is None:
                raise
            print(f"error: {explained}", file=sys.stderr)
        return 1
    return 0


def run_and_exit(main: Callable[[list[str]], int], arguments: list[str]) -> NoReturn:
    """Carry out a command, and end the process with its status.

    One of several processes ends at once, without Python's clean-up: gloo's threads have been seen to abort a process
    that took its time, and one that failed would wait for the others' threads. A process that works alone, or launches
    others, can be stopped by a signal at any time.
    """
    place = place_from_environment()
    is_alone = place is None or (place.processes == 1 and not place.is_launched)
    try:
        with interruptible() if is_alone else contextlib.nullcontext():
            status = main(arguments)
    except SystemExit as left:
        if not isinstance(left.code, int):
            raise
        status = left.code
    except BaseException:
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
