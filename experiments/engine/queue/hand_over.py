"""`Queue` submits units to a queue and waits for their results; `QueueJob` is the job that the queue runs per unit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from experiments.engine.job import Job, run_job
from experiments.engine.ledger import Claim, Ledger, is_in_queue
from experiments.engine.queue.launcher import Submitit, Unit
from pw.parallel.signals import STOP_SIGNALS, interruptible, stop_signals
from pw.parallel.team import Place, Team, current_place, join_team

ABSENT_SECONDS = 30.0  # a job may be in neither queue nor ledger for so long, e.g. while it is requeued
STOPPING = frozenset(STOP_SIGNALS) - {signal.SIGINT}  # a job of the queue has no keyboard


class _RunningJob(NamedTuple):
    job: Job
    share: float  # done part by the ledger, 0 to 1


class Queue:
    """The counterpart of `Pool` for a queue. The jobs survive an interruption; the same command waits again."""

    def __init__(
        self,
        launcher: Submitit,
        plan_folder: Path,
        outputs: Path,
        pending: Sequence[Unit],
        show: Callable[[str, Job, str], None],
    ) -> None:
        self.launcher, self.folder, self.outputs, self.show = launcher, plan_folder / "queue", outputs, show
        self.ledger = Ledger(outputs)
        self.pending = {unit.name: unit for unit in pending}
        self.failures: dict[str, str] = {}
        self.other_claims: dict[str, Claim] = {}
        self.running: list[_RunningJob] = []
        self._units = dict(self.pending)
        self._places: dict[str, str] = {}  # unit -> id in the queue, e.g. slurm:17_0
        self._last_seen: dict[str, float] = {}  # unit -> last time in the queue or running
        self._done_keys: set[str] = set()

    def run(self, jobs: Sequence[Job], tick: Callable[[], None] = lambda: None) -> None:
        """Wait until every job is done or has failed. Raises KeyboardInterrupt or Stopped after a signal."""
        pause = 0.3 if self.launcher.cluster == "local" else 5.0
        with interruptible():
            self._update()  # another runner may have finished jobs since the plan was made
            while self.pending:
                self._submit_ready()
                tick()
                time.sleep(pause)
                self._update()

    def seconds_left(self) -> float:
        """Estimated time to the end: the remaining work divided by the parallel jobs, at least the longest chain."""
        cost = {name: sum(job.seconds() for job in unit.jobs) for name, unit in self.pending.items()}
        longest = max((self._chain(name, cost) for name in cost), default=0.0)
        return max(longest, sum(cost.values()) / self.launcher.parallel)

    def _chain(self, name: str, cost: Mapping[str, float]) -> float:
        return cost[name] + max((self._chain(n, cost) for n in self._units[name].needs if n in cost), default=0.0)

    def _submit_ready(self) -> None:
        arrays: dict[tuple[tuple[str, ...], int], list[Unit]] = {}
        self.other_claims.clear()
        for name, unit in self.pending.items():
            if name in self._places or not all(self._is_ready(need) for need in unit.needs):
                continue
            if (claim := self._claim(unit)) is not None:
                self.other_claims[claim.key] = claim
                continue
            if all(job.is_done(self.outputs) for job in unit.jobs):  # by another runner
                continue
            pending_needs = [need for need in unit.needs if need in self.pending]
            dependencies = tuple(self._places[need].partition(":")[2] for need in pending_needs)
            arrays.setdefault((dependencies, unit.tasks), []).append(unit)
        for (dependencies, _), array_units in arrays.items():
            self._submit(dependencies, array_units)

    def _is_ready(self, need: str) -> bool:
        """Whether a needed unit is done, or the queue itself can wait for it."""
        return need not in self.pending or (self.launcher.cluster == "slurm" and need in self._places)

    def _claim(self, unit: Unit) -> Claim | None:
        """Claim the remaining jobs of a unit: None on success, else the claim of another runner."""
        claimed_jobs: list[Job] = []
        for job in unit.jobs:
            if job.is_done(self.outputs):
                continue
            claim = self.ledger.claim(job.key, job.label, Path(), state="queued")
            if claim.owner != self.ledger.owner:
                for claimed in claimed_jobs:
                    self.ledger.release(claimed.key)
                return claim
            claimed_jobs.append(job)
        return None

    def _submit(self, dependencies: Sequence[str], array_units: Sequence[Unit]) -> None:
        import submitit

        limit = {"slurm_max_num_timeout": self.launcher.requeues, "local_max_num_timeout": self.launcher.requeues}
        executor = submitit.AutoExecutor(folder=self.folder / "%j", cluster=self.launcher.cluster, **limit)
        parameters = self.launcher.parameters(self.folder.parent.name, array_units[0])
        if dependencies:
            parameters["slurm_dependency"] = f"afterany:{':'.join(dependencies)}"
        executor.update_parameters(**parameters)
        queue_jobs = []
        with executor.batch():
            for unit in array_units:
                required = {
                    job.label: job
                    for need in unit.needs
                    for job in self._units[need].jobs
                    if any(job.key in unit_job.needs for unit_job in unit.jobs)
                }
                queue_jobs.append(executor.submit(QueueJob(unit, self.outputs, self.ledger.owner, required)))
        for unit, job in zip(array_units, queue_jobs, strict=True):
            self._places[unit.name] = f"{self.launcher.cluster}:{job.job_id}"
            self._last_seen[unit.name] = time.time()
            for unit_job in unit.jobs:
                self.ledger.enqueue(unit_job.key, self._places[unit.name])

    def _update(self) -> None:
        self.running.clear()
        for name, unit in list(self.pending.items()):
            remaining = [job for job in unit.jobs if not self._is_done(job)]
            claims = {job.key: claim for job in remaining if (claim := self.ledger.read(job.key)) is not None}
            for job in remaining:
                if (claim := claims.get(job.key)) is not None and claim.state == "running":
                    self.running.append(_RunningJob(job, claim.done / max(1, claim.total)))
            needed_keys = [job.key for need in unit.needs for job in self._units[need].jobs]
            if not remaining:
                del self.pending[name]
            elif reasons := [self.failures[key] for key in needed_keys if key in self.failures]:
                self._cancel(name)
                self._skip(unit, remaining, reasons[0].removeprefix("not run: ").partition(" failed")[0])
            elif name in self._places and (failure := self._failure(name, remaining, claims)) is not None:
                failed_job, reason = failure
                self.failures[failed_job.key] = f"{failed_job.label} failed: {reason}"
                self.ledger.fail(failed_job.key, reason.partition(" (log: ")[0])
                self.show("failed", failed_job, reason)
                self._skip(unit, [job for job in remaining if job is not failed_job], failed_job.label)

    def _is_done(self, job: Job) -> bool:
        if job.key in self._done_keys:
            return True
        if not job.is_done(self.outputs):
            return False
        self._done_keys.add(job.key)
        self.ledger.release(job.key)
        self.show("done", job, "in the queue")
        return True

    def _failure(self, name: str, remaining: Sequence[Job], claims: Mapping[str, Claim]) -> tuple[Job, str] | None:
        """(job, reason) of a unit that cannot finish, else None."""
        for job in remaining:
            if (claim := claims.get(job.key)) is not None and claim.state == "failed":
                return job, f"{claim.error} (log: {claim.log})"
        now = time.time()
        is_running = any(claim.state == "running" and not claim.is_stale for claim in claims.values())
        if is_running or is_in_queue(self._places[name]):
            self._last_seen[name] = now
        elif now - self._last_seen[name] > ABSENT_SECONDS:
            number = self._places[name].partition(":")[2]
            reason = f"job {number} left the queue without a result (cancelled?); logs: {self.folder / number}"
            return remaining[0], reason
        return None

    def _cancel(self, name: str) -> None:
        if name in self._places and self.launcher.cluster == "slurm":
            with suppress(OSError):
                subprocess.run(["scancel", self._places[name].partition(":")[2]], check=False)

    def _skip(self, unit: Unit, jobs: Sequence[Job], label: str) -> None:
        """Give up a unit: its `jobs` do not run because the job with this label failed."""
        del self.pending[unit.name]
        for job in jobs:
            self.failures[job.key] = f"not run: {label} failed"
            self.ledger.release(job.key)
            self.show("skipped", job, self.failures[job.key])

    def interrupt_message(self) -> str:
        """The message to print when the waiting is interrupted."""
        numbers = sorted({place.partition(":")[2] for name, place in self._places.items() if name in self.pending})
        stop = "scancel" if self.launcher.cluster == "slurm" else "kill"
        return (
            f"the jobs keep running ({stop} {' '.join(numbers)} stops them); `make status` shows them; run the same "
            "command to wait for them again"
        )


# ---- in a job of the queue


@dataclass(frozen=True)
class QueueJob:
    """A picklable callable that submitit runs, and runs again after a requeue.

    needs  label -> job of another unit that must be done before
    """

    unit: Unit
    outputs: Path
    owner: str
    needs: Mapping[str, Job]

    def __call__(self) -> None:
        """Raises what a job raises; after a signal, submitit's handler requeues the job and ends the process."""
        os.environ["SLURM_JOB_NAME"] = "bash"  # so that Lightning ignores SLURM's variables
        ledger = Ledger(self.outputs, self.owner)
        with _Stop() as stop, self._join_tasks() as team:
            for job in self.unit.jobs:
                self._run(job, ledger, stop, team)
                stop.number = int(team.maximum(stop.number))
                if stop.number:
                    break
        if stop.number:
            stop.requeue(team.place)

    def checkpoint(self) -> Any:
        """The submission that submitit requeues."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    @contextmanager
    def _join_tasks(self) -> Generator[Team]:
        """Wait until all tasks of this job of the queue have started, and join them to a team."""
        if self.unit.tasks == 1:
            yield Team(Place(0, 1))
            return
        from submitit import JobEnvironment

        task = JobEnvironment()
        if task.cluster == "local":  # set the variables of torchrun; SLURM sets its own
            rank = {"RANK": task.global_rank, "WORLD_SIZE": task.num_tasks, "LOCAL_RANK": task.local_rank}
            # all tasks compute the same port, below the ephemeral ports of the kernel
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 10000 + int(task.raw_job_id) % 20000}
            os.environ.update({key: str(value) for key, value in (rank | address).items()})
        place = current_place(self.unit.trainer)
        if place is None:
            raise RuntimeError(f"{self.unit.name}: only one of {self.unit.tasks} tasks was started")
        with join_team(self.unit.trainer, place) as team:
            yield team

    def _run(self, job: Job, ledger: Ledger, stop: _Stop, team: Team) -> None:
        claim = self._acquire_claim(job, ledger, stop, team)
        if claim is None:
            return
        is_first = team.place.is_first
        try:
            missing = team.broadcast([job.label for job in self.needs.values() if not job.is_done(self.outputs)])
            if missing:
                raise RuntimeError(f"not run: {', '.join(missing)} is not done")
            job.check_code()
            with ledger.working(claim) if is_first else nullcontext(lambda done, total: None) as update_claim:

                def progress(done: int, total: int) -> None:
                    update_claim(done, total)
                    stop.check()

                run_job(job, self.outputs, progress)
        except SystemExit as error:
            if not stop.number and error.code not in {128 + number for number in STOPPING}:
                raise
            stop.number = stop.number or int(error.code or 128 + signal.SIGTERM) - 128
            if is_first:
                ledger.write(replace(claim, state="queued", beat=time.time()))
        except BaseException as error:
            # before the other tasks report that this one is gone
            ledger.fail(job.key, f"{type(error).__name__}: {error}", _log())
            raise
        else:
            if is_first:
                ledger.release(job.key)

    def _acquire_claim(self, job: Job, ledger: Ledger, stop: _Stop, team: Team) -> Claim | None:
        """The claim on the job, the same in all tasks; None if the job is done, or a signal came while another runner
        had the claim."""
        while True:
            claim = None
            if team.place.is_first and not job.is_done(self.outputs):
                claim = ledger.claim(job.key, job.label, _log(), dequeue=True)
            claim = team.broadcast(claim)
            if claim is None or claim.owner == self.owner:
                return claim
            if team.maximum(stop.number):
                return None
            time.sleep(1)


def _log() -> Path:
    """The log file of this job of the queue."""
    from submitit import JobEnvironment

    return JobEnvironment().paths.stdout


class _Stop:
    """Inside this context a stop signal only sets `number`; submitit's handler runs later, in `requeue`."""

    def __init__(self) -> None:
        self.number = 0
        self.handlers: dict[int, Any] = {}  # submitit's handlers

    def __enter__(self) -> _Stop:
        for number in STOPPING.intersection(stop_signals()):
            self.handlers[number] = signal.signal(number, self.record)
        return self

    def __exit__(self, *error: object) -> None:
        # SIGTERM stays ignored: SLURM sends it together with the notice, while the job is being requeued
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def record(self, number: int, _: FrameType | None) -> None:
        """The signal handler. It only stores the number, because it can interrupt any code."""
        self.number = number

    def check(self) -> None:
        """Stop if a signal came; called where stopping is safe. A training's own handler first writes a checkpoint."""
        if not self.number:
            return
        if signal.getsignal(self.number) == self.record:
            raise SystemExit(128 + self.number)
        signal.raise_signal(self.number)

    def requeue(self, place: Place) -> None:
        """Let submitit requeue the job, unless it was cancelled; does not return. The first task does this for all
        tasks, which have stopped after the same update."""
        if not place.is_first:
            raise SystemExit
        if self.number == signal.SIGTERM and _is_cancelled():
            raise SystemExit(128 + self.number)
        self.handlers[signal.SIGUSR2](signal.SIGUSR2, None)


def _is_cancelled() -> bool:
    """Whether SIGTERM came from `scancel` or SLURM itself requeues the job; otherwise SLURM reports RUNNING."""
    if "SLURM_JOB_ID" not in os.environ:
        return False
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # SLURM_JOB_ID of the last array task is that of the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    query = ["squeue", "--noheader", "--format=%T", "--jobs", job]
    result = subprocess.run(query, capture_output=True, text=True, check=False)
    return result.returncode != 0 or result.stdout.strip() != "RUNNING"
