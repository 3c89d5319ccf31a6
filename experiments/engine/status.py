"""`pw status name=ansc`: the progress of an ablation, read from its files, wherever it runs. Begin with `run`.

The name alone selects the latest call, `outputs/ansc/plan.json`; other words select the call with these words. Where a
file has the answer, nothing is composed, imported or requested from a server.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.metrics import protocols
from experiments.engine.ablation import AblationOptions, names
from experiments.engine.ledger import Claim, Ledger
from experiments.engine.share.adopted import adoption, spared
from pw.io.arguments import Command, ConfigError, option
from pw.io.console import console
from pw.io.files import parse_json, write_json
from pw.io.manifest import whole
from pw.io.paths import OUTPUTS
from pw.io.progress import duration
from pw.train.loop import results_folder

if TYPE_CHECKING:
    from experiments.engine.job import Job, Row
    from experiments.engine.plan import Plan

LOG_LINES = 4  # printed lines of the log of a failed job


@dataclass(frozen=True)
class JobOutline:
    """A job as `plan.json` stores it.

    folder     results folder, relative to the outputs; total: updates of a training, clips of a sampling
    reference  folder of the evaluation clips of a sampling; empty in a plan.json of an earlier version
    """

    key: str
    label: str
    kind: str
    folder: str
    needs: tuple[str, ...]
    total: int = 0
    metrics: tuple[str, ...] = ()
    reference: str = ""

    def is_done(self, outputs: Path) -> bool:
        """Like `Job.is_done`, from files alone."""
        name = "scores.json" if self.kind == "score" else "done.json"
        mark = whole(outputs / self.folder / name, ())
        if mark is None or self.kind == "train":
            return mark is not None
        if self.kind == "sample":
            return mark["clips"] >= self.total
        return mark["contract"]["metrics"] == protocols(self.metrics)


@dataclass(frozen=True)
class Outline:
    """The jobs of an ablation (`tasks`), and for each (arm, seed) the keys of its jobs, in the order of the plan.

    name  of the folder of its table
    """

    name: str
    cells: Mapping[tuple[str, int], tuple[str, ...]]
    tasks: Mapping[str, JobOutline]

    def signatures(self, arm: str, seed: int) -> tuple[str, str]:
        """Those of the training and of the clips that the score of an arm and seed needs; empty if unknown."""
        label = f"score {arm} seed {seed}"
        score = next((task for task in self.tasks.values() if task.label == label), None)
        clips = self.tasks.get(score.needs[0]) if score and score.needs else None
        training = self.tasks.get(clips.needs[0]) if clips and clips.needs else None
        return Path(training.folder).name if training else "", Path(clips.folder).name if clips else ""


@dataclass(frozen=True)
class CellProgress:
    """The progress of one arm and seed; `state` is done, running, planned, queued, failed or stale."""

    arm: str
    seed: int
    state: str
    done: int
    total: int
    detail: str = ""
    log: Sequence[str] = ()


def outline(plan: Plan, jobs: Sequence[Job], rows: Sequence[Row]) -> Outline:
    """The outline of a plan, which `plan.json` stores."""
    from pw.sample.clip_folders import reference_folder

    cell_keys: dict[tuple[str, int], set[str]] = {(arm.name, seed): set() for arm, seed, _ in plan.runs()}
    for row in rows:
        cell_keys[row.arm, row.seed].add(row.job.key)
    for job in reversed(jobs):  # dependent jobs come after it
        for keys in cell_keys.values():
            if job.key in keys:
                keys.update(job.needs)
    cells = {cell: tuple(job.key for job in jobs if job.key in keys) for cell, keys in cell_keys.items()}
    outputs = plan.options.outputs
    tasks = {}
    for job in jobs:
        total = {"train": job.run.train.updates, "sample": job.limit}.get(job.kind, 0)
        metrics = tuple(job.score.get("metrics", ()))
        folder = str(job.folder(outputs).relative_to(outputs))
        is_sampling = job.kind == "sample"
        reference = str(reference_folder(job.run, Path(), job.seed)) if is_sampling else ""
        tasks[job.key] = JobOutline(job.key, job.label, job.kind, folder, job.needs, total, metrics, reference)
    return Outline(plan.place or plan.name, cells, tasks)


def write_outline(summary: Outline, options: AblationOptions) -> None:
    """Store the outline as the latest call of the ablation, for `read_outline` and `mlflow-sync`."""
    outputs = options.outputs
    cells = [[arm, seed, keys] for (arm, seed), keys in summary.cells.items()]
    tasks = [asdict(task) for task in summary.tasks.values()]
    write_json(outputs / summary.name / "plan.json", {"words": options.words(), "cells": cells, "tasks": tasks})


def read_outline(name: str, outputs: Path) -> Outline | None:
    """The outline of the latest call; None if there is none."""
    try:
        record = parse_json((outputs / name / "plan.json").read_text())
        tasks = [JobOutline(**task | {k: tuple(task[k]) for k in ("needs", "metrics")}) for task in record["tasks"]]
        cells = {(arm, seed): tuple(keys) for arm, seed, keys in record["cells"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Outline(name, cells, {task.key: task for task in tasks})


def cells_of(summary: Outline, outputs: Path) -> list[CellProgress]:
    ledger = Ledger(outputs)
    done = {key for key, task in summary.tasks.items() if task.is_done(outputs)}
    tasks = [*summary.tasks.values()]
    done |= spared(tasks, summary.tasks.keys() - done, lambda task: adoption(outputs / task.folder) is not None)
    claims = {key: claim for key in summary.tasks if key not in done and (claim := ledger.read(key))}
    uses = Counter(key for keys in summary.cells.values() for key in keys)

    def cell(arm: str, seed: int, keys: Sequence[str]) -> CellProgress:
        count = len(done.intersection(keys))
        progress = CellProgress(arm, seed, "done" if count == len(keys) else "planned", count, len(keys))
        for state in ("failed", "stale", "running", "queued"):
            for key in keys:
                claim = claims.get(key)
                if claim is None or state != ("stale" if claim.is_stale else claim.state):
                    continue
                detail = f"{claim.label}: {_detail(state, summary.tasks[key], claim, outputs)}"
                if state in ("running", "queued") and uses[key] > 1:  # a shared job: this arm's own jobs come later
                    return replace(progress, detail=f"after {detail}")
                log = _last_lines(claim) if state == "failed" else ()
                return replace(progress, state=state, detail=detail, log=log)
        return progress

    return [cell(arm, seed, keys) for (arm, seed), keys in summary.cells.items()]


def _detail(state: str, task: JobOutline, claim: Claim, outputs: Path) -> str:
    if state == "failed":
        return f"{claim.error} (log: {claim.log})"
    since = duration(round(time.time() - claim.since))
    if state == "queued":
        return f"in the queue ({claim.queue}) for {since}"
    if state == "stale":
        silence = duration(round(time.time() - claim.beat))
        return f"{claim.location} is gone or stuck, last seen {silence} ago; run the same command again to resume"
    remaining = f", about {duration(round(claim.seconds_left))} left" if claim.seconds_left is not None else ""
    if task.kind == "train":
        return f"update {claim.done} of {task.total}{remaining}"
    if task.kind == "sample":
        return f"{len(list((outputs / task.folder).glob('[0-9]*.mkv')))} of {task.total} clips{remaining}"
    return f"for {since}{remaining}"


def _last_lines(claim: Claim) -> tuple[str, ...]:
    try:
        with Path(claim.log).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except (OSError, ValueError):  # ValueError: no file can have this name
        return ()
    return tuple(line for line in lines if line.strip())[-LOG_LINES:]


@dataclass(frozen=True)
class StatusOptions:
    """The options of `pw status`: the latest call of an ablation, or the call with these overrides; or all latest."""

    name: str = option("", "the ablation; without it, how far each is that was run", values=names)
    outputs: Path = option(OUTPUTS, "where its results are", read=results_folder)
    overrides: tuple[str, ...] = ()


def run(options: StatusOptions) -> int:
    """Print the progress of every arm and seed; exit status 0. Raises ConfigError."""
    if not options.name:
        return _all_ablations(options)
    from experiments.engine.job import all_jobs
    from experiments.engine.plan import make_plan, parse

    request = replace(parse([f"name={options.name}", *options.overrides]), outputs=options.outputs)
    summary = None if options.overrides else read_outline(options.name, options.outputs)
    note = ""
    if summary is None:
        note = "" if options.overrides else f"; it has not been run with outputs={options.outputs} yet"
        plan = make_plan(request)
        summary = outline(plan, *all_jobs(plan))
    from rich.table import Table
    from rich.text import Text

    cells = cells_of(summary, options.outputs)
    colours: dict[str, Any] = {"done": "green", "running": "cyan", "failed": "red", "stale": "yellow"}
    terminal = console()
    table = Table(box=None, pad_edge=False)
    headers = {"arm": True, "seed": False, "training": False, "clips": False, "state": False, "jobs": False, "": True}
    for header, is_text in headers.items():
        table.add_column(header, overflow="fold", no_wrap=not is_text)
    for cell in cells:
        state = Text(cell.state, colours.get(cell.state, ""))
        detail = "\n".join([cell.detail, *(f"  {line}" for line in cell.log)])
        signatures = summary.signatures(cell.arm, cell.seed)
        table.add_row(cell.arm, str(cell.seed), *signatures, state, f"{cell.done} of {cell.total}", Text(detail))
    terminal.print(table)
    counts = Counter(cell.state for cell in cells)
    terminal.print(f"{summary.name}: " + ", ".join(f"{count} {state}" for state, count in counts.items()) + note)
    return 0


def _all_ablations(options: StatusOptions) -> int:
    """Print how far every ablation is that was run. Raises ConfigError for overrides, which need a name."""
    from experiments.engine import runs

    if options.overrides:
        raise ConfigError(f"{' '.join(options.overrides)}: name=… is missing, the ablation that was run with it")
    return runs.run(runs.RunsOptions(kind="ablation", outputs=options.outputs))


main = Command(StatusOptions, run)
