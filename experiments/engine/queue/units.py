"""How jobs are put together into jobs of the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.engine.job import Job
from pw.io.files import digest
from pw.run.settings import Trainer


@dataclass(frozen=True)
class Unit:
    """Jobs that one job of the queue runs, in order. `needs` names the units that come first."""

    name: str
    jobs: tuple[Job, ...]
    needs: tuple[str, ...] = ()

    @property
    def trainer(self) -> Trainer:
        """The trainer of its runs."""
        return self.jobs[0].run.trainer

    @property
    def tasks(self) -> int:
        """Processes that run it together; more than one only for trainings."""
        return self.trainer.processes if self.jobs[0].kind == "train" else 1


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
    groups: dict[tuple[frozenset[tuple[str, int]], bool], list[Job]] = {}
    for job in jobs:
        groups.setdefault(users[job.key], []).append(job)
    names: dict[tuple[frozenset[tuple[str, int]], bool], str] = {}
    for cells_of, group in groups.items():
        name = _unit_name(*cells_of, group)
        names[cells_of] = f"{name} ({digest(group[-1].key, 4)})" if name in names.values() else name
    return [
        Unit(
            names[cells_of],
            tuple(group),
            tuple(
                dict.fromkeys(names[users[n]] for j in group for n in j.needs if n in users and users[n] != cells_of)
            ),
        )
        for cells_of, group in groups.items()
    ]


def _unit_name(users: frozenset[tuple[str, int]], are_trainings: bool, jobs: Sequence[Job]) -> str:
    if len(users) == 1 and not are_trainings:
        ((arm, seed),) = users
        return f"{arm} seed {seed}"
    seeds, label = {seed for _, seed in users}, jobs[-1].label
    return label if len(seeds) > 1 or " seed " in label else f"{label} seed {next(iter(seeds))}"
