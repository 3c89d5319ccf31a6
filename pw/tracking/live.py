"""The runner's side of live tracking: starts `pw.tracking.relay` and tells it which trainings run."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.io.paths import ROOT, SUITE

if TYPE_CHECKING:
    from pw.run.settings import Tracking
    from pw.tracking.loggers import Live

CLOSE_SECONDS = 30.0  # for what is not passed on yet at the end, most of which is the import of a store


class LiveTracking:
    """Passes trainings on to their store while they run. Its methods return at once, but for `close`, and never raise.

    The relay starts with the first training. Its output is in `outputs/logs/tracking.log`.
    """

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs.resolve()
        self._relay: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

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
        """Wait until all is passed on, but not for long; returns why it was not, "" if it was."""
        if self._relay is None or self._connection is None:
            return ""
        problem = f"it did not answer within {CLOSE_SECONDS:g} s"
        with suppress(OSError, EOFError):
            self._send("close", None)
            if self._connection.poll(CLOSE_SECONDS):
                problem = str(self._connection.recv())
        self._relay.kill()
        self._relay.wait()
        self._connection.close()
        self._relay = self._connection = None
        return problem

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        log = self.outputs / "logs" / "tracking.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        path = [*dict.fromkeys([str(SUITE), str(ROOT)]), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "pw.tracking.relay", str(theirs.fileno()), str(self.outputs)]
        with ours, theirs, log.open("ab") as output:
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
            if self._connection is None and kind in ("begin", "add"):
                self._start()
            if self._connection is None:
                return
            _, writable, _ = select.select([], [self._connection], [], 0)
            if writable:  # else the relay hangs, and the runner must not
                self._connection.send((kind, content))
