"""The runner's side of live tracking: starts `pw.tracking.relay` and tells it which trainings run."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.io.paths import ROOT, SUITE
from pw.parallel.signals import stop_signals

if TYPE_CHECKING:
    from pw.run.settings import Tracking
    from pw.tracking.loggers import Live

CLOSE_SECONDS = 30.0  # between two signs of life at the end, most of which is the import of a store


class LiveTracking:
    """Passes trainings on to their store while they run. Its methods return at once, but for `close`, and never raise.

    The relay starts with the first training. Its output is in `outputs/logs/tracking.log`.
    """

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs.resolve()
        self._relay: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._unsent: list[tuple[str, Any]] = []  # while the relay is busy with a store
        self._told: list[tuple[str, Any]] = []  # all so far, for a relay that takes the place of a killed one

    def begin(self, live: Live, tracking: Tracking) -> None:
        """Follow a training, from its files."""
        self._send("begin", (live, tracking))

    def add(self, live: Live, tracking: Tracking, values: Mapping[str, float], step: int) -> None:
        """Add values to the run of a training that has ended, now or in an earlier call."""
        self._send("add", (live, tracking, values, step))

    def end(self, folder: Path, status: str) -> None:
        """A training has ended: success, failed or KILLED."""
        self._send("end", (folder, status))

    def close(self) -> str:
        """Wait until all is passed on, while there is progress; returns why it was not, "" if it was."""
        if self._relay is None or self._connection is None:
            return ""
        problem = f"it did not answer within {CLOSE_SECONDS:g} s"
        self._send("close", None)
        try:
            self._send_on(CLOSE_SECONDS)
            while self._connection.poll(CLOSE_SECONDS):
                if (answer := self._connection.recv()) is not None:  # None: it passed on one training
                    problem = str(answer)
                    break
        except (OSError, EOFError):
            problem = "its process was killed"
        self._relay.kill()
        self._relay.wait()
        self._connection.close()
        self._relay = self._connection = None
        self._unsent.clear()
        self._told.clear()
        return problem

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        log = self.outputs / "logs" / "tracking.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        path = [*dict.fromkeys([str(SUITE), str(ROOT)]), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "pw.tracking.relay", str(theirs.fileno()), str(self.outputs)]
        # `timeout`, Slurm and a terminal signal all processes: the relay ends with its runner, and says how that ended
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [*stop_signals(), signal.SIGINT])
        with ours, theirs, log.open("ab") as output, ExitStack() as stack:
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            self._relay = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            self._connection = Connection(ours.detach())

    def _send(self, kind: str, content: Any) -> None:
        with suppress(OSError, ValueError):
            if self._relay is not None and self._relay.poll() is not None:  # killed: another goes on from the files
                self._start()
                self._unsent = [*self._told]
            elif self._connection is None and kind in ("begin", "add"):
                self._start()
            if self._connection is not None:
                self._told.append((kind, content))
                self._unsent.append((kind, content))
                self._send_on(0.0)

    def _send_on(self, seconds: float) -> None:
        """Send what is unsent. seconds: to wait for the relay, each time it takes no more."""
        assert self._connection is not None
        while self._unsent and select.select([], [self._connection], [], seconds)[1]:
            self._connection.send(self._unsent.pop(0))
