"""Where an ablation's jobs run: `launcher=local`, or `launcher=submitit` on SLURM. Neither changes a result.

On SLURM a job of the queue carries out what one arm and seed alone needs: train, sample, score. What several need (a
start checkpoint) is a job of its own, which those wait for; so is a training by several processes, of a task for each
on as many machines as `trainer` says, for nobody else needs those. SIGUSR1, SIGUSR2 (SLURM's notice that the time is
up) and SIGTERM (preemption), to any of its tasks, end a job at its next update or clip, and it is put back into the
queue.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import yaml

from experiments.engine.ledger import Claim, Ledger, is_in_queue
from experiments.engine.pool import Job, carry_out
from pw.io.files import digest
from pw.io.paths import CONF
from pw.parallel.place import Place, check_launch, current_place
from pw.parallel.signals import STOP_SIGNALS, interruptible, stop_signals
from pw.parallel.team import Team, join_team
from pw.run.build import Run
from pw.run.compose import ConfigError
from pw.run.settings import Trainer

STOPPING = frozenset(STOP_SIGNALS) - {signal.SIGINT}  # a job of the queue has no keyboard
PATIENCE = 30.0  # seconds that a job may be in neither queue nor ledger, as while it is put back


@dataclass(frozen=True)
class Local:
    """This machine, `workers` jobs at a time."""

    workers: int

    def __post_init__(self) -> None:
        _at_least(self, 0, "workers")

    def check_run(self, run: Run) -> None:
        """Raises ConfigError when a run's processes cannot be started so."""
        check_launch(run.trainer)


@dataclass(frozen=True)
class Submitit:
    """A queue. The keys are explained in `conf/launcher/submitit.yaml`."""

    cluster: Literal["slurm", "local"]
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    time: int
    notice: int
    requeues: int
    parallel: int
    gpus: int | None
    cpus: int | None
    memory: float | None
    setup: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.cluster not in ("slurm", "local"):
            raise ConfigError(f"launcher.cluster={self.cluster}: slurm or local")
        _at_least(self, 1, "time", "parallel", "cpus", "notice")
        _at_least(self, 0, "requeues", "gpus", "memory")
        if self.notice >= 60 * self.time:
            raise ConfigError(
                f"launcher.notice={self.notice}: seconds; must be less than launcher.time={self.time} minutes"
            )

    def check(self) -> None:
        """Raises ConfigError when jobs cannot be handed over from here."""
        if importlib.util.find_spec("submitit") is None:
            raise ConfigError('launcher=submitit: submitit is not installed here; pip install "submitit>=1.5"')
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise ConfigError(
                "launcher=submitit: there is no sbatch here; call it where jobs are submitted, or set launcher=local"
            )

    def check_run(self, run: Run) -> None:
        """Raises ConfigError when a run's processes cannot be started so."""
        trainer = run.trainer
        if self.cluster == "local" and trainer.nodes > 1:
            raise ConfigError(
                f"trainer.nodes={trainer.nodes}: launcher.cluster=local is this machine alone; set trainer.nodes=1, or "
                "launcher.cluster=slurm"
            )
        if trainer.accelerator == "gpu" and self.gpus is not None and self.gpus < trainer.devices:
            raise ConfigError(
                f"launcher.gpus={self.gpus}: of a machine, which trains with trainer.devices={trainer.devices}; "
                "launcher.gpus=null asks for those"
            )

    def parameters(self, name: str, unit: Unit) -> dict[str, Any]:
        """What submitit's AutoExecutor is told for a job of an ablation."""
        trainer, many = unit.trainer, unit.tasks > 1
        nodes, tasks = (trainer.nodes, trainer.devices) if many else (1, 1)
        gpus = self.gpus if self.gpus is not None else tasks * (trainer.accelerator == "gpu")
        cpus = self.cpus or trainer.threads
        asked = {
            "name": name,
            "nodes": nodes,
            "tasks_per_node": tasks,
            "timeout_min": self.time,
            "cpus_per_task": cpus,
            "gpus_per_node": gpus or None,
            "mem_gb": self.memory,
            "stderr_to_stdout": True,
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_signal_delay_s": self.notice,
            "slurm_array_parallelism": self.parallel,
            "slurm_setup": self.setup or None,
            # a job step of SLURM 22.05 and later has one core unless it is told so itself
            "slurm_srun_args": [f"--cpus-per-task={cpus}", *(["--kill-on-bad-exit=1"] if many else [])],
        }
        return {key: value for key, value in asked.items() if value is not None}


LAUNCHERS: dict[str, type[Local] | type[Submitit]] = {"local": Local, "submitit": Submitit}
SLURM = ("slurm", "sbatch", "srun")  # as who does not know submitit may call it


def _at_least(owner: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and value < least:
            raise ConfigError(f"launcher.{name}={value}: needs at least {least}")


def take_launcher(words: Sequence[str]) -> tuple[Local | Submitit, list[str]]:
    """(the launcher that the words ask for, the other words). Raises ConfigError naming the key and what there is."""
    mine = [word for word in words if word.partition("=")[0].partition(".")[0] == "launcher"]
    rest = [word for word in words if word not in mine]
    given = dict(word.partition("=")[::2] for word in mine)
    name = given.pop("launcher", "local")
    if name not in LAUNCHERS:
        near = "; SLURM's is launcher=submitit" if name in SLURM else _near(name, LAUNCHERS)
        raise ConfigError(f"launcher={name}: one of {', '.join(LAUNCHERS)}{near}")
    kind = LAUNCHERS[name]
    values = yaml.safe_load((CONF / "launcher" / f"{name}.yaml").read_text())
    for dotted, text in given.items():
        key = dotted.removeprefix("launcher.")
        if key not in values:
            raise ConfigError(f"{dotted}={text}: {_no_such_key(key, name, values)}")
        values[key] = _read(dotted, text, str(next(f.type for f in fields(kind) if f.name == key)))
    return kind(**values), rest


def _no_such_key(key: str, name: str, values: Mapping[str, Any]) -> str:
    has = [
        other
        for other, kind in LAUNCHERS.items()
        if key in {f.name for f in fields(kind) if f.default is MISSING or f.default_factory is not MISSING}
    ]
    if has:
        return f"launcher={name} has no {key}; set launcher={has[0]} to have it"
    return f"launcher={name} has {', '.join(values)}{_near(key, values)}"


def _near(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _read(key: str, text: str, kind: str) -> Any:
    """A value of the command line, of the type that a field's annotation says."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if value is None and "None" in kind:
        return None
    if kind.startswith("list"):
        if isinstance(value, list):
            return [str(line) for line in value]
        raise ConfigError(f"{key}={text}: a list of lines, e.g. '{key}=[\"module load cuda\"]'")
    if kind.startswith(("int", "float")):
        if isinstance(value, int | float) and not isinstance(value, bool) and (value == int(value) or "float" in kind):
            return value if "float" in kind else int(value)
        raise ConfigError(f"{key}={text}: a {'whole ' * kind.startswith('int')}number")
    return text


# ---- what goes into the queue


@dataclass(frozen=True)
class Unit:
    """Jobs that one job of the queue carries out, in their order. `needs` names the units that come first."""

    name: str
    jobs: tuple[Job, ...]
    needs: tuple[str, ...] = ()

    @property
    def trainer(self) -> Trainer:
        """Of its runs."""
        return self.jobs[0].run.trainer

    @property
    def tasks(self) -> int:
        """Processes that carry it out together; only trainings know how."""
        return self.trainer.processes if self.jobs[0].kind == "train" else 1


def units(jobs: Sequence[Job], cells: Mapping[tuple[str, int], Sequence[str]]) -> list[Unit]:
    """The jobs, by the arms and seeds that need them: each arm and seed its own, and what the same several share.
    Trainings by several processes are kept apart from what one does.

    A job is needed wherever what needs it is; so a unit's needs have more arms and seeds than itself, or are trainings,
    which need trainings alone; and none of them waits for another in a circle.
    """
    apart = any(job.kind == "train" and job.run.trainer.processes > 1 for job in jobs)
    users = {
        job.key: (frozenset(cell for cell, keys in cells.items() if job.key in keys), apart and job.kind == "train")
        for job in jobs
    }
    groups: dict[tuple[frozenset[tuple[str, int]], bool], list[Job]] = {}
    for job in jobs:
        groups.setdefault(users[job.key], []).append(job)
    names: dict[tuple[frozenset[tuple[str, int]], bool], str] = {}
    for mine, group in groups.items():
        name = _unit_name(*mine, group)
        names[mine] = f"{name} ({digest(group[-1].key, 4)})" if name in names.values() else name
    return [
        Unit(
            names[mine],
            tuple(group),
            tuple(dict.fromkeys(names[users[n]] for j in group for n in j.needs if n in users and users[n] != mine)),
        )
        for mine, group in groups.items()
    ]


def _unit_name(users: frozenset[tuple[str, int]], are_trainings: bool, jobs: Sequence[Job]) -> str:
    if len(users) == 1 and not are_trainings:
        ((arm, seed),) = users
        return f"{arm} seed {seed}"
    seeds, label = {seed for _, seed in users}, jobs[-1].label
    return label if len(seeds) > 1 or " seed " in label else f"{label} seed {next(iter(seeds))}"


@dataclass(frozen=True)
class Work:
    """What a job of the queue runs: picklable, and able to go on after a stop.

    after  label -> key of what must be done before, by other jobs
    """

    unit: Unit
    outputs: Path
    owner: str
    after: Mapping[str, Job]

    def __call__(self) -> None:
        """Raises what a job raises; after a signal, leaves by submitit's own handler, which puts it back."""
        os.environ["SLURM_JOB_NAME"] = "bash"  # Lightning is not to look at SLURM's variables: `place` does
        ledger = Ledger(self.outputs, self.owner)
        with _signals() as stop, self._together() as team:
            for job in self.unit.jobs:
                self._carry_out(job, ledger, stop, team)
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
        """With the other tasks of this job of the queue, once they are all there."""
        if self.unit.tasks == 1:
            yield Team(Place(0, 1))
            return
        _tell_place()
        found = current_place(self.unit.trainer)
        if found is None:
            raise RuntimeError(f"{self.unit.name}: one task was started of {self.unit.tasks}")
        with join_team(self.unit.trainer, found) as team:
            yield team

    def _carry_out(self, job: Job, ledger: Ledger, stop: _Stop, team: Team) -> None:
        claim = self._claimed(job, ledger, stop, team)
        if claim is None:
            return
        is_first = team.place.is_first
        try:
            missing = team.agreed([job.label for job in self.after.values() if not job.is_done(self.outputs)])
            if missing:
                raise RuntimeError(f"not run: {', '.join(missing)} is not done")
            job.check_code()
            with ledger.working(claim) if is_first else nullcontext(_unheard) as note:

                def progress(done: int, total: int) -> None:
                    note(done, total)
                    stop.heed()

                carry_out(job, self.outputs, progress)
        except SystemExit as error:
            if not stop.number and error.code not in {128 + number for number in STOPPING}:
                raise
            stop.number = stop.number or int(error.code or 128 + signal.SIGTERM) - 128
            if is_first:
                ledger.write(replace(claim, state="queued", beat=time.time()))
        except BaseException as error:
            # told before the others notice that this one is gone, whose own words would say no more than that
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


def _unheard(done: int, total: int) -> None:
    """Progress, where another task tells it."""


def _tell_place() -> None:
    """Say as torchrun does which of submitit's tasks on this machine this is. On SLURM, SLURM has said it."""
    from submitit import JobEnvironment

    task = JobEnvironment()
    if task.cluster == "local":
        said = {"RANK": task.global_rank, "WORLD_SIZE": task.num_tasks, "LOCAL_RANK": task.local_rank}
        # all tasks know the number of their job; below the ports that the kernel gives away
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 10000 + int(task.raw_job_id) % 20000}
        os.environ.update({key: str(value) for key, value in (said | meeting).items()})


def _log() -> Path:
    """Where the words of this job of the queue go."""
    from submitit import JobEnvironment

    return JobEnvironment().paths.stdout


class _Stopped(SystemExit):
    """Raised in the midst of a job that a signal ends."""


@dataclass
class _Stop:
    """Whether a signal came, and what to do about it."""

    before: dict[int, Any]
    number: int = 0

    def note(self, number: int, _: FrameType | None) -> None:
        """The handler: no more than a note, for it may come at any time."""
        self.number = number

    def heed(self) -> None:
        """Called where stopping is safe. A training has a handler of its own, which first writes a checkpoint."""
        if not self.number:
            return
        if signal.getsignal(self.number) == self.note:
            raise _Stopped(128 + self.number)
        signal.raise_signal(self.number)

    def hand_on(self, place: Place) -> None:
        """Let submitit put the job back into the queue, unless it was cancelled; does not return. One task does it for
        all, who have stopped after the same update."""
        if not place.is_first:
            raise SystemExit
        if self.number == signal.SIGTERM and _is_cancelled():
            raise SystemExit(128 + self.number)
        self.before[signal.SIGUSR2](signal.SIGUSR2, None)


def _is_cancelled() -> bool:
    """Whether SIGTERM came from `scancel`, or SLURM itself puts the job back: else it says that the job runs."""
    if "SLURM_JOB_ID" not in os.environ:
        return False
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the last of an array has the number of the whole
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    asked = ["squeue", "--noheader", "--format=%T", "--jobs", job]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    return told.returncode != 0 or told.stdout.strip() != "RUNNING"


@contextmanager
def _signals() -> Generator[_Stop]:
    """While it lasts, signals to stop are noted. What submitit had in their place is kept for `hand_on`."""
    stop = _Stop({})
    for number in STOPPING.intersection(stop_signals()):
        stop.before[number] = signal.signal(number, stop.note)
    try:
        yield stop
    finally:
        # SIGTERM stays ignored: SLURM sends it along with the notice, while the job is being put back
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


# ---- the side that hands over and waits


@dataclass
class _Seen:
    """A job at work somewhere, as the ledger has it."""

    job: Job
    share: float


class Queue:
    """Hands units to a queue and waits for their results: what `Pool` is for this machine.

    It may be ended at any time, and the jobs go on; the same command waits for them again.
    """

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
        self.running: list[_Seen] = []
        self._units = dict(self.pending)
        self._queue: dict[str, str] = {}  # unit -> its place in the queue
        self._seen: dict[str, float] = {}  # unit -> when it was last known to be in the queue or at work
        self._told: set[str] = set()

    def run(self, jobs: Sequence[Job], tick: Callable[[], None] = lambda: None) -> None:
        """Returns when every job is done or has failed. Raises KeyboardInterrupt or Stopped when it was told to stop
        waiting."""
        pause = 0.3 if self.launcher.cluster == "local" else 5.0
        with interruptible():
            self._look()  # what another runner finished since the plan was made
            while self.pending:
                self._hand_over()
                tick()
                time.sleep(pause)
                self._look()

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
        mine: list[Job] = []
        for job in unit.jobs:
            if job.is_done(self.outputs):
                continue
            claim = self.ledger.claim(job.key, job.label, Path(), state="queued")
            if claim.owner != self.ledger.owner:
                for other in mine:
                    self.ledger.release(other.key)
                return claim
            mine.append(job)
        return None

    def _submit(self, after: Sequence[str], members: Sequence[Unit]) -> None:
        import submitit

        limit = {"slurm_max_num_timeout": self.launcher.requeues, "local_max_num_timeout": self.launcher.requeues}
        executor = submitit.AutoExecutor(folder=self.folder / "%j", cluster=self.launcher.cluster, **limit)
        asked = self.launcher.parameters(self.folder.parent.name, members[0])
        if after:
            asked["slurm_dependency"] = f"afterany:{':'.join(after)}"
        executor.update_parameters(**asked)
        handed = []
        with executor.batch():
            for unit in members:
                needed = {
                    job.label: job
                    for need in unit.needs
                    for job in self._units[need].jobs
                    if any(job.key in mine.needs for mine in unit.jobs)
                }
                handed.append(executor.submit(Work(unit, self.outputs, self.ledger.owner, needed)))
        for unit, job in zip(members, handed, strict=True):
            self._queue[unit.name] = f"{self.launcher.cluster}:{job.job_id}"
            self._seen[unit.name] = time.time()
            for mine in unit.jobs:
                self.ledger.enqueue(mine.key, self._queue[unit.name])

    def _look(self) -> None:
        self.running.clear()
        for name, unit in list(self.pending.items()):
            left = [job for job in unit.jobs if not self._is_done(job)]
            claims = {job.key: claim for job in left if (claim := self.ledger.read(job.key)) is not None}
            for job in left:
                claim = claims.get(job.key)
                if claim is not None and claim.state == "running":
                    self.running.append(_Seen(job, claim.done / max(1, claim.total)))
            if not left:
                del self.pending[name]
                continue
            if broken := [need for need in unit.needs if self._is_broken(need)]:
                self._skip(unit, left, broken[0])
            elif name in self._queue and (reason := self._failure(name, left, claims)) is not None:
                self._fail(unit, left, *reason)

    def _is_done(self, job: Job) -> bool:
        if job.key in self._told:
            return True
        if not job.is_done(self.outputs):
            return False
        self._told.add(job.key)
        self.ledger.release(job.key)
        self.show("done", job, "in the queue")
        return True

    def _is_broken(self, need: str) -> bool:
        return need not in self.pending and any(job.key in self.failed for job in self._units[need].jobs)

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
        elif now - self._seen[name] > PATIENCE:
            number = self._queue[name].partition(":")[2]
            return left[0], f"job {number} left the queue without an end (cancelled?); logs: {self.folder / number}"
        return None

    def _fail(self, unit: Unit, left: Sequence[Job], failed: Job, reason: str) -> None:
        del self.pending[unit.name]
        for job in left:
            own = job is failed
            self.failed[job.key] = f"{failed.label} failed: {reason}" if own else f"not run: {failed.label} failed"
            self.show("failed" if own else "skipped", job, reason if own else self.failed[job.key])
            if not own:
                self.ledger.release(job.key)
        self.ledger.fail(failed.key, reason.partition(" (log: ")[0])

    def _skip(self, unit: Unit, left: Sequence[Job], need: str) -> None:
        first = next(self.failed[job.key] for job in self._units[need].jobs if job.key in self.failed)
        first = first.removeprefix("not run: ").partition(" failed")[0]
        del self.pending[unit.name]
        if unit.name in self._queue and self.launcher.cluster == "slurm":
            with suppress(OSError):
                subprocess.run(["scancel", self._queue[unit.name].partition(":")[2]], check=False)
        for job in left:
            self.failed[job.key] = f"not run: {first} failed"
            self.ledger.release(job.key)
            self.show("skipped", job, self.failed[job.key])


def farewell(queue: Queue) -> str:
    """What to say when the waiting is interrupted."""
    numbers = sorted({place.partition(":")[2] for name, place in queue._queue.items() if name in queue.pending})
    stop = "scancel" if queue.launcher.cluster == "slurm" else "kill"
    return (
        f"the jobs go on ({stop} {' '.join(numbers)} ends them); `make status` shows them, the same command waits for "
        "them again"
    )
