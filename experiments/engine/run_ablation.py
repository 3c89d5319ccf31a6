"""`pw ablation name=ansc`: plan, train, sample, score, table.

pw ablation name=ansc [seeds=5] [arms=baseline,full] [dry_run=true] [vary_start=true] [fresh=true]
            [launcher=submitit launcher.partition=…] [workers=2] [mlflow=false] [outputs=DIR]
            [any override of conf/, for every run; of several values, step_sampler.beta=0,0.2,0.4: a sweep]
"""

from __future__ import annotations

import importlib
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.engine.launcher import Local, Queue, Submitit, Unit, farewell, take_launcher, units
from experiments.engine.plan import Plan, make_plan, other_code, parse, start_words, starts
from experiments.engine.pool import FORK_SECONDS, Job, Pool, all_jobs, fresh_results, remove_results
from experiments.engine.status import outline, write_outline
from pw.io.paths import OUTPUTS
from pw.parallel.signals import Stopped, ignore_closed_stream
from pw.run.compose import ConfigError
from pw.sample.evaluate import check_sampling
from pw.train.preflight import preflight

SHOWN = 6  # trainings of other code that a plan names


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 done, 1 some arm failed, 2 a mistake in the call, 130 interrupted, 143 and such by a signal."""
    try:
        launcher, words = take_launcher(arguments)
        plan = make_plan(parse(words))
        if plan.options.fresh and any(arm.first.code == "as_trained" for arm in plan.arms):
            raise ConfigError("fresh=true: redoes what code=as_trained is to keep; leave one of them out")
        for arm in plan.arms:
            launcher.check_run(arm.first)
        if isinstance(launcher, Submitit) and not plan.options.dry_run:
            launcher.check()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run(plan, launcher)


def run(plan: Plan, launcher: Local | Submitit) -> int:
    """Carry the plan out and show its table."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    outputs = plan.options.outputs
    jobs, rows = all_jobs(plan)
    removed = fresh_results(plan, jobs, outputs) if plan.options.fresh else []
    if not plan.options.dry_run:
        remove_results(removed)
    try:
        todo = [job for job in jobs if job.folder(outputs) in removed or not job.is_done(outputs)]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    status = _Show(console, len(todo))
    found = outline(plan, jobs, rows)
    pool = _pool(launcher, plan, todo, units(todo, found.cells), status)
    _print_plan(console, plan, jobs, todo, removed, pool.seconds_left() + (FORK_SECONDS if todo else 0))
    if plan.options.dry_run:
        if isinstance(pool, Queue):
            for unit in pool.pending.values():
                after = f" after {', '.join(unit.needs)}" if unit.needs else ""
                by = f", {unit.trainer.nodes} x {unit.trainer.devices} processes" if unit.tasks > 1 else ""
                console.print(f"  job {unit.name}: {len(unit.jobs)} things to do{by}{after}", markup=False)
        for job in todo:
            # on one line and to the letter, whatever the width: it is to be copied
            style = "dim" if job.kind == "score" else ""
            console.print(f"  {command(job, outputs)}", style=style, markup=False, soft_wrap=True)
        return 0
    began = time.perf_counter()
    if not todo:  # all is cached: status and mlflow-sync find the call all the same
        write_outline(found, plan.options)
    else:
        try:
            runs = {job.run.training_signature: job.run for job in todo if job.kind != "score"}
            for run in runs.values():
                preflight(run, outputs, here=isinstance(launcher, Local))
            for arm in plan.arms:
                check_sampling(arm.first)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        write_outline(found, plan.options)
        threading.Thread(target=_import_for_the_table, args=(plan.options.mlflow,), daemon=True).start()
        try:
            pool.run(todo, lambda: status.tick(pool))
        except (KeyboardInterrupt, Stopped) as stopped:
            there = "what is finished is kept, the same command goes on from here"
            with ignore_closed_stream(sys.stdout):
                console.print(f"\ninterrupted; {farewell(pool) if isinstance(pool, Queue) else there}", markup=False)
            return 128 + (stopped.signal if isinstance(stopped, Stopped) else signal.SIGINT)
    return finish(plan, rows, pool.failed, console, began)


def _pool(
    launcher: Local | Submitit, plan: Plan, todo: Sequence[Job], pending: Sequence[Unit], status: _Show
) -> Pool | Queue:
    """What carries the jobs out: processes of this machine, or a queue."""
    outputs = plan.options.outputs
    if isinstance(launcher, Submitit):
        return Queue(launcher, plan.folder, outputs, pending, status.event)
    on_gpu = any(arm.first.trainer.accelerator == "gpu" for arm in plan.arms)  # one job at a time has it to itself
    pool = Pool(outputs, plan.options.workers or launcher.workers or on_gpu, status.event)
    pool.waiting = list(todo)
    return pool


def _import_for_the_table(mlflow: bool) -> None:
    """Import, while the workers work, what the table will need: 10 s that nobody then waits for."""
    from pw.tracking.mlflow_log import warm_up

    for name in ("scipy.stats", "matplotlib.figure", "benchmarks.report.write"):
        importlib.import_module(name)
    if mlflow:
        warm_up()


def finish(plan: Plan, rows: Sequence[Any], failed: dict[str, str], console: Any, began: float) -> int:
    """The table, from whatever was scored."""
    from filelock import FileLock

    from benchmarks.report import write as report
    from experiments.engine.table import log_to_mlflow, make_table, write_table
    from pw.tracking.mlflow_database import TrackingError

    try:
        result = make_table(plan, rows, failed)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    plan.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(plan.folder / ".lock"):  # another runner of the same ablation may be done now, too
        earlier = write_table(plan, result)
    console.print()
    console.print(report.terminal(result, console.width))
    console.print()
    console.print(report.terminal_verdict(result))
    if plan.options.mlflow:
        try:
            log_to_mlflow(plan, result, rows)
        except TrackingError as error:
            text = f"MLflow was not written ({error}); nothing is lost: `make mlflow-sync` takes it from the files"
            console.print(text, markup=False)
    console.print(
        f"\n{plan.folder}/table.{{md,tex,html,json,csv}}, plot.png, contact_sheet.png; "
        f"`make mlflow` compares the runs. {time.perf_counter() - began:.0f} s"
    )
    if earlier is not None:
        console.print(f"the table of other settings that was there is in {earlier}", markup=False)
    return 1 if failed else 0


def command(job: Job, outputs: Path = OUTPUTS) -> str:
    """The command line that does one job on its own."""
    if job.kind == "score":
        return f"# score {job.score['videos']}"
    own = [f"outputs={outputs}"] if outputs != OUTPUTS else []
    if job.kind == "sample" and job.seed != job.run.seed:
        own.append(f"evaluation_seed={job.seed}")
    return f".venv/bin/python -m pw {job.kind} {shlex.join([*job.run.config.overrides, *own])}"


def _print_plan(
    console: Any, plan: Plan, jobs: Sequence[Job], todo: Sequence[Job], removed: Sequence[Path], seconds: float
) -> None:
    from rich.table import Table

    console.print(f"[bold]{plan.name}[/]: {plan.statement.title}")
    waiting = {job.key for job in todo}
    table = Table(
        "arm", *plan.arms[0].varied, *(f"seed {seed}" for seed in plan.options.seeds), box=None, pad_edge=False
    )
    for arm in plan.arms:
        state = ["to train" if f"train:{run.training_signature}" in waiting else "trained" for run in arm.runs.values()]
        table.add_row(arm.name, *(str(value) for value in arm.varied.values()), *state)
    console.print(table)
    told = [start_words(start) for start in starts(plan).values() if start.shipped or start.start_run or start.note]
    told += _some(other_code(plan))
    if plan.options.fresh:
        word = "would remove" if plan.options.dry_run else "removed"
        told.append(f"fresh=true {word} {len(removed)} folders of results; starts stay, other ablations share them")
        told += [f"  {folder}" for folder in removed] if plan.options.dry_run else []
    for line in told:
        console.print(line, markup=False, soft_wrap=True)
    kinds = {kind: sum(job.kind == kind for job in todo) for kind in ("train", "sample", "score")}
    cached = len(jobs) - len(todo)
    if not todo:
        console.print(f"all {cached} jobs are cached")
        return
    console.print(
        f"{kinds['train']} trainings, {kinds['sample']} samplings, {kinds['score']} scorings to do, {cached} cached; "
        f"about {_minutes(seconds)} at the pace of the machine this was measured on"
    )


def _some(lines: Sequence[str]) -> list[str]:
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], f"and {more} more of the like"] if more > 1 else [*lines]


class _Show:
    """What the terminal shows while it runs: a live line, or a line now and then where there is no terminal."""

    def __init__(self, console: Any, total: int) -> None:
        self.console, self.total, self.done = console, total, 0
        self.began = self.last = time.perf_counter()
        self.every = 0.5 if console.is_terminal else 15.0

    def event(self, what: str, job: Job, text: str) -> None:
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
        now = time.perf_counter()
        if now - self.last < self.every:
            return
        self.last = now
        doing = ", ".join(f"{r.job.label} {100 * r.share:.0f} %" for r in pool.running)
        if pool.held:
            holder = next(iter(pool.held.values()))
            doing += f"{', ' * bool(doing)}{len(pool.held)} in the hands of {holder.who}"
        text = f"{self.done} of {self.total} done, about {_minutes(pool.seconds_left())} left: {doing}"
        if self.console.is_terminal:
            # written past rich, which would drop the carriage return
            with ignore_closed_stream(self.console.file):
                self.console.file.write(f"\r\x1b[2K{text[: self.console.width - 1]}")
                self.console.file.flush()
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        with ignore_closed_stream(self.console.file):
            if self.console.is_terminal:
                self.console.file.write("\r\x1b[2K")
            self.console.print(text)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
