"""Where an ablation's jobs run: `launcher=local`, or `launcher=submitit` on SLURM. Neither changes a result.

On SLURM a job of the queue does what one arm and seed alone needs: train, sample, score. What several need (a start
checkpoint) is a job of its own, for which those wait. So is a training by several processes: it has a task for each, on
as many machines as `trainer` says, which nothing else needs. SIGUSR1, SIGUSR2 (SLURM's notice that the time is up) and
SIGTERM (preemption), to any of its tasks, end a job at its next update or clip, and it is put back into the queue.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from experiments.engine.job import Job
from pw.io.arguments import ConfigError, did_you_mean, keys, number, option, parse
from pw.io.files import digest
from pw.io.paths import CONF
from pw.parallel.team import check_launch
from pw.run.build import Run
from pw.run.settings import Trainer

AT_LEAST = {"time": 1, "parallel": 1, "cpus": 1, "notice": 1, "requeues": 0, "gpus": 0, "memory": 0}  # of `Submitit`


@dataclass(frozen=True)
class Unit:
    """Jobs that one job of the queue runs, in order. `needs` names the units that come first."""

    name: str
    jobs: tuple[Job, ...]
    needs: tuple[str, ...] = ()

    @property
    def trainer(self) -> Trainer:
        return self.jobs[0].run.trainer

    @property
    def tasks(self) -> int:
        """Processes that run it together; more than one only for trainings."""
        return self.trainer.processes if self.jobs[0].kind == "train" else 1


def _lines(text: str) -> tuple[str, ...]:
    try:
        lines = yaml.safe_load(text)
    except yaml.YAMLError:
        lines = None
    if not isinstance(lines, list):
        raise ValueError('a list of lines, e.g. ["module load cuda"]')
    return tuple(map(str, lines))


@dataclass(frozen=True)
class Local:
    """This machine, `workers` jobs at a time. `check_run` raises ConfigError for a run that cannot be started."""

    workers: int = option(read=number(0))

    def check_run(self, run: Run) -> None:
        check_launch(run.trainer)


@dataclass(frozen=True)
class Submitit:
    """A queue of jobs, through submitit. The keys are explained in `conf/launcher/submitit.yaml`."""

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
    setup: tuple[str, ...] = option(read=_lines)

    def __post_init__(self) -> None:
        for name, least in AT_LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"{name}={value}: needs at least {least}")
        if self.notice >= 60 * self.time:
            raise ConfigError(f"notice={self.notice}: seconds; must be less than launcher.time={self.time} minutes")

    def check(self) -> None:
        """Raises ConfigError when jobs cannot be submitted from here."""
        if importlib.util.find_spec("submitit") is None:
            raise ConfigError('launcher=submitit: submitit is not installed here; pip install "submitit>=1.5"')
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise ConfigError(
                "launcher=submitit: there is no sbatch here; call it where jobs are submitted, or set launcher=local"
            )

    def check_run(self, run: Run) -> None:
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
        """The parameters of submitit's AutoExecutor for a job of an ablation."""
        trainer, many = unit.trainer, unit.tasks > 1
        nodes, tasks = (trainer.nodes, trainer.devices) if many else (1, 1)
        gpus = self.gpus if self.gpus is not None else tasks * (trainer.accelerator == "gpu")
        cpus = self.cpus or trainer.threads
        parameters = {
            "name": name,
            "nodes": nodes,
            "tasks_per_node": tasks,
            "timeout_min": self.time,
            "cpus_per_task": cpus,
            "gpus_per_node": gpus or None,
            "mem_gb": self.memory,
            "stderr_to_stdout": True,
            **{f"slurm_{key}": getattr(self, key) for key in ("partition", "account", "qos", "constraint")},
            "slurm_signal_delay_s": self.notice,
            "slurm_array_parallelism": self.parallel,
            "slurm_setup": list(self.setup) or None,
            # a job step of SLURM 22.05 and later has one core unless it is told so itself
            "slurm_srun_args": [f"--cpus-per-task={cpus}", *(["--kill-on-bad-exit=1"] if many else [])],
        }
        return {key: value for key, value in parameters.items() if value is not None}


LAUNCHERS: dict[str, type[Local] | type[Submitit]] = {"local": Local, "submitit": Submitit}
SLURM = ("slurm", "sbatch", "srun")  # what it may be called by those who do not know submitit


def take_launcher(words: Sequence[str]) -> tuple[Local | Submitit, list[str]]:
    """(the launcher that the words ask for, the other words). Raises ConfigError naming the key and the choices."""
    given, rest = {}, []
    for word in words:
        key, _, text = word.partition("=")
        if key.partition(".")[0] == "launcher":
            given[key.removeprefix("launcher.")] = text
        else:
            rest.append(word)
    name = given.pop("launcher", "local")
    if name not in LAUNCHERS:
        near = "; SLURM's is launcher=submitit" if name in SLURM else did_you_mean(name, LAUNCHERS, "; ")
        raise ConfigError(f"launcher={name}: one of {', '.join(LAUNCHERS)}{near}")
    kind = LAUNCHERS[name]
    for key, text in given.items():
        has = [other for other, owner in LAUNCHERS.items() if key in keys(owner)]
        if has and name not in has:
            raise ConfigError(f"launcher.{key}={text}: launcher={name} has no {key}; set launcher={has[0]} to have it")
    defaults = yaml.safe_load((CONF / "launcher" / f"{name}.yaml").read_text())
    asked = {key: value if isinstance(value, str) else json.dumps(value) for key, value in defaults.items()} | given
    try:
        return parse(kind, [f"{key}={text}" for key, text in asked.items()]), rest
    except ConfigError as error:
        raise error.with_prefix("launcher.") from error


def units(jobs: Sequence[Job], cells: Mapping[tuple[str, int], Sequence[str]]) -> list[Unit]:
    """A unit per set of (arm, seed) cells that need the same jobs; trainings by several processes are units of their
    own.

    Units never wait for each other in a circle: a job is needed by every cell that needs its dependants, so a unit's
    needs belong to more cells than the unit, or are trainings, which need trainings only.
    """
    apart = any(job.kind == "train" and job.run.trainer.processes > 1 for job in jobs)
    users = {
        job.key: (frozenset(cell for cell, keys in cells.items() if job.key in keys), apart and job.kind == "train")
        for job in jobs
    }
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(users[job.key], []).append(job)
    names: dict[Any, str] = {}
    for own, group in groups.items():
        name = _unit_name(*own, group)
        names[own] = f"{name} ({digest(group[-1].key, 4)})" if name in names.values() else name
    found = []
    for own, group in groups.items():
        needs = dict.fromkeys(names[users[n]] for job in group for n in job.needs if n in users and users[n] != own)
        found.append(Unit(names[own], tuple(group), tuple(needs)))
    return found


def _unit_name(users: frozenset[tuple[str, int]], are_trainings: bool, jobs: Sequence[Job]) -> str:
    if len(users) == 1 and not are_trainings:
        ((arm, seed),) = users
        return f"{arm} seed {seed}"
    seeds, label = {seed for _, seed in users}, jobs[-1].label
    return label if len(seeds) > 1 or " seed " in label else f"{label} seed {next(iter(seeds))}"
