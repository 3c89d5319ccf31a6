"""What the terminal shows of an ablation: its plan, its commands, and how far it is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.engine.job import Job
from experiments.engine.plan import Plan, other_code, start_words, starts
from experiments.engine.pool import Pool
from experiments.engine.queue.hand_over import Queue
from experiments.engine.queue.units import Unit
from pw.io.paths import OUTPUTS
from pw.io.progress import ProgressLine, duration, ignore_closed_stream

SHOWN = 6  # trainings of other code that a plan names


def command(job: Job, outputs: Path = OUTPUTS) -> str:
    """The command line that does one job alone."""
    if job.kind == "score":
        return f"# score {job.score['videos']}"
    options = [f"outputs={outputs}"] if outputs != OUTPUTS else []
    if job.kind == "sample" and job.seed != job.run.seed:
        options.append(f"evaluation_seed={job.seed}")
    return f".venv/bin/python -m pw {job.kind} {shlex.join([*job.run.config.overrides, *options])}"


def print_commands(console: Any, todo: Sequence[Job], units: Mapping[str, Unit], outputs: Path) -> None:
    """What `dry_run=true` prints: the jobs of the queue, if there is one, and a command per job."""
    for unit in units.values():
        after = f" after {', '.join(unit.needs)}" if unit.needs else ""
        by = f", {unit.trainer.nodes} x {unit.trainer.devices} processes" if unit.tasks > 1 else ""
        console.print(f"  job {unit.name}: {len(unit.jobs)} things to do{by}{after}", markup=False)
    for job in todo:  # on one line, whatever the width: it is to be copied
        style = "dim" if job.kind == "score" else ""
        console.print(f"  {command(job, outputs)}", style=style, markup=False, soft_wrap=True)


def print_plan(
    console: Any, plan: Plan, jobs: Sequence[Job], todo: Sequence[Job], removed: Sequence[Path], seconds: float
) -> None:
    """The arms and which of them are trained, what trainings of other code there are, and the work that is left."""
    from rich.table import Table

    console.print(f"[bold]{plan.name}[/]: {plan.statement.title}")
    keys = {job.key for job in todo}
    table = Table(
        "arm", *plan.arms[0].varied, *(f"seed {seed}" for seed in plan.options.seeds), box=None, pad_edge=False
    )
    for arm in plan.arms:
        state = ["to train" if f"train:{run.training_signature}" in keys else "trained" for run in arm.runs.values()]
        table.add_row(arm.name, *(str(value) for value in arm.varied.values()), *state)
    console.print(table)
    for line in _notes(plan, removed):
        console.print(line, markup=False, soft_wrap=True)
    cached = len(jobs) - len(todo)
    if not todo:
        console.print(f"all {cached} jobs are cached")
        return
    kinds = {kind: sum(job.kind == kind for job in todo) for kind in ("train", "sample", "score")}
    console.print(
        f"{kinds['train']} trainings, {kinds['sample']} samplings, {kinds['score']} scorings to do, {cached} cached; "
        f"about {duration(seconds)} at the pace of the machine this was measured on"
    )


def _notes(plan: Plan, removed: Sequence[Path]) -> list[str]:
    notes = [start_words(start) for start in starts(plan).values() if start.shipped or start.start_run or start.note]
    others = other_code(plan)
    more = len(others) - SHOWN
    notes += [*others[:SHOWN], f"and {more} more of the like"] if more > 1 else others
    if plan.options.fresh:
        word = "would remove" if plan.options.dry_run else "removed"
        notes.append(f"fresh=true {word} {len(removed)} folders of results; starts stay, other ablations share them")
        notes += [f"  {folder}" for folder in removed] if plan.options.dry_run else []
    return notes


class RunDisplay:
    """What is shown while jobs run: a live line, or a line every 15 s where there is no terminal."""

    def __init__(self, console: Any, total: int) -> None:
        self.console, self.total, self.done = console, total, 0
        self.line = ProgressLine(console.file)

    def event(self, what: str, job: Job, text: str) -> None:
        """A job was started, done, failed, skipped or is stopping."""
        from rich.markup import escape

        if what in ("done", "failed", "skipped"):
            self.done += 1
        if what == "done" and job.kind == "train":
            self._line(f"[green]✓[/] {job.label} ({text})")
        elif what == "stopping":
            self._line(f"{job.label}: {text}")
        elif what in ("failed", "skipped"):
            self._line(f"[red]✗ {escape(f'{job.label}: {text}')}[/]")

    def tick(self, pool: Pool | Queue) -> None:
        """Show how far it is, if that was not shown just now."""
        if not self.line.is_due:
            return
        doing = ", ".join(f"{r.job.label} {100 * r.share:.0f} %" for r in pool.running)
        if pool.held:
            holder = next(iter(pool.held.values()))
            doing += f"{', ' * bool(doing)}{len(pool.held)} in the hands of {holder.who}"
        text = f"{self.done} of {self.total} done, about {duration(pool.seconds_left())} left: {doing}"
        # past rich, which would drop the carriage return
        self.line.show(text[: self.console.width - 1] if self.line.is_live else text)

    def _line(self, text: str) -> None:
        self.line.clear()
        with ignore_closed_stream(self.console.file):
            self.console.print(text)
