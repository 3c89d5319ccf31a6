"""TODO: say what this is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.engine.job import Job
from pw.io.files import digest
from pw.run.settings import Trainer


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
