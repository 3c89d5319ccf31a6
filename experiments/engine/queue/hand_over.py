"""Units are handed to a queue by `Queue`, which waits for their results; `QueueJob` is what the queue runs of each."""

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

ABSENT = 30.0  # seconds that a job may be in neither queue nor ledger, as while it is put back
STOPPING = frozenset(STOP_SIGNALS) - {signal.SIGINT}  # a job of the queue has no keyboard


class _AtWork(NamedTuple):
    job: Job
    share: float  # that is done, by the ledger


class Queue:
    """What `Pool` is for this machine, for a queue. It may be ended at any time: the jobs go on, and the same command
    waits for them again."""

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
        self.failed: dict[str, str] = {}
        self.held: dict[str, Claim] = {}
        self.running: list[_AtWork] = []
        self._units = dict(self.pending)
        self._queue: dict[str, str] = {}  # unit -> its place in the queue
        self._seen: dict[str, float] = {}  # unit -> when it was last known to be in the queue or at work
        self._done: set[str] = set()

    def run(self, jobs: Sequence[Job], tick: Callable[[], None] = lambda: None) -> None:
        """Wait until every job is done or has failed. Raises KeyboardInterrupt or Stopped after a signal."""
        pause = 0.3 if self.launcher.cluster == "local" else 5.0
        with interruptible():
            self._update()  # what another runner finished since the plan was made
            while self.pending:
                self._hand_over()
                tick()
                time.sleep(pause)
                self._update()

    def seconds_left(self) -> float:
        """Estimated: the work left over what runs at once, but no less than its longest chain."""
        left = {name: sum(job.seconds() for job in unit.jobs) for name, unit in self.pending.items()}
        longest = max((self._chain(name, left) for name in left), default=0.0)
        return max(longest, sum(left.values()) / self.launcher.parallel)

    def _chain(self, name: str, left: Mapping[str, float]) -> float:
        return left[name] + max((self._chain(n, left) for n in self._units[name].needs if n in left), default=0.0)

    def _hand_over(self) -> None:
        arrays: dict[tuple[tuple[str, ...], int], list[Unit]] = {}
        self.held.clear()
        for name, unit in self.pending.items():
            if name in self._queue or not all(self._is_settled(need) for need in unit.needs):
                continue
            if (other := self._claim(unit)) is not None:
                self.held[other.key] = other
                continue
            if all(job.is_done(self.outputs) for job in unit.jobs):  # meanwhile, by another runner's job
                continue
            before = [need for need in unit.needs if need in self.pending]
            after = tuple(self._queue[need].partition(":")[2] for need in before)
            arrays.setdefault((after, unit.tasks), []).append(unit)
        for (after, _), members in arrays.items():
            self._submit(after, members)

    def _is_settled(self, need: str) -> bool:
        """Whether what a unit needs is done, or can be waited for by the queue itself."""
        return need not in self.pending or (self.launcher.cluster == "slurm" and need in self._queue)

    def _claim(self, unit: Unit) -> Claim | None:
        """Claim what is left of a unit's jobs: None, or the claim of another that keeps it from this runner."""
        claimed: list[Job] = []
        for job in unit.jobs:
            if job.is_done(self.outputs):
                continue
            claim = self.ledger.claim(job.key, job.label, Path(), state="queued")
            if claim.owner != self.ledger.owner:
                for other in claimed:
                    self.ledger.release(other.key)
                return claim
            claimed.append(job)
        return None

    def _submit(self, after: Sequence[str], members: Sequence[Unit]) -> None:
        import submitit

        limit = {"slurm_max_num_timeout": self.launcher.requeues, "local_max_num_timeout": self.launcher.requeues}
        executor = submitit.AutoExecutor(folder=self.folder / "%j", cluster=self.launcher.cluster, **limit)
        parameters = self.launcher.parameters(self.folder.parent.name, members[0])
        if after:
            parameters["slurm_dependency"] = f"afterany:{':'.join(after)}"
        executor.update_parameters(**parameters)
        submitted = []
        with executor.batch():
            for unit in members:
                needed = {
                    job.label: job
                    for need in unit.needs
                    for job in self._units[need].jobs
                    if any(job.key in other.needs for other in unit.jobs)
                }
                submitted.append(executor.submit(QueueJob(unit, self.outputs, self.ledger.owner, needed)))
        for unit, job in zip(members, submitted, strict=True):
            self._queue[unit.name] = f"{self.launcher.cluster}:{job.job_id}"
            self._seen[unit.name] = time.time()
            for each in unit.jobs:
                self.ledger.enqueue(each.key, self._queue[unit.name])

    def _update(self) -> None:
        self.running.clear()
        for name, unit in list(self.pending.items()):
            left = [job for job in unit.jobs if not self._is_done(job)]
            claims = {job.key: claim for job in left if (claim := self.ledger.read(job.key)) is not None}
            for job in left:
                if (claim := claims.get(job.key)) is not None and claim.state == "running":
                    self.running.append(_AtWork(job, claim.done / max(1, claim.total)))
            needed = [job.key for need in unit.needs for job in self._units[need].jobs]
            if not left:
                del self.pending[name]
            elif broken := [self.failed[key] for key in needed if key in self.failed]:
                self._cancel(name)
                self._skip(unit, left, broken[0].removeprefix("not run: ").partition(" failed")[0])
            elif name in self._queue and (reason := self._failure(name, left, claims)) is not None:
                failed, why = reason
                self.failed[failed.key] = f"{failed.label} failed: {why}"
                self.ledger.fail(failed.key, why.partition(" (log: ")[0])
                self.show("failed", failed, why)
                self._skip(unit, [job for job in left if job is not failed], failed.label)

    def _is_done(self, job: Job) -> bool:
        if job.key in self._done:
            return True
        if not job.is_done(self.outputs):
            return False
        self._done.add(job.key)
        self.ledger.release(job.key)
        self.show("done", job, "in the queue")
        return True

    def _failure(self, name: str, left: Sequence[Job], claims: Mapping[str, Claim]) -> tuple[Job, str] | None:
        """(job, reason) when a unit will not be done."""
        for job in left:
            if (claim := claims.get(job.key)) is not None and claim.state == "failed":
                return job, f"{claim.error} (log: {claim.log})"
        now = time.time()
        at_work = any(claim.state == "running" and not claim.is_stale for claim in claims.values())
        if at_work or is_in_queue(self._queue[name]):
            self._seen[name] = now
        elif now - self._seen[name] > ABSENT:
            number = self._queue[name].partition(":")[2]
            return left[0], f"job {number} left the queue without an end (cancelled?); logs: {self.folder / number}"
        return None

    def _cancel(self, name: str) -> None:
        if name in self._queue and self.launcher.cluster == "slurm":
            with suppress(OSError):
                subprocess.run(["scancel", self._queue[name].partition(":")[2]], check=False)

    def _skip(self, unit: Unit, jobs: Sequence[Job], failed: str) -> None:
        """Give up a unit, of which these jobs are not run because the one with that label failed."""
        del self.pending[unit.name]
        for job in jobs:
            self.failed[job.key] = f"not run: {failed} failed"
            self.ledger.release(job.key)
            self.show("skipped", job, self.failed[job.key])

    def farewell(self) -> str:
        """What is printed when the waiting is interrupted."""
        numbers = sorted({place.partition(":")[2] for name, place in self._queue.items() if name in self.pending})
        stop = "scancel" if self.launcher.cluster == "slurm" else "kill"
        return (
            f"the jobs go on ({stop} {' '.join(numbers)} ends them); `make status` shows them, the same command waits "
            "for them again"
        )


# ---- in a job of the queue


@dataclass(frozen=True)
class QueueJob:
    """A picklable callable that submitit runs, and runs again after a stop.

    after  label -> job of another unit that must be done before
    """

    unit: Unit
    outputs: Path
    owner: str
    after: Mapping[str, Job]

    def __call__(self) -> None:
        """Raises what a job raises; after a signal, leaves by submitit's handler, which puts it back into the queue."""
        os.environ["SLURM_JOB_NAME"] = "bash"  # so that Lightning ignores SLURM's variables, which `place` reads
        ledger = Ledger(self.outputs, self.owner)
        with _Stop() as stop, self._together() as team:
            for job in self.unit.jobs:
                self._run(job, ledger, stop, team)
                stop.number = int(team.maximum(stop.number))
                if stop.number:
                    break
        if stop.number:
            stop.hand_on(team.place)

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    @contextmanager
    def _together(self) -> Generator[Team]:
        """Join the other tasks of this job of the queue, once all have started."""
        if self.unit.tasks == 1:
            yield Team(Place(0, 1))
            return
        from submitit import JobEnvironment

        task = JobEnvironment()
        if task.cluster == "local":  # set the variables that torchrun would; SLURM has set its own
            rank = {"RANK": task.global_rank, "WORLD_SIZE": task.num_tasks, "LOCAL_RANK": task.local_rank}
            # a port that all tasks can compute, below those that the kernel gives away
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 10000 + int(task.raw_job_id) % 20000}
            os.environ.update({key: str(value) for key, value in (rank | meeting).items()})
        here = current_place(self.unit.trainer)
        if here is None:
            raise RuntimeError(f"{self.unit.name}: one task was started of {self.unit.tasks}")
        with join_team(self.unit.trainer, here) as team:
            yield team

    def _run(self, job: Job, ledger: Ledger, stop: _Stop, team: Team) -> None:
        claim = self._claimed(job, ledger, stop, team)
        if claim is None:
            return
        is_first = team.place.is_first
        try:
            missing = team.broadcast([job.label for job in self.after.values() if not job.is_done(self.outputs)])
            if missing:
                raise RuntimeError(f"not run: {', '.join(missing)} is not done")
            job.check_code()
            with ledger.working(claim) if is_first else nullcontext(lambda done, total: None) as note:

                def progress(done: int, total: int) -> None:
                    note(done, total)
                    stop.heed()

                run_job(job, self.outputs, progress)
        except SystemExit as error:
            if not stop.number and error.code not in {128 + number for number in STOPPING}:
                raise
            stop.number = stop.number or int(error.code or 128 + signal.SIGTERM) - 128
            if is_first:
                ledger.write(replace(claim, state="queued", beat=time.time()))
        except BaseException as error:
            # noted first: the other tasks will only report that this one is gone
            ledger.fail(job.key, f"{type(error).__name__}: {error}", _log())
            raise
        else:
            if is_first:
                ledger.release(job.key)

    def _claimed(self, job: Job, ledger: Ledger, stop: _Stop, team: Team) -> Claim | None:
        """The claim to work under, the same in all tasks; None when the job is done, or a signal came while another
        runner had it."""
        while True:
            claim = None
            if team.place.is_first and not job.is_done(self.outputs):
                claim = ledger.claim(job.key, job.label, _log(), in_turn=True)
            claim = team.broadcast(claim)
            if claim is None or claim.owner == self.owner:
                return claim
            if team.maximum(stop.number):
                return None
            time.sleep(1)


def _log() -> Path:
    """Where the output of this job of the queue goes."""
    from submitit import JobEnvironment

    return JobEnvironment().paths.stdout


class _Stop:
    """Inside, the signal to stop that came is noted, if any, instead of what submitit does with it (`hand_on`)."""

    def __init__(self) -> None:
        self.number = 0
        self.before: dict[int, Any] = {}  # submitit's handlers

    def __enter__(self) -> _Stop:
        for number in STOPPING.intersection(stop_signals()):
            self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *error: object) -> None:
        # SIGTERM stays ignored: SLURM sends it along with the notice, while the job is being put back
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def note(self, number: int, _: FrameType | None) -> None:
        """The signal handler: it only takes a note, as it may interrupt anything."""
        self.number = number

    def heed(self) -> None:
        """Stop, if a signal came: called where stopping is safe. A training's own handler first writes a checkpoint."""
        if not self.number:
            return
        if signal.getsignal(self.number) == self.note:
            raise SystemExit(128 + self.number)
        signal.raise_signal(self.number)

    def hand_on(self, place: Place) -> None:
        """Let submitit put the job back into the queue, unless it was cancelled; does not return. The first task does
        it for all, which have stopped after the same update."""
        if not place.is_first:
            raise SystemExit
        if self.number == signal.SIGTERM and _is_cancelled():
            raise SystemExit(128 + self.number)
        self.before[signal.SIGUSR2](signal.SIGUSR2, None)


def _is_cancelled() -> bool:
    """Whether SIGTERM came from `scancel`, or SLURM itself requeues the job: else SLURM says that it is running."""
    if "SLURM_JOB_ID" not in os.environ:
        return False
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the last of an array has the number of the whole
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    query = ["squeue", "--noheader", "--format=%T", "--jobs", job]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.returncode != 0 or answer.stdout.strip() != "RUNNING"
