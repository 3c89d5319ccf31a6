"""Jobs run on this machine: several processes at a time, one per core by default.

A job that fails takes only those along that need it. A job that another runner has claimed is waited for.
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
from pw.io.files import digest
from pw.io.host import free_memory, usable_cores
from pw.parallel.launch import CHECKPOINT_SECONDS, ProcessFailed
from pw.parallel.signals import Stopped, interruptible

FORK_SECONDS = 20  # importing torch, lightning and diffusers, once
PRELOAD = ["pw.io.suite_first", "experiments.engine.preload"]  # imported once, where workers are forked from


@dataclass
class RunningJob:
    """A job in a process of this pool."""

    job: Job
    process: Any
    report: Connection
    began: float
    share: float = 0.0
    is_silent: bool = False  # it cannot report any more


def read_reports(running: RunningJob) -> tuple[str, str, str] | None:
    """Take in what a worker sent: its progress, and at its end (done, stopped or failed; why; the log), else None."""
    outcome = None
    try:
        while running.report.poll():
            word, first, second = running.report.recv()
            if word == "progress":
                running.share = first / max(1, second)
            else:
                outcome = (word, first, second)
    except (EOFError, OSError):  # a killed process may leave half a word
        running.is_silent = True
    return outcome


def start_fork_server() -> None:
    """Start the server that workers are forked from, unless it runs. It ignores SIGHUP, as do its workers: when a
    terminal closes, the runner stops the workers, and the server must live to report their ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Pool:
    """Runs jobs in their order as soon as what they need is done, `workers` at a time; 0 is one per core that this
    process may use, with a GiB of free memory for each.

    show(event, job, text)  is called when a job is started, done, failed, skipped or stopping
    failed                  key -> reason, also of jobs that were not run because one that they need failed
    held                    key -> the claim of another runner, whose job is waited for
    """

    def __init__(self, outputs: Path, workers: int, show: Callable[[str, Job, str], None]) -> None:
        self.outputs, self.show = outputs, show
        self.workers = workers or max(1, min(usable_cores(), free_memory() // 2**30))
        self.ledger = Ledger(outputs)
        self.failed: dict[str, str] = {}
        self.held: dict[str, Claim] = {}
        self.running: list[RunningJob] = []
        self.waiting: list[Job] = []
        self.pace = 1.0  # measured seconds per estimated second
        self._measured = (0.0, 0.0)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)

    def run(self, jobs: Sequence[Job], tick: Callable[[], None] = lambda: None) -> None:
        """Run the jobs until none is left that can run. Raises KeyboardInterrupt or Stopped after a signal, when the
        workers have ended."""
        self.waiting = list(jobs)
        start_fork_server()
        with interruptible():
            try:
                while self.waiting or self.running:
                    self._start()
                    if not self.running and not self.held:
                        break
                    ends = [r.report for r in self.running] + [r.process.sentinel for r in self.running]
                    wait(ends, timeout=1.0)
                    for running in list(self.running):
                        self._listen(running)
                    tick()
            finally:
                self._end()

    def _end(self) -> None:
        """End what runs: a training has time to write a checkpoint, unless Ctrl-C is pressed once more."""
        with suppress(KeyboardInterrupt):
            for running in self.running:
                running.process.terminate()
            for running in self.running:
                if running.job.kind == "train":
                    self.show("stopping", running.job, "until its checkpoint is written; Ctrl-C ends it at once")
            until = time.monotonic() + CHECKPOINT_SECONDS
            for running in self.running:
                running.process.join(max(0.0, until - time.monotonic()))
        for running in self.running:
            running.process.kill()
            running.process.join()
            self.ledger.release(running.job.key)
            outcome = read_reports(running)
            if outcome is not None and outcome[0] == "failed":  # at its checkpoint, say
                self.show("failed", running.job, f"{outcome[1]} (log: {outcome[2]})")
        self.running.clear()

    def seconds_left(self) -> float:
        """Estimated wall time to the end: the work left over the workers, but no less than its longest chain."""
        chains = {r.job.key: (1 - r.share) * r.job.seconds() for r in self.running}  # to the end of each job
        work = sum(chains.values()) + sum(job.seconds() for job in self.waiting)
        for job in self.waiting:  # each after what it needs
            chains[job.key] = job.seconds() + max((chains.get(need, 0.0) for need in job.needs), default=0.0)
        return self.pace * max(work / self.workers, max(chains.values(), default=0.0))

    def _start(self) -> None:
        """Start what can be started; one pass is enough, as every job comes after those that it needs."""
        pending = {job.key for job in self.waiting} | {running.job.key for running in self.running}
        self.held.clear()
        for job in list(self.waiting):
            if broken := [need for need in job.needs if need in self.failed]:
                self.waiting.remove(job)
                first = self.failed[broken[0]].removeprefix("not run: ").partition(" failed")[0]
                self.failed[job.key] = f"not run: {first} failed"
                self.show("skipped", job, self.failed[job.key])
            elif len(self.running) < self.workers and not pending & set(job.needs):
                claim = self.ledger.claim(job.key, job.label, self.log_of(job))
                if claim.owner != self.ledger.owner:
                    self.held[job.key] = claim
                    continue
                self.waiting.remove(job)
                if job.is_done(self.outputs):  # by another runner, since the plan was made
                    self.ledger.release(job.key)
                    self.show("done", job, "by another runner")
                    pending.remove(job.key)
                else:
                    self._launch(job, claim)

    def _launch(self, job: Job, claim: Claim) -> None:
        report, theirs = self.context.Pipe()
        process = self.context.Process(target=work, args=(job, self.outputs, claim, theirs), daemon=True)
        process.start()
        theirs.close()
        self.running.append(RunningJob(job, process, report, time.perf_counter()))
        self.show("started", job, "")

    def log_of(self, job: Job) -> Path:
        return self.outputs / "logs" / f"{job.label.replace(' ', '_').replace('/', '-')}_{digest(job.key, 4)}.log"

    def _listen(self, running: RunningJob) -> None:
        outcome = read_reports(running)
        if outcome is None and (running.is_silent or running.process.exitcode is not None):
            code = running.process.exitcode
            how = "was killed" if running.is_silent else f"ended with code {code}"
            outcome = ("failed", f"its process {how} (out of memory?)", str(self.log_of(running.job)))
        if outcome is None:
            return
        running.process.join(10)
        running.report.close()
        self.running.remove(running)
        took = time.perf_counter() - running.began
        if outcome[0] == "done":
            estimated, measured = self._measured
            self._measured = (estimated + running.job.seconds(), measured + took)
            self.pace = self._measured[1] / self._measured[0]
            self.show("done", running.job, f"{took:.0f} s")
        else:
            self.failed[running.job.key] = f"{running.job.label} failed: {outcome[1]}"
            self.ledger.fail(running.job.key, outcome[1], Path(outcome[2]))
            self.show("failed", running.job, f"{outcome[1]} (log: {outcome[2]})")


# ---- in a worker


def work(job: Job, outputs: Path, claim: Claim, report: Connection) -> None:
    """Run one job: its output goes to the claim's log, its progress and its end to `report`."""
    threading.Thread(target=_end_with_runner, args=(report,), daemon=True).start()
    log, ledger = Path(claim.log), Ledger(outputs)
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = log.open("w", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    try:
        with ledger.working(claim) as note:

            def progress(done: int, total: int) -> None:
                note(done, total)
                report.send(("progress", done, total))

            run_job(job, outputs, progress, is_checked=True)
        ledger.release(job.key)
        report.send(("done", "", ""))
    except Stopped as stopped:
        name = signal.Signals(stopped.signal).name
        report.send(("stopped", f"stopped by {name}; the same command goes on", str(log)))
    except ProcessFailed as error:  # in one of several processes, which has a log of its own
        traceback.print_exc()
        report.send(("failed", str(error), str(error.log or log)))
    except BaseException as error:
        traceback.print_exc()
        report.send(("failed", f"{type(error).__name__}: {error}", str(log)))


def _end_with_runner(report: Connection) -> None:
    # the runner sends nothing, but its end closes when it dies, even by SIGKILL
    with suppress(EOFError, OSError):
        report.recv()
    os._exit(1)
