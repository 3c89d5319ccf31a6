"""Who runs which job, since when: one small file per job in `outputs/ledger/`, and no server.

A runner claims a job before it starts it; the process that runs it renews the claim every few seconds. So a second
runner, on this machine or on another that shares the folder, waits for what is claimed and takes what is free. A claim
is a hint: what keeps results whole is the lock in each folder of results. A claim that cannot be written (a full disk)
stops no job.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import psutil

from pw.io.files import digest, write_json

BEAT = 3.0  # seconds between two signs of life
PATIENCE = 30.0  # seconds, for the ledger's lock: one who holds it may have been suspended
SQUEUE = 10  # seconds between two questions to SLURM
SILENT = 120.0  # seconds without one, after which nobody is thought to work on a job
HOST = socket.gethostname()


@dataclass(frozen=True)
class Claim:
    """Who runs a job, and how far it is.

    state          queued: handed to a scheduler; running; failed
    owner          the ledger (a runner's) that claimed it
    host, pid      the process that runs it; `started` is when it was started, as pids are used again
    since, beat    epoch seconds: when it was claimed, and the last sign of life
    done, total    updates or batches; (first, at_first) is where this process began, to estimate the time that is left
    queue          its place there, `slurm:17_0`
    """

    key: str
    label: str
    state: Literal["queued", "running", "failed"]
    owner: str
    host: str
    pid: int
    started: float
    since: float
    beat: float
    log: str = ""
    done: int = 0
    total: int = 0
    first: int = 0
    at_first: float = 0.0
    at_last: float = 0.0
    error: str = ""
    queue: str = ""

    @property
    def is_stale(self) -> bool:
        """Whether it is marked running but its process is gone or silent, or queued but not in the queue."""
        if self.state == "queued":
            return bool(self.queue) and not is_in_queue(self.queue)
        if self.state != "running":
            return False
        return time.time() - self.beat > SILENT or (self.host == HOST and not _is_alive(self.pid, self.started))

    @property
    def is_held(self) -> bool:
        """Whether somebody runs it, or will."""
        return self.state in ("queued", "running") and not self.is_stale

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the updates so far; None before the first."""
        if self.done <= self.first or self.at_last <= self.at_first:
            return None
        return (self.at_last - self.at_first) / (self.done - self.first) * (self.total - self.done)

    @property
    def who(self) -> str:
        """Where it runs, in words."""
        return f"the queue, as {self.queue}" if self.state == "queued" else f"process {self.pid} on {self.host}"


class Ledger:
    """The claims under one folder of outputs; `owner` is the name that this runner claims in."""

    def __init__(self, outputs: Path, owner: str = "") -> None:
        self.folder = outputs / "ledger"
        self.owner = owner or secrets.token_hex(8)

    def path(self, key: str) -> Path:
        return self.folder / f"{digest(key)}.json"

    def _locked(self, seconds: float = PATIENCE) -> Any:
        from filelock import FileLock

        return FileLock(self.folder / ".lock", timeout=seconds)

    def read(self, key: str) -> Claim | None:
        """The claim on a job; None if there is none."""
        try:
            return Claim(**json.loads(self.path(key).read_text()))
        except (OSError, ValueError, TypeError):  # none; cut off by a crash of the machine; an older version's
            return None

    def claim(
        self, key: str, label: str, log: Path, *, state: Literal["queued", "running"] = "running", in_turn: bool = False
    ) -> Claim:
        """Claim a job; returns the claim that then holds, which has another `owner` if somebody else has the job.

        in_turn: by a job of the queue whose turn has come, which keeps its place there and takes over what is queued
        """
        now = time.time()
        claim = Claim(key, label, state, self.owner, HOST, os.getpid(), _started(), now, now, str(log))
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if (current := self.read(key)) is not None:
                    is_free = current.owner == self.owner or (in_turn and current.state == "queued")
                    if not is_free and current.is_held:
                        return current
                    claim = replace(claim, queue=current.queue if in_turn else "")
                self.write(claim)
        return claim

    def enqueue(self, key: str, queue: str) -> None:
        """Note where a claimed job waits, unless its turn has come already."""
        with suppress(OSError), self._locked():
            if (current := self.read(key)) is not None and current.state == "queued":
                self.write(replace(current, queue=queue))

    def write(self, claim: Claim) -> None:
        """Replace the claim, atomically. On a full disk the older one stays."""
        with suppress(OSError):
            write_json(self.path(claim.key), asdict(claim))

    def release(self, key: str) -> None:
        """Remove the claim: the job is done, or free."""
        with suppress(OSError):
            self.path(key).unlink(missing_ok=True)

    def fail(self, key: str, reason: str, log: Path | None = None) -> None:
        """Note that the job failed, for `pw status`; such a claim keeps nobody from the job. Of several processes that
        fail together the first counts: the others may only have lost it.

        log: where its output is, if not where the claim says
        """
        with suppress(OSError), self._locked():
            if (current := self.read(key)) is not None and current.state != "failed":
                there = current.log if log is None else str(log)
                self.write(replace(current, state="failed", error=reason, log=there, beat=time.time()))

    def renew(self, claim: Claim) -> bool:
        """Write the claim with a new sign of life; False when another process of the same job has failed meanwhile."""
        with suppress(OSError), self._locked(BEAT):
            current = self.read(claim.key)
            if current is not None and current.state == "failed" and current.since == claim.since:
                return False
            self.write(replace(claim, beat=time.time()))
        return True

    @contextmanager
    def working(self, claim: Claim) -> Generator[Callable[[int, int], None]]:
        """Renew the claim in this process's name while the body runs; gives what to call with (done, total).

        The file is left as it was last: the caller releases it, or says how it failed.
        """
        held = replace(claim, state="running", host=HOST, pid=os.getpid(), started=_started())
        ended = threading.Event()

        def progress(done: int, total: int) -> None:
            nonlocal held
            now = time.time()
            begun = held if held.total else replace(held, first=done, at_first=now)
            held = replace(begun, done=done, total=total, at_last=now)

        def renew() -> None:
            while self.renew(held) and not ended.wait(BEAT):
                pass

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield progress
        finally:
            ended.set()
            thread.join()


def is_in_queue(place: str) -> bool:
    """Whether `slurm:17_0` waits or runs; where this machine does not see the queue, yes."""
    kind, _, number = place.partition(":")
    if kind == "local":
        return _is_alive(int(number))
    there = _squeue(int(time.time() // SQUEUE))
    return there is None or number in there


@lru_cache(maxsize=1)
def _squeue(_: int) -> frozenset[str] | None:
    """Numbers of all jobs of SLURM's queue, arrays one by one; asked no more than once in SQUEUE seconds."""
    try:
        query = ["squeue", "--noheader", "--array", "--format=%i"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return frozenset(answer.stdout.split())


def _started() -> float:
    return psutil.Process().create_time()


def _is_alive(pid: int, started: float | None = None) -> bool:
    try:
        process = psutil.Process(pid)
        is_same = started is None or abs(process.create_time() - started) < 2
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
