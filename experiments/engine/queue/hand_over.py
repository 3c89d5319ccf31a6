"""Hand units to a queue, and wait for their results."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from experiments.engine.job import Job
from experiments.engine.ledger import Claim, Ledger, is_in_queue
from experiments.engine.queue.launcher import Submitit, Unit
from experiments.engine.queue.queue_job import QueueJob
from pw.parallel.signals import interruptible

ABSENT = 30.0  # seconds that a job may be in neither queue nor ledger, as while it is put back


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
                claim = claims.get(job.key)
                if claim is not None and claim.state == "running":
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
            claim = claims.get(job.key)
            if claim is not None and claim.state == "failed":
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
