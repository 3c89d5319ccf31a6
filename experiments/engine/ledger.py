"""Which runner runs which job: one small file per job in `outputs/ledger/`, no server. Begin with `Ledger`.

A runner claims a job before it starts it; the process of the job renews the claim every few seconds. A second runner,
on this machine or another that shares the folder, waits for claimed jobs and takes free ones. Claims are hints: the
lock in each results folder protects the results. A claim that cannot be written (full disk) stops no job.
"""

from __future__ import annotations

import logging
import math
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
from typing import Any, Literal, get_args, get_origin, get_type_hints

import psutil

from pw.io.files import digest, parse_json, write_json
from pw.io.progress import duration

HEARTBEAT = 3.0  # seconds between two renewals of a claim
LOCK_TIMEOUT = 30.0  # seconds, for the ledger's lock: the process that holds it may be suspended
SQUEUE_INTERVAL = 10  # seconds between two calls of squeue
STALE_AFTER = 120.0  # seconds without a renewal
HOST = socket.gethostname()


@dataclass(frozen=True)
class Claim:
    """The claim of a runner on a job, and the progress of the job. The fields are the keys of its JSON file.

    state            queued (submitted to a scheduler), running or failed
    owner            name of the ledger that made the claim
    host, pid        process of the job; `started` is its start time, because pids are reused
    since, beat      epoch seconds of the claim and of its last renewal
    done, total      updates or batches; (first, at_first) and (done, at_last) give the speed of this process
    queue            job id in the queue, e.g. `slurm:17_0`
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
        """Whether a running job has no live process or no recent renewal, or a queued job is not in the queue."""
        is_gone = self.host == HOST and not _is_alive(self.pid, self.started)
        if self.state == "queued":
            return not is_in_queue(self.queue) if self.queue else is_gone
        if self.state != "running":
            return False
        return is_gone or abs(time.time() - self.beat) > STALE_AFTER  # a time to come is of a clock that is wrong

    @property
    def is_active(self) -> bool:
        """Whether a runner runs the job or has queued it."""
        return self.state in ("queued", "running") and not self.is_stale

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the speed so far; None before the first update."""
        if self.done <= self.first or self.at_last <= self.at_first:
            return None
        return (self.at_last - self.at_first) / (self.done - self.first) * (self.total - self.done)

    @property
    def location(self) -> str:
        """Where the job runs, in words."""
        return f"the queue, as {self.queue}" if self.state == "queued" else f"process {self.pid} on {self.host}"


class Ledger:
    """The claims in one outputs folder; `owner` is the name of this runner in its claims."""

    def __init__(self, outputs: Path, owner: str = "") -> None:
        self.folder = outputs / "ledger"
        self.owner = owner or secrets.token_hex(8)

    def path(self, key: str) -> Path:
        return self.folder / f"{digest(key)}.json"

    def _locked(self, seconds: float = LOCK_TIMEOUT) -> Any:
        from filelock import FileLock

        return FileLock(self.folder / ".lock", timeout=seconds)

    def read(self, key: str) -> Claim | None:
        """The claim on a job; None if there is none. A file that is no claim is set aside, with a warning."""
        path = self.path(key)
        try:
            return _parse(path.read_text())
        except OSError:
            return None
        except (ValueError, TypeError) as error:  # another program's, an older version's, or truncated by a crash
            with suppress(OSError):
                path.replace(path.with_suffix(".unreadable"))
            logging.getLogger("pw").warning("%s is no claim on a job (%s); it is set aside", path, error)
            return None

    def takeover(self, claim: Claim) -> str:
        """Who has had a job since when, and how to take it over, in words."""
        now = time.time()
        since, silence = (duration(max(0, round(now - moment))) for moment in (claim.since, claim.beat))
        heartbeat = f", last seen {silence} ago" if claim.state == "running" else ""
        return (
            f"{claim.label}: waits for {claim.location}, which has it since {since}{heartbeat}; to take it over, end "
            f"that, or if it is gone remove {self.path(claim.key)}"
        )

    def claim(
        self, key: str, label: str, log: Path, *, state: Literal["queued", "running"] = "running", dequeue: bool = False
    ) -> Claim:
        """Claim a job; returns the valid claim, which has another `owner` if another runner has the job.

        dequeue: the caller is a job of the queue that starts; it takes over a queued claim and keeps its `queue`
        """
        now = time.time()
        claim = Claim(key, label, state, self.owner, HOST, os.getpid(), _process_start(), now, now, str(log))
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if (current := self.read(key)) is not None:
                    is_free = current.owner == self.owner or (dequeue and current.state == "queued")
                    if not is_free and current.is_active:
                        return current
                    claim = replace(claim, queue=current.queue if dequeue else "")
                self.write(claim)
        return claim

    def enqueue(self, key: str, queue: str) -> None:
        """Write the queue's job id to the claim, unless the job has started."""
        with suppress(OSError), self._locked():
            if (current := self.read(key)) is not None and current.state == "queued":
                self.write(replace(current, queue=queue))

    def write(self, claim: Claim) -> None:
        """Replace the claim atomically. On a full disk the old claim stays."""
        with suppress(OSError):
            write_json(self.path(claim.key), asdict(claim))

    def release(self, key: str) -> None:
        """Remove the claim, with what a killed process left of it: the job is done, or free."""
        path = self.path(key)
        with suppress(OSError):
            for file in (path, *self.folder.glob(f".{path.name}.*.part")):
                file.unlink(missing_ok=True)

    def fail(self, key: str, reason: str, log: Path | None = None) -> None:
        """Mark the job as failed, for `pw status`; any runner may claim it again. When several processes of a job fail,
        the first reason stays: the others may only have lost their connection to it.

        log: the file of its output, if it is not that of the claim
        """
        with suppress(OSError), self._locked():
            if (current := self.read(key)) is not None and current.state != "failed":
                path = current.log if log is None else str(log)
                self.write(replace(current, state="failed", error=reason, log=path, beat=time.time()))

    def renew(self, claim: Claim) -> bool:
        """Write the claim with the current time; False if another process of the same job has failed."""
        with suppress(OSError), self._locked(HEARTBEAT):
            current = self.read(claim.key)
            if current is not None and current.state == "failed" and current.since == claim.since:
                return False
            self.write(replace(claim, beat=time.time()))
        return True

    @contextmanager
    def working(self, claim: Claim) -> Generator[Callable[[int, int], None]]:
        """Renew the claim for this process while the body runs; yields a callback for progress (done, total).

        The claim stays at the end: the caller calls `release` or `fail`.
        """
        current = replace(claim, state="running", host=HOST, pid=os.getpid(), started=_process_start())
        stop = threading.Event()

        def progress(done: int, total: int) -> None:
            nonlocal current
            now = time.time()
            base = current if current.total else replace(current, first=done, at_first=now)
            current = replace(base, done=done, total=total, at_last=now)

        def renew() -> None:
            while self.renew(current) and not stop.wait(HEARTBEAT):
                pass

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield progress
        finally:
            stop.set()
            thread.join()


def _parse(text: str) -> Claim:
    """The claim in a JSON file. Raises ValueError or TypeError for other content."""
    values = parse_json(text)
    claim = Claim(**values)
    for name, kind in get_type_hints(Claim).items():
        value = getattr(claim, name)
        allowed = get_args(kind) if get_origin(kind) is Literal else None
        is_valid = value in allowed if allowed else type(value) in ((int, float) if kind is float else (kind,))
        if not is_valid or (kind is float and not math.isfinite(value)):
            raise ValueError(f"{name}={value!r}")
    if claim.queue.startswith("local:") and not claim.queue.removeprefix("local:").isdecimal():
        raise ValueError(f"queue={claim.queue!r}")
    return claim


def is_in_queue(place: str) -> bool:
    """Whether a job such as `slurm:17_0` waits or runs; True if this machine cannot ask the queue."""
    kind, _, number = place.partition(":")
    if kind == "local":
        return _is_alive(int(number))
    numbers = _squeue(int(time.time() // SQUEUE_INTERVAL))
    return numbers is None or number in numbers


@lru_cache(maxsize=1)
def _squeue(_: int) -> frozenset[str] | None:
    """Ids of all jobs in SLURM's queue, arrays expanded; squeue runs at most once in SQUEUE_INTERVAL seconds."""
    try:
        query = ["squeue", "--noheader", "--array", "--format=%i"]
        result = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return frozenset(result.stdout.split())


def _process_start() -> float:
    return psutil.Process().create_time()


def _is_alive(pid: int, started: float | None = None) -> bool:
    try:
        process = psutil.Process(pid)
        is_same = started is None or abs(process.create_time() - started) < 2
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):  # ValueError: no process can have this number
        return False
