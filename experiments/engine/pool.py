"""Runs jobs on this machine: several processes at a time, one per core by default. Begin with `Pool`.

When a job fails, only the jobs that need it are skipped. For a job that another runner has claimed, the pool waits.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from experiments.engine.job import Job, run_job
from experiments.engine.ledger import Claim, Ledger
from pw.io.files import digest, os_reason
from pw.io.host import free_memory, usable_cores
from pw.parallel.launch import CHECKPOINT_SECONDS, ProcessFailed
from pw.parallel.signals import Stopped, interruptible

FORK_SECONDS = 20  # importing torch, lightning and diffusers, once
PRELOAD = ["pw.io.suite_first", "experiments.engine.preload"]  # the fork server imports them once for all workers


@dataclass
class RunningJob:
    """A job that runs in a process of this pool. `share` is the part of it that is done, 0 to 1."""

    job: Job
    process: Any
    report: Connection
    start_time: float
    share: float = 0.0
    is_silent: bool = False  # its pipe is closed


def read_reports(running: RunningJob) -> tuple[str, str, str] | None:
    """Read the messages of a worker: update its progress; return (done, stopped or failed; reason; log) at its end."""
    outcome = None
    try:
        while running.report.poll():
            kind, first, second = running.report.recv()
            if kind == "progress":
                running.share = first / max(1, second)
            else:
                outcome = (kind, first, second)
    except (EOFError, OSError):  # a killed process may leave half a message
        running.is_silent = True
    return outcome


def start_fork_server() -> None:
    """Start the server that forks the workers, unless it runs already. The server and the workers ignore SIGHUP and
    SIGQUIT, which a terminal sends to all: the runner stops the workers, and the server must still report how they
    ended."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, signal.SIGQUIT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Pool:
    """Runs jobs in order, each as soon as the jobs that it needs are done.

    workers                 jobs at a time; 0: one per usable core, each with 1 GiB of free memory
    show(event, job, text)  called with event started, done, failed, skipped or stopping
    failures                key -> reason; also of skipped jobs, because a job that they need failed
    other_claims            key -> claim of another runner; the pool waits for it
    """

    def __init__(self, outputs: Path, workers: int, show: Callable[[str, Job, str], None]) -> None:
        self.outputs, self.show = outputs, show
        self.workers = workers or max(1, min(usable_cores(), free_memory() // 2**30))
        self.ledger = Ledger(outputs)
        self.failures: dict[str, str] = {}
        self.other_claims: dict[str, Claim] = {}
        self.running: list[RunningJob] = []
        self.waiting: list[Job] = []
        self.pace = 1.0  # measured seconds per estimated second
        self._seconds = (0.0, 0.0)  # of the finished jobs: estimated, measured
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)

    def run(self, jobs: Sequence[Job], tick: Callable[[], None] = lambda: None) -> None:
        """Run the jobs until no remaining job can run; `tick` is called about once a second. After a signal, raises
        KeyboardInterrupt or Stopped when all workers have ended."""
        self.waiting = list(jobs)
        start_fork_server()
        with interruptible():
            try:
                while self.waiting or self.running:
                    self._start()
                    if not self.running and not self.other_claims:
                        break
                    handles = [r.report for r in self.running] + [r.process.sentinel for r in self.running]
                    wait(handles, timeout=1.0)
                    for running in list(self.running):
                        self._listen(running)
                    tick()
            finally:
                self._end()

    def _end(self) -> None:
        """Stop the running jobs. A training has time to write a checkpoint, unless Ctrl-C is pressed again."""
        with suppress(KeyboardInterrupt):
            for running in self.running:
                running.process.terminate()
            for running in self.running:
                if running.job.kind == "train":
                    self.show("stopping", running.job, "stops when its checkpoint is written; Ctrl-C ends it at once")
            deadline = time.monotonic() + CHECKPOINT_SECONDS
            for running in self.running:
                running.process.join(max(0.0, deadline - time.monotonic()))
        for running in self.running:
            running.process.kill()
            running.process.join()
            self.ledger.release(running.job.key)
            outcome = read_reports(running)
            if outcome is not None and outcome[0] == "failed":  # e.g. while it wrote its checkpoint
                self.show("failed", running.job, f"{outcome[1]} (log: {outcome[2]})")
        self.running.clear()

    def seconds_left(self) -> float:
        """Estimated wall time to the end: the remaining work divided by the workers, at least the longest chain."""
        chains = {r.job.key: (1 - r.share) * r.job.seconds() for r in self.running}  # seconds until each job ends
        work = sum(chains.values()) + sum(job.seconds() for job in self.waiting)
        for job in self.waiting:  # every job comes after those that it needs
            chains[job.key] = job.seconds() + max((chains.get(need, 0.0) for need in job.needs), default=0.0)
        return self.pace * max(work / self.workers, max(chains.values(), default=0.0))

    def _start(self) -> None:
        """Start the jobs that can start. One pass is enough: every job comes after those that it needs."""
        pending = {job.key for job in self.waiting} | {running.job.key for running in self.running}
        self.other_claims.clear()
        for job in list(self.waiting):
            if failed_needs := [need for need in job.needs if need in self.failures]:
                self.waiting.remove(job)
                label = self.failures[failed_needs[0]].removeprefix("not run: ").partition(" failed")[0]
                self.failures[job.key] = f"not run: {label} failed"
                self.show("skipped", job, self.failures[job.key])
            elif len(self.running) < self.workers and not pending & set(job.needs):
                claim = self.ledger.claim(job.key, job.label, self.log_of(job))
                if claim.owner != self.ledger.owner:
                    self.other_claims[job.key] = claim
                    continue
                self.waiting.remove(job)
                if job.is_done(self.outputs, thorough=True):  # by another runner, since the plan was made
                    self.ledger.release(job.key)
                    self.show("done", job, "by another runner")
                    pending.remove(job.key)
                else:
                    self._launch(job, claim)

    def _launch(self, job: Job, claim: Claim) -> None:
        report, worker_end = self.context.Pipe()
        process = self.context.Process(target=work, args=(job, self.outputs, claim, worker_end), daemon=True)
        process.start()
        worker_end.close()
        self.running.append(RunningJob(job, process, report, time.perf_counter()))
        self.show("started", job, "")

    def log_of(self, job: Job) -> Path:
        return self.outputs / "logs" / f"{job.label.replace(' ', '_').replace('/', '-')}_{digest(job.key, 4)}.log"

    def _listen(self, running: RunningJob) -> None:
        outcome = read_reports(running)
        if outcome is None and (running.is_silent or running.process.exitcode is not None):
            code = running.process.exitcode
            reason = "was killed" if running.is_silent else f"ended with code {code}"
            outcome = ("failed", f"its process {reason} (out of memory?)", str(self.log_of(running.job)))
        if outcome is None:
            return
        running.process.join(10)
        running.report.close()
        self.running.remove(running)
        seconds = time.perf_counter() - running.start_time
        if outcome[0] == "done":
            estimated, measured = self._seconds
            self._seconds = (estimated + running.job.seconds(), measured + seconds)
            self.pace = self._seconds[1] / self._seconds[0]
            self.show("done", running.job, f"{seconds:.0f} s")
        else:
            self.failures[running.job.key] = f"{running.job.label} failed: {outcome[1]}"
            self.ledger.fail(running.job.key, outcome[1], Path(outcome[2]))
            self.show("failed", running.job, f"{outcome[1]} (log: {outcome[2]})")


# ---- in a worker


def work(job: Job, outputs: Path, claim: Claim, report: Connection) -> None:
    """Run one job. Its output goes to the log of the claim; its progress and outcome go to `report`."""
    threading.Thread(target=_end_with_runner, args=(report,), daemon=True).start()
    log, ledger = Path(claim.log), Ledger(outputs)
    try:
        _redirect_output(log)
        with ledger.working(claim) as update_claim:

            def progress(done: int, total: int) -> None:
                update_claim(done, total)
                report.send(("progress", done, total))

            run_job(job, outputs, progress, is_checked=True)
        ledger.release(job.key)
        report.send(("done", "", ""))
    except Stopped as stop:
        name = signal.Signals(stop.signal).name
        report.send(("stopped", f"stopped by {name}; run the same command again to resume", str(log)))
    except ProcessFailed as error:  # one of several processes, with its own log
        _fail(report, str(error), error.log or log)
    except OSError as error:
        _fail(report, f"{type(error).__name__}: {os_reason(error)}", log)
    except BaseException as error:
        _fail(report, f"{type(error).__name__}: {error}", log)


def _redirect_output(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = log.open("w", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream


def _fail(report: Connection, reason: str, log: Path) -> None:
    report.send(("failed", reason, str(log)))  # first: a full disk has no room for the traceback
    with suppress(OSError):
        traceback.print_exc()


def _end_with_runner(report: Connection) -> None:
    # the runner sends nothing; its end of the pipe closes when it dies, even by SIGKILL
    with suppress(EOFError, OSError):
        report.recv()
    os._exit(1)
