"""`pw ablation name=ansc`: plan the runs, train, sample, score, and write the table. Begin with `run`.

    pw ablation name=ansc seeds=5 arms=baseline,full dry_run=true
    pw ablation name=ansc launcher=submitit launcher.partition=gpu
    pw ablation name=beta step_sampler.beta=0,0.2,0.4         several values of a key: a sweep

Words that are no options are overrides of `conf/` for every run.
"""

from __future__ import annotations

import importlib
import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.engine.ablation import AblationOptions
from experiments.engine.job import Job, Row, all_jobs, jobs_to_run, remove_results, results_to_remove
from experiments.engine.plan import Plan, make_plan, other_code, start_words, starts
from experiments.engine.pool import FORK_SECONDS, Pool
from experiments.engine.queue.hand_over import Queue
from experiments.engine.queue.launcher import Local, Submitit, Unit, take_launcher, units
from experiments.engine.status import outline, write_outline
from experiments.engine.terminal import console
from pw.io.arguments import Command, ConfigError
from pw.io.manifest import DamagedResult
from pw.io.paths import OUTPUTS
from pw.io.progress import ProgressLine, duration, ignore_closed_stream
from pw.parallel.signals import Stopped
from pw.sample.evaluate import check_sampling
from pw.train.preflight import preflight

CODE_NOTES = 6  # notes on trainings by other code that a plan prints


def run(options: AblationOptions) -> int:
    """Run an ablation and print its table, or print only its plan with `dry_run=true`.

    Exit status: 0 done, 1 some arm failed, 128 + number of the signal that stopped it. Raises ConfigError.
    """
    launcher, overrides = take_launcher([f"launcher={options.launcher}", *options.overrides])
    plan = make_plan(replace(options, overrides=tuple(overrides)))
    _check_launch(plan, launcher)
    terminal = console()
    outputs = options.outputs
    jobs, rows = all_jobs(plan)
    removals = results_to_remove(plan, jobs, outputs) if options.fresh else []
    if not options.dry_run:
        remove_results(removals)
    todo = jobs_to_run(jobs, outputs, removals)
    display, summary = RunDisplay(terminal, len(todo)), outline(plan, jobs, rows)
    if isinstance(launcher, Submitit):
        pool = Queue(launcher, plan.folder, outputs, units(todo, summary.cells), display.event)
    else:
        on_gpu = any(arm.first.trainer.accelerator == "gpu" for arm in plan.arms)  # then one job at a time
        pool = Pool(outputs, options.workers or launcher.workers or on_gpu, display.event)
        pool.waiting = list(todo)
    print_plan(terminal, plan, jobs, todo, removals, pool.seconds_left() + (FORK_SECONDS if todo else 0))
    if options.dry_run:
        print_commands(terminal, todo, pool.pending if isinstance(pool, Queue) else {}, outputs)
        return 0
    start_time = time.perf_counter()
    if todo:  # check data, weights, memory and disk
        for training in {job.run.training_signature: job.run for job in todo if job.kind != "score"}.values():
            with suppress(DamagedResult):  # its job fails by name, and the others run
                preflight(training, outputs, on_this_machine=isinstance(launcher, Local))
        for arm in plan.arms:
            check_sampling(arm.first)
    write_outline(summary, plan.options)  # for status and mlflow-sync, also when all jobs are cached
    if todo:
        threading.Thread(target=_import_report_modules, args=(options.mlflow,), daemon=True).start()
        try:
            pool.run(todo, lambda: display.tick(pool))
        except (KeyboardInterrupt, Stopped) as stop:
            message = "finished results are kept; run the same command again to resume"
            message = pool.interrupt_message() if isinstance(pool, Queue) else message
            with ignore_closed_stream(sys.stdout):
                terminal.print(f"\ninterrupted; {message}", markup=False)
            return 128 + (stop.signal if isinstance(stop, Stopped) else signal.SIGINT)
    return finish(plan, rows, pool.failures, terminal, start_time)


def _check_launch(plan: Plan, launcher: Local | Submitit) -> None:
    """Check what takes no time, before the plan is printed. Raises ConfigError."""
    if plan.options.fresh and any(arm.first.code == "as_trained" for arm in plan.arms):
        raise ConfigError("fresh=true: deletes the results that code=as_trained reuses; set only one of them")
    for arm in plan.arms:
        launcher.check_run(arm.first)
    if isinstance(launcher, Submitit) and not plan.options.dry_run:
        launcher.check()


def _import_report_modules(mlflow: bool) -> None:
    """Import the modules of the table while the workers run: this takes 10 s."""
    from pw.tracking.mlflow_log import warm_up

    for name in ("scipy.stats", "matplotlib.figure", "benchmarks.report.write"):
        importlib.import_module(name)
    if mlflow:
        warm_up()


def finish(plan: Plan, rows: Sequence[Row], failures: dict[str, str], console: Any, start_time: float) -> int:
    """Write, print and log the table of all scores on disk; exit status 1 if an arm failed."""
    from filelock import FileLock

    from benchmarks.report import write as report
    from experiments.engine.outcome.mlflow_sync import log_to_mlflow
    from experiments.engine.outcome.table import make_table, write_table
    from pw.tracking.mlflow_log import TrackingError

    try:
        result = make_table(plan, rows, failures)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    plan.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(plan.folder / ".lock"):  # another runner of the same ablation may finish now, too
        archive = write_table(plan, result)
    console.print()
    console.print(report.terminal(result, console.width))
    console.print()
    console.print(report.terminal_verdict(result))
    if plan.options.mlflow:
        try:
            log_to_mlflow(plan, result, rows)
        except TrackingError as error:
            message = f"MLflow was not written ({error}); nothing is lost: `make mlflow-sync` logs it from the files"
            console.print(message, markup=False)
    console.print(
        f"\n{plan.folder}/table.{{md,tex,html,json,csv}}, plot.png, contact_sheet.png; "
        f"`make mlflow` compares the runs. {time.perf_counter() - start_time:.0f} s"
    )
    if archive is not None:
        console.print(f"the previous table has other settings and was moved to {archive}", markup=False)
    return 1 if failures else 0


# ---- output to the terminal


def print_commands(console: Any, todo: Sequence[Job], units: Mapping[str, Unit], outputs: Path) -> None:
    """For `dry_run=true`: print the jobs of the queue, if there is one, and a command per job."""
    for unit in units.values():
        order = f" after {', '.join(unit.needs)}" if unit.needs else ""
        processes = f", {unit.trainer.nodes} x {unit.trainer.devices} processes" if unit.tasks > 1 else ""
        console.print(f"  queue job {unit.name}: {len(unit.jobs)} jobs{processes}{order}", markup=False)
    for job in todo:  # each command on one line, so that it can be copied
        if job.kind == "score":
            console.print(f"  # score {job.score['videos']}", style="dim", markup=False, soft_wrap=True)
            continue
        words = [*job.run.config.overrides, *([f"outputs={outputs}"] if outputs != OUTPUTS else [])]
        if job.kind == "sample" and job.seed != job.run.seed:
            words.append(f"evaluation_seed={job.seed}")
        console.print(f"  .venv/bin/python -m pw {job.kind} {shlex.join(words)}", markup=False, soft_wrap=True)


def print_plan(
    console: Any, plan: Plan, jobs: Sequence[Job], todo: Sequence[Job], removals: Sequence[Path], seconds: float
) -> None:
    """Print the arms, which of their runs are trained, notes on trainings by other code, and the remaining work."""
    from rich.table import Table

    console.print(f"[bold]{plan.name}[/]: {plan.statement.title}")
    keys = {job.key for job in todo}
    table = Table(
        "arm", *plan.arms[0].varied, *(f"seed {seed}" for seed in plan.options.seeds), box=None, pad_edge=False
    )
    for arm in plan.arms:
        states = ["to train" if f"train:{run.training_signature}" in keys else "trained" for run in arm.runs.values()]
        table.add_row(arm.name, *(str(value) for value in arm.varied.values()), *states)
    console.print(table)
    notes = [start_words(start) for start in starts(plan).values() if start.card or start.start_run or start.note]
    code_notes = other_code(plan)
    hidden = len(code_notes) - CODE_NOTES
    notes += [*code_notes[:CODE_NOTES], f"and {hidden} more such notes"] if hidden > 1 else code_notes
    if plan.options.fresh:
        verb = "would remove" if plan.options.dry_run else "removed"
        notes.append(f"fresh=true {verb} {len(removals)} folders of results; starts stay, other ablations share them")
        notes += [f"  {folder}" for folder in removals] if plan.options.dry_run else []
    for line in notes:
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


class RunDisplay:
    """Progress while jobs run: a live line, or without a terminal a new line every 15 s."""

    def __init__(self, console: Any, total: int) -> None:
        self.console, self.total, self.done = console, total, 0
        self.line = ProgressLine(console.file)

    def event(self, state: str, job: Job, text: str) -> None:
        from rich.markup import escape

        if state in ("done", "failed", "skipped"):
            self.done += 1
        if state == "done" and job.kind == "train":
            self._line(f"[green]✓[/] {job.label} ({text})")
        elif state == "stopping":
            self._line(f"{job.label}: {text}")
        elif state in ("failed", "skipped"):
            self._line(f"[red]✗ {escape(f'{job.label}: {text}')}[/]")

    def tick(self, pool: Pool | Queue) -> None:
        if not self.line.is_due:
            return
        activity = ", ".join(f"{r.job.label} {100 * r.share:.0f} %" for r in pool.running)
        if pool.other_claims:
            claim = next(iter(pool.other_claims.values()))
            activity += f"{', ' * bool(activity)}{len(pool.other_claims)} claimed by {claim.location}"
        text = f"{self.done} of {self.total} done, about {duration(pool.seconds_left())} left: {activity}"
        # not by rich, which drops the carriage return
        self.line.show(text[: self.console.width - 1] if self.line.is_live else text)

    def _line(self, text: str) -> None:
        self.line.clear()
        with ignore_closed_stream(self.console.file):
            self.console.print(text)


main = Command(AblationOptions, run)
