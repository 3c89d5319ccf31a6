"""Where the jobs of an ablation run: `launcher=local`, or `launcher=submitit` on SLURM. Neither changes a result.

On SLURM one job of the queue trains, samples and scores one arm and seed. Work that several arms or seeds share (a
start checkpoint) is a separate job, and the others depend on it. A training by several processes is also a separate
job, with one task per process on as many machines as `trainer` says. SIGUSR1, SIGUSR2 (SLURM's notice of the time
limit) and SIGTERM (preemption) to any task end a job after its current update or clip; the job is then requeued.
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

MINIMUM = {"time": 1, "parallel": 1, "cpus": 1, "notice": 1, "requeues": 0, "gpus": 0, "memory": 0}  # of `Submitit`


@dataclass(frozen=True)
class Unit:
    """The jobs that one job of the queue runs, in order. `needs`: names of the units that must run before."""

    name: str
    jobs: tuple[Job, ...]
    needs: tuple[str, ...] = ()

    @property
    def trainer(self) -> Trainer:
        return self.jobs[0].run.trainer

    @property
    def tasks(self) -> int:
        """Number of processes that run the unit together; more than one only for trainings."""
        return self.trainer.processes if self.jobs[0].kind == "train" else 1


def _setup_lines(text: str) -> tuple[str, ...]:
    try:
        lines = yaml.safe_load(text)
    except yaml.YAMLError:
        lines = None
    if not isinstance(lines, list):
        raise ValueError('expected a list of lines, e.g. ["module load cuda"]')
    return tuple(map(str, lines))


@dataclass(frozen=True)
class Local:
    """This machine, `workers` jobs at a time. `check_run` raises ConfigError for a run that cannot start here."""

    workers: int = option(read=number(0, 1024))

    def check_run(self, run: Run) -> None:
        check_launch(run.trainer)


@dataclass(frozen=True)
class Submitit:
    """A queue of jobs, through submitit. `conf/launcher/submitit.yaml` explains the keys."""

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
    setup: tuple[str, ...] = option(read=_setup_lines)

    def __post_init__(self) -> None:
        for name, minimum in MINIMUM.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise ConfigError(f"{name}={value}: needs at least {minimum}")
        if self.notice >= 60 * self.time:
            raise ConfigError(f"notice={self.notice}: seconds; must be less than launcher.time={self.time} minutes")

    def check(self) -> None:
        """Raises ConfigError when this machine cannot submit jobs."""
        if importlib.util.find_spec("submitit") is None:
            raise ConfigError('launcher=submitit: submitit is not installed here; pip install "submitit>=1.5"')
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise ConfigError(
                "launcher=submitit: sbatch is not available on this machine; use a login node, or set launcher=local"
            )

    def check_run(self, run: Run) -> None:
        trainer = run.trainer
        if self.cluster == "local" and trainer.nodes > 1:
            raise ConfigError(
                f"trainer.nodes={trainer.nodes}: launcher.cluster=local uses only this machine; set trainer.nodes=1 "
                "or launcher.cluster=slurm"
            )
        if trainer.accelerator == "gpu" and self.gpus is not None and self.gpus < trainer.devices:
            raise ConfigError(
                f"launcher.gpus={self.gpus}: too few for trainer.devices={trainer.devices} on each machine; "
                "launcher.gpus=null requests these"
            )

    def parameters(self, name: str, unit: Unit) -> dict[str, Any]:
        """The parameters of submitit's AutoExecutor for a job of an ablation."""
        trainer, is_multi_task = unit.trainer, unit.tasks > 1
        nodes, tasks = (trainer.nodes, trainer.devices) if is_multi_task else (1, 1)
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
            # since SLURM 22.05 a job step has one core without its own --cpus-per-task
            "slurm_srun_args": [f"--cpus-per-task={cpus}", *(["--kill-on-bad-exit=1"] if is_multi_task else [])],
        }
        return {key: value for key, value in parameters.items() if value is not None}


LAUNCHERS: dict[str, type[Local] | type[Submitit]] = {"local": Local, "submitit": Submitit}
SLURM = ("slurm", "sbatch", "srun")  # names of it that users may try


def take_launcher(words: Sequence[str]) -> tuple[Local | Submitit, list[str]]:
    """(launcher, words of other options). Raises ConfigError naming the key and the choices."""
    settings, rest = {}, []
    for word in words:
        key, _, text = word.partition("=")
        if key.partition(".")[0] == "launcher":
            settings[key.removeprefix("launcher.")] = text
        else:
            rest.append(word)
    name = settings.pop("launcher", "local")
    if name not in LAUNCHERS:
        hint = "; SLURM's is launcher=submitit" if name in SLURM else did_you_mean(name, LAUNCHERS, "; ")
        raise ConfigError(f"launcher={name}: one of {', '.join(LAUNCHERS)}{hint}")
    kind = LAUNCHERS[name]
    for key, text in settings.items():
        owners = [candidate for candidate, options in LAUNCHERS.items() if key in keys(options)]
        if owners and name not in owners:
            raise ConfigError(
                f"launcher.{key}={text}: launcher={name} has no {key}; set launcher={owners[0]} to use it"
            )
    defaults = yaml.safe_load((CONF / "launcher" / f"{name}.yaml").read_text())
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in defaults.items()} | settings
    try:
        return parse(kind, [f"{key}={text}" for key, text in values.items()]), rest
    except ConfigError as error:
        raise error.with_prefix("launcher.") from error


def units(jobs: Sequence[Job], cells: Mapping[tuple[str, int], Sequence[str]]) -> list[Unit]:
    """Group jobs by the set of (arm, seed) cells that need them; trainings by several processes are separate units.

    The dependencies have no cycle: every cell that needs a job also needs the jobs before it, so the units before a
    unit serve more cells than the unit, or are trainings, which need only trainings.
    """
    is_team = any(job.kind == "train" and job.run.trainer.processes > 1 for job in jobs)
    groups_of = {
        job.key: (frozenset(cell for cell, keys in cells.items() if job.key in keys), is_team and job.kind == "train")
        for job in jobs
    }
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(groups_of[job.key], []).append(job)
    names: dict[Any, str] = {}
    for group_id, group in groups.items():
        name = _unit_name(*group_id, group)
        names[group_id] = f"{name} ({digest(group[-1].key, 4)})" if name in names.values() else name
    result = []
    for group_id, group in groups.items():
        needed_groups = [groups_of[need] for job in group for need in job.needs if need in groups_of]
        needs = dict.fromkeys(names[needed] for needed in needed_groups if needed != group_id)
        result.append(Unit(names[group_id], tuple(group), tuple(needs)))
    return result


def _unit_name(cells: frozenset[tuple[str, int]], are_trainings: bool, jobs: Sequence[Job]) -> str:
    if len(cells) == 1 and not are_trainings:
        ((arm, seed),) = cells
        return f"{arm} seed {seed}"
    seeds, label = {seed for _, seed in cells}, jobs[-1].label
    return label if len(seeds) > 1 or " seed " in label else f"{label} seed {next(iter(seeds))}"
