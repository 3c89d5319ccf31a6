"""Where an ablation's jobs run: `launcher=local`, or `launcher=submitit` on SLURM. Neither changes a result.

On SLURM a job of the queue does what one arm and seed alone needs: train, sample, score. What several need (a start
checkpoint) is a job of its own, for which those wait. So is a training by several processes: it has a task for each, on
as many machines as `trainer` says, which nothing else needs. SIGUSR1, SIGUSR2 (SLURM's notice that the time is up) and
SIGTERM (preemption), to any of its tasks, end a job at its next update or clip, and it is put back into the queue.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import yaml

from experiments.engine.queue.units import Unit
from pw.io.arguments import ConfigError, did_you_mean
from pw.io.paths import CONF
from pw.parallel.place import check_launch
from pw.run.build import Run
from pw.run.strategies import from_values


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
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _at_least(self, 1, "time", "parallel", "cpus", "notice")
        _at_least(self, 0, "requeues", "gpus", "memory")
        if self.notice >= 60 * self.time:
            raise ConfigError(
                f"launcher.notice={self.notice}: seconds; must be less than launcher.time={self.time} minutes"
            )

    def check(self) -> None:
        """Raises ConfigError when jobs cannot be submitted from here."""
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
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_signal_delay_s": self.notice,
            "slurm_array_parallelism": self.parallel,
            "slurm_setup": list(self.setup) or None,
            # a job step of SLURM 22.05 and later has one core unless it is told so itself
            "slurm_srun_args": [f"--cpus-per-task={cpus}", *(["--kill-on-bad-exit=1"] if many else [])],
        }
        return {key: value for key, value in parameters.items() if value is not None}


LAUNCHERS: dict[str, type[Local] | type[Submitit]] = {"local": Local, "submitit": Submitit}
SLURM = ("slurm", "sbatch", "srun")  # what it may be called by those who do not know submitit


def _at_least(owner: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and value < least:
            raise ConfigError(f"launcher.{name}={value}: needs at least {least}")


def take_launcher(words: Sequence[str]) -> tuple[Local | Submitit, list[str]]:
    """(the launcher that the words ask for, the other words). Raises ConfigError naming the key and the choices."""
    of_launcher = [word for word in words if word.partition("=")[0].partition(".")[0] == "launcher"]
    rest = [word for word in words if word not in of_launcher]
    given = dict(word.partition("=")[::2] for word in of_launcher)
    name = given.pop("launcher", "local")
    if name not in LAUNCHERS:
        near = "; SLURM's is launcher=submitit" if name in SLURM else did_you_mean(name, LAUNCHERS, "; ")
        raise ConfigError(f"launcher={name}: one of {', '.join(LAUNCHERS)}{near}")
    kind = LAUNCHERS[name]
    values = yaml.safe_load((CONF / "launcher" / f"{name}.yaml").read_text())
    for dotted, text in given.items():
        key = dotted.removeprefix("launcher.")
        if key not in values:
            raise ConfigError(f"{dotted}={text}: {_no_such_key(key, name, values)}")
        values[key] = _plain(text, str(next(f.type for f in fields(kind) if f.name == key)))
    return from_values(kind, values, "launcher"), rest


def _no_such_key(key: str, name: str, values: Mapping[str, Any]) -> str:
    has = [other for other, kind in LAUNCHERS.items() if key in {f.name for f in fields(kind)}]
    if has:
        return f"launcher={name} has no {key}; set launcher={has[0]} to have it"
    return f"launcher={name} has {', '.join(values)}{did_you_mean(key, values, '; ')}"


def _plain(text: str, kind: str) -> Any:
    """A word's value; what a field whose annotation is `kind` wants as text stays as it was typed."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return text if kind.startswith("str") and value is not None else value
