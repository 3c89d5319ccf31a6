"""What a job of the queue runs: its unit's jobs, claimed one by one, until done or until a signal comes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.engine.job import Job, run_job
from experiments.engine.ledger import Claim, Ledger
from experiments.engine.queue.launcher import Unit
from pw.parallel.signals import STOP_SIGNALS, stop_signals
from pw.parallel.team import Place, Team, current_place, join_team

STOPPING = frozenset(STOP_SIGNALS) - {signal.SIGINT}  # a job of the queue has no keyboard


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
            missing = team.agreed([job.label for job in self.after.values() if not job.is_done(self.outputs)])
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
        before = ledger.read(job.key)
        queue = before.queue if before is not None else ""
        while True:
            claim = None
            if team.place.is_first and not job.is_done(self.outputs):
                claim = ledger.claim(job.key, job.label, _log(), queue=queue, over_queued=True)
            claim = team.agreed(claim)
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
